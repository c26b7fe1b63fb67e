package server_test

import (
	"fmt"
	"net/http"
	"testing"
)

func TestLesson31_TwoAccountsRacingForOneKey(t *testing.T) {
	w, _ := newSharedWorld(t)
	c := w.newClient()
	key := newECKey(t)
	var messages []*message
	for range 10 {
		b := w.newAccountClient()
		messages = append(messages, b.message("/key-change", b.inner(key)))
	}
	answers := c.together(messages)
	if got := statuses(answers); got[http.StatusOK] != 1 || got[http.StatusConflict] != 9 {
		t.Fatalf("statuses %v, want one 200 and nine 409", got)
	}
	locations := map[string]bool{}
	for _, a := range answers {
		locations[a.header.Get("Location")] = true
	}
	if len(locations) != 1 {
		t.Errorf("the answers name %d accounts: %v", len(locations), fmt.Sprint(locations))
	}
}

package privateca

import (
	"math/big"
	"testing"

	"github.com/acme-bridge/acme-bridge/internal/ncloudtest"
)

// FuzzAnswers: whatever the service sends, decoding ends without a panic, and
// what is accepted has what the issuer goes on with.
func FuzzAnswers(f *testing.F) {
	sim, err := ncloudtest.New(ncloudtest.Options{})
	if err != nil {
		f.Fatal(err)
	}
	root, err := parseCerts(string(sim.RootPEM()))
	if err != nil || len(root) != 1 {
		f.Fatal(err)
	}
	pem := `-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----`
	for _, s := range []string{
		`{"code":"SUCCESS","msg":"Success","data":{"certificate":"` + pem + `","caChain":["` + pem + `"],"issuer":"` + pem + `","serialNo":"1f:0a"}}`,
		`{"code":"SUCCESS","msg":"Success","data":{"caInfo":{"status":"ACTIVE","signingCount":"12"},"caCertInfo":{"certPem":"` + pem + `","notAfterDate":"1767225600000"}}}`,
		`{"code":"SUCCESS","msg":"Success","data":{"caInfo":{"status":"PENDING","signingCount":0},"caCertInfo":null}}`,
		`{"code":"SUCCESS","msg":"Success","data":{"totalCnt":2,"listCerts":["0b:91","1f:e2"],"totalPageNo":1,"currentPageNo":1}}`,
		`{"code":"SUCCESS","msg":"Success","data":{"totalCnt":-1,"listCerts":"0b"}}`,
		`{"code":"INVALID_REQUEST","msg":"Invalid csr.","data":null}`, `{"code":"SUCCESS","data":"x"}`, `null`, ``,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		if s, err := decodeSigned(answer); err == nil {
			if s.leaf == nil {
				t.Fatal("signed, without a certificate")
			}
			sortChain(s.leaf, append(s.others, root...))
			anchors(s.others)
		}
		if s, err := decodeCA(answer); err == nil && (s.Status == "" || s.SigningCount < 0) {
			t.Fatal("a CA without state")
		}
		if p, err := decodePage(answer); err == nil {
			l := &list{next: 1, pages: 1, seen: map[string]bool{}}
			if l.add(p) == nil && int64(len(l.entries)) > p.total {
				t.Fatal("more entries than in all")
			}
		}
	})
}

func FuzzSerial(f *testing.F) {
	for _, s := range []string{"1f:0a:5c", "00:01", "0B:ff", "", ":", "1", "1f:0a:", "zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseSerial(text)
		if err != nil {
			return
		}
		for _, width := range []int{0, 20} {
			again, err := parseSerial(formatSerial(n, width))
			if err != nil || again.Cmp(n) != 0 {
				t.Fatalf("%s: written as %s", text, formatSerial(n, width))
			}
		}
	})
}

func TestSerialForms(t *testing.T) {
	for _, tt := range []struct {
		n     int64
		width int
		want  string
	}{{0x1f0a, 0, "1f:0a"}, {0x0a, 0, "0a"}, {0x1f0a, 4, "00:00:1f:0a"}} {
		if got := formatSerial(big.NewInt(tt.n), tt.width); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

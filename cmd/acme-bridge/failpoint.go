//go:build failpoint

package main

import (
	"os"
	"strings"
	"syscall"
)

// failpoint kills the process, as kill -9 does, when the worker reaches the
// boundary that ACME_BRIDGE_FAILPOINT names. If a file is named after an "@",
// only the first process to remove it dies, so that a restart or another
// replica goes on. This is built for the crash tests only (-tags failpoint).
func failpoint() func(name, orderID string) {
	boundary, once, _ := strings.Cut(os.Getenv("ACME_BRIDGE_FAILPOINT"), "@")
	return func(name, _ string) {
		if name != boundary || boundary == "" {
			return
		}
		if once != "" && os.Remove(once) != nil {
			return
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal ends the process before anything else happens
	}
}

//go:build profile

package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// profile writes a CPU profile of the whole run to the file that
// ACME_BRIDGE_PROFILE names. "make pgo" makes default.pgo of it, by which the
// compiler optimizes the program's hot paths; this is built for that only.
func profile() (stop func(), err error) {
	f, err := os.Create(os.Getenv("ACME_BRIDGE_PROFILE"))
	if err != nil {
		return nil, fmt.Errorf("ACME_BRIDGE_PROFILE: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}, nil
}

//go:build !failpoint

package main

// failpoint is nil but in the binary of the crash tests.
func failpoint() func(name, orderID string) { return nil }

// Package worker advances orders: it has challenges validated and certificates
// issued, one step at a time, and knows what to do after a crash.
//
// Each step begins or ends with a save that only one of several workers can win,
// so that any number of replicas may look at the same order. What must not
// happen twice, asking a CA for a certificate, comes after the save of an
// intent (see [acme.Order.Submit]); an intent that is found later is never
// repeated but searched for.
//
// Start reading at [Worker.Run], then issue.go.
package worker

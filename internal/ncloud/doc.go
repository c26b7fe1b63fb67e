// Package ncloud sends signed requests to services behind the API gateway of
// NAVER Cloud Platform (NCP) and decodes what comes back.
//
// It knows the gateway, not the services: the signature, a deadline for each
// call, a bound on calls in flight, the circuit breaker, the gateway's own
// errors, and above all whether a failed call may have been applied
// ([Error.Applied]). Services bring their paths, bodies and answers.
//
// A call that changes something is sent at most once. Only reads are repeated.
//
// Start reading at [Client.Do].
package ncloud

// Package server is the HTTP front end of RFC 8555: directories, nonces, the
// JWS envelope, and a handler for each resource.
//
// Start reading at [Server.ServeHTTP] and routes.go; then signed.go, through
// which every POST goes. Handlers decode, call one transition of package acme,
// and write one object. What takes time is left to the [Queue].
package server

// Package integration tests acme-bridge from outside: the built program, the
// simulator of NCP as a process, a real Redis, a DNS server, and real ACME
// clients over TLS. It is a module of its own, so that what the tests depend on
// stays out of the product, and it imports no package of the server.
//
// Start reading at world_test.go, which puts the processes together; then
// clients_test.go (real clients on every store and backend), crash_test.go
// (kill -9 at every step of issuing), fault_test.go (a CA that misbehaves),
// replica_test.go, redis_test.go and operate_test.go. certmanager_test.go has
// Certificate Manager with its domains and publishers.
//
// Needed from Debian: redis-server, certbot, lego, bind9. All ports are on loopback.
// Each client and responder has its own address in 127.0.0.0/8, so that tests
// run side by side.
package integration

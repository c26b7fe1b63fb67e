// Package ncloudtest simulates services of NAVER Cloud Platform (NCP) behind
// their API gateway, for tests only. It checks signatures as the gateway does,
// issues real X.509 certificates, and can be told to fail in every way that a
// network and a service can.
//
// What NCP documents is done as documented. What it leaves open is a switch
// ([Behaviour]); what goes wrong is a [Fault]; a call can be stopped on its way
// by a [Hold]. All of it can be set from Go and over HTTP ([Simulator.Control]).
//
// The services are Private CA, Certificate Manager (API 1.0 and 2.0, with a
// public CA behind it) and Global DNS, with a DNS server. Certificate Manager
// finds a domain validated only when the record it asked for is really served:
// it asks a DNS server, its own or another ([Options].Resolver), at an interval
// or at [Simulator.Tick]. Another service brings its routes to the table in gateway.go and its
// state to [Simulator].
//
// Start reading at [Simulator.ServeHTTP].
package ncloudtest

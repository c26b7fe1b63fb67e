// Package storagetest holds what every [acme.Store] must pass, and starts the
// Redis servers that storage tests need. Start reading at [Run].
package storagetest

module github.com/acme-bridge/acme-bridge/contrib/ncp-dcv

go 1.26.0

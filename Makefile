# make run    starts the embedded default: local CA, one file, no cloud, no root
# make test   installs what the tests need, and runs all that CI runs
# make bench  benchmarks and load figures (docs/performance.md)
# make pgo    renews the profile that the compiler optimizes by

GO         ?= go
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME   ?= 2s

.PHONY: run build test deps check unit fuzz integration bench pgo

run: build
	./bin/acme-bridge serve

build:
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/acme-bridge ./cmd/acme-bridge

test: deps check unit fuzz integration

deps:
	./scripts/test-deps.sh

check:
	@unformatted="$$(gofmt -l $$(git ls-files '*.go'))"; test -z "$$unformatted" || { echo "not gofmt-ed: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	cd contrib/ncp-dcv && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...
	cd integration && $(GO) vet ./...

unit:
	$(GO) test -race -timeout 8m ./...
	cd contrib/ncp-dcv && $(GO) test -race ./...

# Each fuzz target runs for a moment, from its seeds; FUZZTIME=10m for longer.
fuzz:
	./scripts/fuzz.sh $(FUZZTIME)

integration:
	cd integration && $(GO) test -timeout 10m ./...

bench: build
	$(GO) test -run '^$$' -bench . -benchmem ./...
	cd integration && $(GO) build -o ../bin/load ./load
	for store in redis bolt; do ./bin/load -binary bin/acme-bridge -store $$store -flows 2000; done
	./bin/load -binary bin/acme-bridge -flows 1200 -rate 20
	for workers in 2 8; do ./bin/load -binary bin/acme-bridge -flows 2000 -workers $$workers; done
	./bin/load -binary bin/acme-bridge -flows 1200 -workers 2 -stored 1000000
	./bin/load -binary bin/acme-bridge -neworders 2000
	./bin/load -binary bin/acme-bridge -neworders 2000 -pending 800

pgo:
	$(GO) build -tags profile -pgo off -o bin/acme-bridge-profile ./cmd/acme-bridge
	cd integration && $(GO) build -o ../bin/load ./load
	ACME_BRIDGE_PROFILE=bin/cpu.pprof ./bin/load -binary bin/acme-bridge-profile -flows 5000
	cp bin/cpu.pprof cmd/acme-bridge/default.pgo

# acme-bridge as a container: one static binary, no shell, not root.
#
#   docker build --build-arg VERSION=$(git describe --tags --always) -t acme-bridge .
#   docker run -p 443:443 -v ./config.yaml:/etc/acme-bridge/config.yaml:ro -v acme-bridge:/data acme-bridge
#
# Relative paths of the config (the embedded store, the local CA) lie in /data,
# which must be kept; with Redis and Private CA nothing is written there. The
# config needs admin.listen: 0.0.0.0:14001 for probes from outside.

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=""
# The same sources give the same bytes: no paths, no build ID, no VCS state.
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=${VERSION}" -o /out/acme-bridge ./cmd/acme-bridge \
 && mkdir /out/data

FROM scratch
# Roots for TLS toward the CA.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/acme-bridge /usr/local/bin/acme-bridge
COPY --from=build --chown=65532:65532 /out/data /data
WORKDIR /data
VOLUME /data
USER 65532:65532
# ACME; health, readiness, metrics and reload.
EXPOSE 443 14001
ENTRYPOINT ["/usr/local/bin/acme-bridge"]
CMD ["serve", "--config", "/etc/acme-bridge/config.yaml"]

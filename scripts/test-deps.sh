#!/bin/sh
# Installs the programs that tests run, if they are missing: Redis, the ACME
# clients certbot and lego, and BIND (Debian packages).
set -eu
missing=""
for program in redis-server certbot lego; do
	command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
# It lies in a directory that not everybody has in PATH.
command -v named >/dev/null 2>&1 || [ -x /usr/sbin/named ] || missing="$missing bind9"
[ -n "$missing" ] || exit 0
echo "installing:$missing"
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
$as_root apt-get update -qq
# Nothing is to be started by the packages: tests start their own.
$as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing

#!/bin/bash
# Install the servers, and the browser, that the tests start for themselves, where that is
# possible: as root on Debian or Ubuntu. Elsewhere say what is missing; its tests are skipped.
# ASYNCPOOL_TEST_WITHOUT="chromium postgresql": not these.
set -eu

is_wanted() {
    [[ " ${ASYNCPOOL_TEST_WITHOUT:-} " != *" $1 "* ]]
}

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
{ [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null; } ||
    missing+=(rabbitmq-server)
! is_wanted chromium || command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
    command -v google-chrome >/dev/null || missing+=(chromium)
# Django's tests run on it where there is one, and on SQLite everywhere.
optional=()
! is_wanted postgresql || compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || command -v postgres >/dev/null ||
    optional+=(postgresql)
[ ${#missing[@]} -gt 0 ] || [ ${#optional[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed: ${missing[*]} ${optional[*]}; the tests that need them will be skipped" >&2
    exit 0
fi

# The packages start a service when they are installed, unless this program
# says no: we want the programs only.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

install() {
    [ $# = 0 ] || apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null || echo "apt-get update has failed" >&2
install "${missing[@]}" ||
    echo "could not install: ${missing[*]}; the tests that need them cannot run" >&2
install "${optional[@]}" ||
    echo "could not install: ${optional[*]}; the tests that need them are skipped" >&2

#!/bin/bash
# Run `make test` on the Python of another Debian release: tests/debian.sh 3.14
#
# As root on Debian. The release is installed once, by debootstrap, from the mirror that this
# machine's apt uses, into a cache folder; remove that folder to have a newer one. Tests run
# there in a chroot, with this checkout at its own path. Whatever is mounted for them, is
# mounted in a namespace of their own, and gone with their last process.
set -eu
cd "$(dirname "$0")/.."

version=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/celery-asyncpool

# Releases that have it; one that has none is missing here.
case $version in
    3.11) suite=bookworm ;;
    3.13) suite=trixie ;;
    3.14) suite=sid ;;
    *) suite= ;;
esac
root=$cache/$suite

# What cannot be had is skipped, but for CI, which is there to run it.
miss() {
    echo "Python $version is not on PATH, not among pyenv's, and $1: its tests are not run" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
}

may_install() {
    [ -n "$suite" ] || miss "no Debian release that this script knows has it"
    [ "$(id -u)" = 0 ] || miss "only root can install Debian's"
    command -v apt-get >/dev/null || miss "this is no Debian that could install it"
    unshare --mount true 2>/dev/null || miss "nothing may be mounted here"
}

install_debootstrap() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null || echo "apt-get update has failed" >&2
    # The keyring of newer releases comes as an update of this one's.
    apt-get install -y -qq --no-install-recommends debootstrap debian-archive-keyring gpgv \
        </dev/null >/dev/null || miss "debootstrap could not be installed"
}

# The mirror that apt is configured for, as it names itself; not the security updates'.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(ORIGIN)/$(LABEL)' 'Created-By: Packages' |
        awk '$2 == "Debian/Debian" && NF == 2 { print $1; exit }'
}

# Keys that apt trusts, in one file: debootstrap takes no more.
keyring() {
    local key
    for key in /etc/apt/trusted.gpg /etc/apt/trusted.gpg.d/*.gpg /usr/share/keyrings/debian-*.gpg; do
        [[ ! -s $key || $key == *removed* ]] || cat "$key"
    done
}

# Whether apt was told to take packages without a signature.
trusts_blindly() {
    grep -rqsiE '^deb[^#]*trusted=yes|^trusted: *yes' /etc/apt/sources.list /etc/apt/sources.list.d
}

install_release() {
    local url check
    [ -e "$root" ] || install_debootstrap
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9  # of two runs one installs
    if [ ! -e "$root" ]; then
        url=$(mirror)
        [ -n "$url" ] || miss "apt knows no mirror of Debian"
        keyring >"$cache/keyring.gpg"
        check=(--keyring="$cache/keyring.gpg")
        ! trusts_blindly || check=(--no-check-gpg)
        echo "== Debian $suite is installed into $root"
        rm -rf "$root.new"
        set_proxy
        # In a namespace too: it mounts, and may be killed.
        unshare --mount --propagation private debootstrap --variant=minbase "${check[@]}" \
            --include="ca-certificates,make,python$version,python$version-venv" \
            "$suite" "$root.new" "$url" >"$cache/debootstrap.log" 2>&1 </dev/null ||
            { tail -20 "$cache/debootstrap.log" >&2; miss "debootstrap of $suite has failed"; }
        mv "$root.new" "$root"
    fi
    exec 9>&-
}

# debootstrap downloads with wget, which does not read apt's settings.
set_proxy() {
    local http= https=
    eval "$(apt-config shell http Acquire::http::Proxy https Acquire::https::Proxy)"
    [[ -z $http || $http == DIRECT ]] || export http_proxy=$http
    [[ -z $https || $https == DIRECT ]] || export https_proxy=$https
}

# Files that tell pip where packages are, and what these and pip's variables name: local
# folders of packages, certificates. Beside the folder of an index (file:) are its packages.
pip_files() {
    local file
    for file in /etc/pip.conf ~/.pip/pip.conf ~/.config/pip/pip.conf "${PIP_CONFIG_FILE:-}" \
        ~/.netrc; do
        [ ! -f "$file" ] || echo "$file"
    done
}

named_paths() {
    { pip_files | xargs -r cat; env | grep -E '^(PIP|SSL|REQUESTS|CURL)_'; } |
        grep -oE "(file:)?/[^ ,;'\"]+" |
        sed -E 's#^file:/*(/.*)/[^/]+/?$#\1#; s#^//*#/#' | sort -u
}

# Make room in the chroot for a file or folder of ours, at its own path.
make_place() {
    if [ -d "$1" ]; then
        mkdir -p "$root$1"
    else
        mkdir -p "$(dirname "$root$1")"
        [ ! -L "$root$1" ] || rm "$root$1"  # to what is not there, perhaps
        touch "$root$1"
    fi
}

# In the namespace. All places are made before anything is mounted: afterwards they might be ours.
run_tests() {
    local path writable=(/dev /tmp "$PWD") readable=() certificates=/etc/ssl/certs/ca-certificates.crt
    [ ! -d ~/.cache/pip ] || writable+=(~/.cache/pip)
    while read -r path; do
        [ ! -e "$path" ] || readable+=("$path")
    done < <(printf '%s\n' /etc/resolv.conf /etc/hosts $certificates /etc/apt/auth.conf \
        /etc/apt/auth.conf.d; pip_files; named_paths)
    mkdir -p "$root$HOME"
    for path in "${writable[@]}" "${readable[@]}"; do
        make_place "$path"
    done
    apt-config dump | grep -E '^Acquire::(https?|Check|Allow|Retries|Force)' \
        >"$root/etc/apt/apt.conf.d/99outside" || true
    mount -t proc proc "$root/proc"
    for path in "${writable[@]}"; do
        mount --rbind "$path" "$root$path"
    done
    for path in "${readable[@]}"; do
        mount --bind -o ro "$path" "$root$path"
    done
    # Chromium and PostgreSQL would take longer than all the rest; they are tested outside.
    exec chroot "$root" /usr/bin/env -u VIRTUAL_ENV -u PYTHONHOME -u PYTHONPATH \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 TMPDIR=/tmp \
        ASYNCPOOL_TEST_WITHOUT="chromium postgresql" \
        make --no-print-directory -C "$PWD" test PYTHON="python$version" \
        ENVIRONMENTS="/environments$PWD"
}

if [ "${2:-}" = --in-namespace ]; then
    run_tests
fi
may_install
install_release
echo "== Python $version: in Debian $suite, $root"
exec unshare --mount --propagation private tests/debian.sh "$version" --in-namespace

#!/bin/sh
# Unpack Debian's Docker for the tests, which start a daemon of their own: installed, it would start
# one for the whole machine, and change its firewall. Usage: docker.sh FOLDER
# Without its packages the tests that need it say so and are skipped.
set -eu
command -v dockerd >/dev/null && exit 0
[ -x "$1/usr/sbin/dockerd" ] && exit 0
rm -rf "$1" && mkdir -p "$1"
run=""
[ "$(id -u)" = 0 ] || run=sudo
download() {
    # From Debian 13 on, its command is a package of its own.
    (cd "$1" && apt-get download -q docker.io containerd &&
        { ! apt-cache show docker-cli >/dev/null 2>&1 || apt-get download -q docker-cli; })
}
unpack() {
    # The package lists may be old, or not there: refresh them and try once more.
    download "$1" || { $run apt-get update -q && download "$1"; } || return
    for package in "$1"/*.deb; do
        dpkg-deb --extract "$package" "$1" || return
    done
    rm "$1"/*.deb
}
unpack "$1" || echo "Docker could not be unpacked: tests with it will be skipped." >&2

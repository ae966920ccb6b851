#!/bin/sh
# Install the Debian or Ubuntu packages listed in the files given, those that are missing. A line is
# a package's name and, where another package may bring it too, the program that it is wanted for.
# Usage: system.sh LIST... ; needs root or sudo only when something is missing.
set -eu

missing=""
for list in "$@"; do
    while read -r name program; do
        case "$name" in "" | "#"*) continue ;; esac
        [ -n "$program" ] && command -v "$program" >/dev/null && continue
        status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) || status=""
        [ "$status" = installed ] || missing="$missing $name"
    done <"$list"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "This is neither Debian nor Ubuntu. Install what provides:$missing" >&2
    exit 1
fi
run=""
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
        echo "Missing packages:$missing. Run as root, or install sudo." >&2
        exit 1
    }
    run=sudo
fi
echo "Installing:$missing"
# shellcheck disable=SC2086 # a list of package names
install() {
    $run env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
}
# The package lists may be old, or not there: refresh them and try once more.
install || { $run apt-get update -q && install; }

#!/bin/sh
# Install Azurite, which stands in for Azure Blob Storage in the tests, from its own lock.
# Usage: azurite.sh FOLDER. Without npm or its registry the tests that need it say so and are skipped.
# To renew the lock: npm install --package-lock-only --omit-lockfile-registry-resolved, in azurite/
set -eu
lock=$(dirname "$0")/azurite
mkdir -p "$1"
cmp -s "$lock/package-lock.json" "$1/installed" && exit 0
cp "$lock/package.json" "$lock/package-lock.json" "$1/"
if npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel=error; then
    cp "$lock/package-lock.json" "$1/installed"
else
    echo "Azurite could not be installed: tests of Azure Blob Storage will be skipped." >&2
fi

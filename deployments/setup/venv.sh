#!/bin/sh
# Make or update the virtual environment from the locks. Usage: venv.sh PYTHON FOLDER
set -eu
python=$1
venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "Python 3.11 or newer is needed; '$python' is $("$python" --version 2>&1)." >&2
    echo "Name another one: make PYTHON=/path/to/python3" >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input -q "$@"; }

# Build tools first, from their own lock: what has no wheel is then built with these and no others.
pip install --require-hashes --only-binary :all: -r requirements/build.txt
pip install --require-hashes --no-build-isolation --only-binary :all: --no-binary tpm2-pytss \
    -r requirements/all.txt
pip install --no-build-isolation --no-deps -e .

#!/bin/sh
# Resolve requirements/*.txt anew: hashed, for every Python from 3.11, naming no index.
# Usage: lock.sh BIN [--upgrade]; BIN is the folder of a virtual environment's programs.
set -eu
"$1/python" -m pip -q install uv
upgrade=${2:-}
bin=$1
compile() {
    "$bin/uv" pip compile -q --universal --generate-hashes --python-version 3.11 \
        --no-header --no-annotate $upgrade "$@"
}
compile requirements/build.in -o requirements/build.txt
compile pyproject.toml --no-emit-package aicert --group dev \
    --extra pipeline --extra azure --extra s3 --extra gcs --extra hf --extra timestamp \
    -o requirements/all.txt

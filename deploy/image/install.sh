#!/bin/sh
# Builds both packages from the source tree and installs them into a virtual environment, compiled: what is in the image,
# and what tests install without an engine.
#   install.sh SOURCE TARGET [WHEELS]
set -eu
source=$1 target=$2 wheels=${3:-$(mktemp -d)}
python=${PYTHON:-python3}

# Apart from the sources' own environment, and without build folders in the tree.
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$wheels" \
    "$source/clients/python" "$source"
"$python" -m venv "$target"
# Wheels only: nothing is compiled from C here, so no compiler is needed.
set -- "$wheels"/milo_discoveryd-*.whl
"$target/bin/pip" install --quiet --disable-pip-version-check --no-compile --only-binary=:all: \
    "$wheels"/milo_discovery_client-*.whl "$1[traces]"
"$target/bin/pip" check --disable-pip-version-check
"$target/bin/pip" uninstall --quiet --yes pip setuptools 2>/dev/null || true
install -m 755 "$source/deploy/image/copy_client.py" "$target/bin/copy-client"
# By hash, not by time: layers and copies change times. Some packages carry files for other Pythons, which don't compile.
"$target/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$target/lib" >/dev/null || true

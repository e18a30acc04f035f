#!/bin/sh
# Builds the packages from the source tree and installs them, with the locked dependencies, into a virtual environment:
# the contents of the image, which tests install without a container engine.
#   install.sh SOURCE TARGET [daemon|sandbox] [WHEELS]
set -eu
source=$1 target=$2 what=${3:-daemon} wheels=${4:-$(mktemp -d)}
python=${PYTHON:-python3}
# publishing, objects, and the parts of controllers that are used here, have the same dependencies as the daemon: `pip check` verifies
# that.
packages="$source/kube $source/clients/python $source/clients/cli $source/objects $source/controllers $source/publishing $source"
[ "$what" = daemon ] || packages="$packages $source/$what"

pip() {
    environment=$1 command=$2
    shift 2
    "$python" -m pip --python "$environment" "$command" --quiet --disable-pip-version-check "$@"
}

build=$(mktemp -d)
trap 'rm -r "$build"' EXIT
"$python" -m venv --without-pip "$build"
pip "$build" install --require-hashes --requirement "$source/requirements/build.txt"
# shellcheck disable=SC2086 # one argument for each package
pip "$build" wheel --no-deps --no-build-isolation --wheel-dir "$wheels" $packages

"$python" -m venv --without-pip "$target"
# Wheels only: the image has no compiler. nkeys, which is Python alone, has none to install.
pip "$target" install --no-compile --only-binary=:all: --no-binary=nkeys --require-hashes --requirement "$source/requirements/$what.txt"
pip "$target" install --no-compile --no-deps "$wheels"/milo_*.whl
pip "$target" check
install -m 755 "$source/deploy/image/copy_client.py" "$target/bin/copy-client"
# unchecked-hash: Python does not compare the bytecode with the modification time of its source, which image layers
# change. Errors are ignored: some packages contain files for other Python versions, which do not compile.
"$target/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$target/lib" >/dev/null || true

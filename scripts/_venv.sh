# Sourced by scripts/demo and scripts/test: makes .venv from setup.cfg, once, and again when setup.cfg changes.
# Afterwards: $root is the project and $python the interpreter of .venv. PYTHON names the one to make it with.
# `_set_up FOLDER EXTRAS` makes another environment likewise.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

# scripts/_venv.sh is also where the frameworks are told to be quiet.
export KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=2 ABSL_MIN_LOG_LEVEL=2 PIP_DISABLE_PIP_VERSION_CHECK=1
# TensorFlow asks for oneDNN by itself on CPUs with AVX-512 alone; without, a training step takes twice as long.
export TF_ENABLE_ONEDNN_OPTS="${TF_ENABLE_ONEDNN_OPTS:-1}"

_say() { echo "[$(date +%H:%M:%S)] $*"; }

_make_venv() {
    local venv="$1" base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "latency-lab needs Python 3.10 or newer; $base is $("$base" -V 2>&1). Name another: PYTHON=python3.11 $0" >&2
        return 1
    }
    _say "making $venv with $("$base" -V) ..."
    # Debian ships ensurepip apart (python3-venv): without it, the pip that is there fills the environment.
    "$base" -m venv --clear "$venv" >/dev/null 2>&1 || {
        "$base" -m venv --clear --without-pip "$venv" &&
            "$base" -m pip --python "$venv/bin/python" install --quiet pip
    } || return
    echo '*' >"$venv/.gitignore"
}

_fill_venv() {
    local venv="$1" extras="$2"
    _say "installing what setup.cfg names under $extras (CPU builds where they have a name of their own) ..."
    "$venv/bin/python" "$root/scripts/_requirements.py" "$extras" >"$venv/requirements.txt" &&
        "$venv/bin/python" -m pip install --quiet --requirement "$venv/requirements.txt" &&
        _say "installing latency-lab itself, as it lies here ..." &&
        "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable "$root"
}

_stamp() { cat "$root/setup.cfg" "$root/pyproject.toml" "$root"/scripts/_{venv.sh,requirements.py} | sha256sum; }

# Each step hands on its failure: bash ignores `set -e` in a function that a condition calls.
_set_up() {
    local venv="$1" extras="$2" wanted
    local stamp="$venv/stamp"
    wanted="$(_stamp) $root $extras"
    if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        _say "using $venv as it is"
        return
    fi
    rm -f "$stamp"
    { "$venv/bin/python" -m pip --version >/dev/null 2>&1 || _make_venv "$venv"; } &&
        _fill_venv "$venv" "$extras" &&
        echo "$wanted" >"$stamp" &&
        _say "environment ready"
}

_set_up "$root/.venv" all

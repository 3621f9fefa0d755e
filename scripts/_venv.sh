# Sourced by scripts/demo and scripts/test: makes .venv from setup.cfg, once, and again when setup.cfg changes.
# Afterwards: $root is the project and $python the interpreter of .venv. PYTHON names the one to make it with.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

# scripts/_venv.sh is also where the frameworks are told to be quiet.
export KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=2 ABSL_MIN_LOG_LEVEL=2 PIP_DISABLE_PIP_VERSION_CHECK=1

_say() { echo "[$(date +%H:%M:%S)] $*"; }

_make_venv() {
    local base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "latency-lab needs Python 3.10 or newer; $base is $("$base" -V 2>&1). Name another: PYTHON=python3.11 $0" >&2
        return 1
    }
    _say "making $root/.venv with $("$base" -V) ..."
    # Debian ships ensurepip apart (python3-venv): without it, the pip that is there fills the environment.
    "$base" -m venv --clear "$root/.venv" >/dev/null 2>&1 || {
        "$base" -m venv --clear --without-pip "$root/.venv"
        "$base" -m pip --python "$python" install --quiet pip
    }
}

_fill_venv() {
    _say "installing what setup.cfg names (tensorflow-cpu in tensorflow's place) ..."
    "$python" "$root/scripts/_requirements.py" >"$root/.venv/requirements.txt"
    "$python" -m pip install --quiet --requirement "$root/.venv/requirements.txt"
    _say "installing latency-lab itself, as it lies here ..."
    "$python" -m pip install --quiet --no-deps --no-build-isolation --editable "$root"
}

_stamp() { cat "$root/setup.cfg" "$root/pyproject.toml" "$root"/scripts/_{venv.sh,requirements.py} | sha256sum; }

_set_up() {
    local stamp="$root/.venv/stamp" wanted
    wanted="$(_stamp) $root"
    if [[ -x $python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        _say "using $root/.venv as it is"
        return
    fi
    rm -f "$stamp"
    "$python" -m pip --version >/dev/null 2>&1 || _make_venv
    _fill_venv
    echo "$wanted" >"$stamp"
    _say "environment ready"
}

_set_up

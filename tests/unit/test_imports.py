"""`import latency_lab` takes no framework, and a missing one is named with the command that installs it."""

import subprocess
import sys
from pathlib import Path

import pytest

import latency_lab

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("tensorflow", "keras", "onnx", "onnxruntime", "sklearn", "ai_edge_litert", "flatbuffers", "distributed")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def without(*modules: str) -> str:
    """Code after which these modules cannot be imported."""
    return f"import sys\nfor name in {modules!r}: sys.modules[name] = None\n"


LOADED = f"; import sys; print([m for m in {FRAMEWORKS!r} if m in sys.modules])"


def test_import_takes_no_framework():
    assert run("import latency_lab" + LOADED) == "[]"


def test_prediction_from_a_profile_takes_no_framework():
    assert run("import latency_lab as ll; ll.DeviceProfile; ll.OpConfig; ll.Structure" + LOADED) == "[]"


def test_the_command_line_takes_no_framework_to_start():
    assert run("import latency_lab.cli.main" + LOADED) == "[]"


def test_missing_framework_is_named_with_its_command():
    code = """
import importlib.abc, latency_lab.extras, latency_lab as ll
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "latency_lab.fitting":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.tree")
sys.meta_path.insert(0, Absent())
try:
    ll.fit_profile
except ll.LatencyLabError as error:
    print(type(error).__name__, error.exit_code, error)
"""
    expected = (
        "MissingRuntimeError 2 latency_lab.fit_profile needs sklearn, which is not installed. Install it: pip install "
    )
    assert run(without("sklearn") + code) == expected + '"latency-lab[fit]"'


def test_an_import_that_fails_for_another_reason_is_not_disguised():
    code = """
import importlib.abc, latency_lab as ll
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "latency_lab.fitting":
            raise ModuleNotFoundError("No module named 'mine'", name="mine")
sys.meta_path.insert(0, Broken())
try:
    ll.fit_profile
except ModuleNotFoundError as error:
    print(type(error).__name__, error)
"""
    assert run("import sys\n" + code) == "ModuleNotFoundError No module named 'mine'"


@pytest.mark.parametrize("name", latency_lab.__all__)
def test_public_names_exist_and_say_what_they_are(name):
    value = getattr(latency_lab, name)
    assert value.__doc__, f"latency_lab.{name} has no docstring"
    assert not isinstance(value, type(sys)), f"latency_lab.{name} is a module"


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'lookup'"):
        latency_lab.lookup  # noqa: B018


def test_submodule_does_not_hide_the_function():
    import latency_lab.shrink as bound  # binds the public name, not the module
    from latency_lab.shrink import shrink

    assert latency_lab.shrink is shrink
    assert bound is shrink


def test_every_public_name_has_one_home():
    assert set(latency_lab.__all__) == set(latency_lab._HOMES)

"""The wheel, installed away from the source tree, carries both packages, the profiles and the type markers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROBE = """
import importlib.resources as resources, json
import latency_lab, regularizers
print(json.dumps({
    "homes": [latency_lab.__file__, regularizers.__file__],
    "profiles": sorted(f.name for f in resources.files("device_profiles").iterdir() if ".json" in f.name),
    "typed": [resources.files(p).joinpath("py.typed").is_file() for p in ("latency_lab", "regularizers")],
    "schema": json.loads(resources.files("latency_lab").joinpath("profiles/schema.json").read_text())["title"],
}))
"""


def run(*command: str, cwd: Path, **environ: str) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environ}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A directory that holds what the wheel installs. The wheel is built from a copy, so that the tree stays clean."""
    where = tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        source, copy = ROOT / name, where / "tree" / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "./tree", cwd=where)
    (wheel,) = (where / "dist").glob("latency_lab-*.whl")
    run(*pip, "install", "--quiet", "--no-deps", "--target", "site", str(wheel), cwd=where)
    return where / "site"


def test_wheel_carries_packages_profiles_and_markers(installed):
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n" + PROBE
    found = json.loads(run(sys.executable, "-c", code, cwd=installed.parent, PYTHONPATH=""))
    assert all(home.startswith(str(installed)) for home in found["homes"]), found["homes"]
    assert found["profiles"] == sorted(p.name for p in (ROOT / "device_profiles").glob("*.json*"))
    assert found["typed"] == [True, True]
    assert found["schema"]


def test_wheel_holds_nothing_else(installed):
    packages = {p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")}
    assert packages == {"bin", "device_profiles", "latency_lab", "regularizers"}


def test_wheel_installs_the_command(installed):
    script = installed / "bin" / "latency-lab"
    assert script.is_file()
    done = run(
        sys.executable, "-m", "latency_lab.cli.main", "--version", cwd=installed.parent, PYTHONPATH=str(installed)
    )
    assert done.startswith("latency-lab ")

"""What the README and the guide to training show runs: Python blocks in order, and every latency-lab command parses."""

import os
import re
import shlex
from pathlib import Path

import pytest

from latency_lab.cli.main import parser

README = Path(__file__).parents[1] / "README.md"
TRAINING = README.parent / "docs" / "regularizers.md"


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [README, TRAINING], ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks("python", page)
    assert found, f"{page.name} has no Python block"
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(found, start=1):
        exec(compile(block, f"{page.name} python block {number}", "exec"), names)


def commands() -> list[str]:
    if not README.exists():
        return []
    lines = "".join(blocks("(?:bash|sh|console)")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").partition(" #")[0] for line in lines if re.match(r"(\$ )?latency-lab ", line)]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command):
    words = shlex.split(command.partition(" | ")[0].partition(" > ")[0])
    assert parser().parse_args(words[1:]).verb


@pytest.mark.parametrize("script", ["scripts/demo", "scripts/test", ".ci/run"])
def test_scripts_can_be_run(script):
    assert os.access(README.parent / script, os.X_OK)

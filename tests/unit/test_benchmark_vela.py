"""What benchmark_vela.py makes of operations that the compiler cannot take alone."""

import json
import sys
from pathlib import Path

import pytest

from latency_lab.ops import OpConfig

SCRIPTS = Path(__file__).parents[2] / "scripts"
CONV = OpConfig("conv2d", height=8, width=8, in_channels=96, out_channels=6, dtype="int8")
WIDE = CONV.with_channels(96, 12)


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    before = set(sys.modules)
    yield __import__("benchmark_vela")
    for name in set(sys.modules) - before:
        if name.startswith(("benchmark_", "accuracy_")):
            del sys.modules[name]


def test_an_operation_that_cannot_be_compiled_alone_is_named_and_the_others_are_summed(script, monkeypatch):
    def answer(request, target):
        if Path(request["path"]).read_bytes() == WIDE.key.encode():
            return {"status": "failed", "reason": "RuntimeError: no room"}
        return {"status": "ok", "wall_ms": {"min": 0.25}}

    monkeypatch.setattr(script, "answer", answer)
    found = script.sum_ms([CONV, WIDE, CONV], "vela:ethos-u85-256", lambda network: network.nodes[0][0].key.encode())
    assert found == (0.5, {WIDE.key: "RuntimeError: no room"})


def test_a_sum_that_lacks_an_operation_is_not_within_10_percent(script):
    row = {"accelerator": "ethos-u85-256", "error": 0.0, "sum_in_context": 0.02, "sum_alone": -0.02}
    lacking = {**row, "sum_alone_lacks": {WIDE.key: "RuntimeError: no room"}}
    shrunk = {"accelerator": "ethos-u85-256", "over_budget": 0.01}
    found = script.summary({"networks": [row, lacking], "shrunk": [shrunk]}, "ethos-u85-256")
    assert [found[name]["within_10_percent"] for name in ("error", "sum_in_context", "sum_alone")] == [2, 2, 1]


def test_a_line_names_what_a_sum_lacks(script):
    row = {"network": "N", "accelerator": "a", "vela_ms": 1.0, "error": 0.0, "sum_in_context": 0.0, "sum_alone": 0.0}
    assert script.line({**row, "sum_alone_lacks": {WIDE.key: "no room"}}).endswith(f"sum_alone_lacks {WIDE.key}")
    assert "lacks" not in script.line(row)


def test_a_run_of_one_accelerator_keeps_what_the_file_has_of_the_others(script, tmp_path):
    rows = [{"accelerator": name, "network": "N"} for name in ("ethos-u55-128", "ethos-u85-256")]
    summary = {"ethos-u55-128": {"networks": 1}, "ethos-u85-256": {"networks": 1}}
    (tmp_path / "v.json").write_text(json.dumps({"networks": rows, "shrunk": rows[1:], "summary": summary}))
    found = script.others(tmp_path / "v.json", ["ethos-u85-256"])
    assert found == {"networks": rows[:1], "shrunk": [], "summary": {"ethos-u55-128": {"networks": 1}}}
    assert script.others(tmp_path / "none.json", ["ethos-u85-256"]) == {"networks": [], "shrunk": [], "summary": {}}

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latency_lab import runtimes
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import Journal, LocalWorker, Protocol, Task, doctor, profile

ROOT = Path(__file__).parents[2]
CONV = OpConfig("conv2d", height=8, width=8, in_channels=8, out_channels=16, kernel_size=(3, 3), activation="relu6")
OPS = [
    CONV,
    OpConfig("dense", in_channels=64, out_channels=32),
    OpConfig("add", height=8, width=8, in_channels=8, out_channels=8, operands=2),
]

ABORTING = """
import os, sys
sys.path.insert(0, {root!r})
from latency_lab.runtimes import worker
class Aborting(worker.LiteRtModel):
    def __init__(self, path, threads, kernels):
        if os.path.basename(path) == "1.tflite":
            os.abort()
        super().__init__(path, threads, kernels)
worker.main({{"litert": Aborting}})
"""

KILLED = """
import sys
sys.path.insert(0, {root!r})
from latency_lab.ops import OpConfig
from latency_lab.profiling import profile
ops = [OpConfig("dense", in_channels=c, out_channels=8) for c in range(1, 61)]
print(profile(ops, runtime="litert", journal={journal!r}).samples)
"""


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
@pytest.mark.parametrize("threads", [1, 2])
def test_lone_operations_and_a_network_are_measured(runtime, threads, tmp_path):
    network = Network(
        ((CONV, (-1,)), (OpConfig("global_avg_pool", height=8, width=8, in_channels=16, out_channels=16), (0,)))
    )
    tasks = [*(Task(Network.of(op), cold=True) for op in OPS), Task(network, "network")]
    journal = profile(
        tasks,
        runtime=runtime,
        threads=threads,
        journal=tmp_path / "j.jsonl",
        protocol=Protocol(rounds=2, extra_rounds=0),
    )
    assert journal.failures == {}
    for task in tasks:
        blocks = journal.blocks[task.key]
        assert [block["round"] for block in blocks] == [0, 1]
        assert all(block["wall_ms"]["min"] > 0 and block["count"] >= 3 for block in blocks)
        assert all((block["cold_ms"] is not None) == task.cold for block in blocks)
        has_cpu = threads == 1 and not (runtime == "onnxruntime" and task.role == "op")
        assert all((block["cpu_ms"] is not None) == has_cpu for block in blocks)
    assert journal.identity["threads"] == threads
    assert journal.identity["runtime"] == runtime


def test_a_worker_that_aborts_leaves_a_complete_journal(tmp_path):
    script = tmp_path / "aborting.py"
    script.write_text(ABORTING.format(root=str(ROOT)))
    path = tmp_path / "j.jsonl"
    journal = profile(
        OPS,
        runtime="litert",
        journal=path,
        start_worker=lambda: LocalWorker("litert", 1, [sys.executable, str(script)]),
    )
    assert len(journal.failures) == 1
    ((key, reason),) = journal.failures.items()
    assert "SIGABRT" in reason
    assert all(len(blocks) >= 5 for blocks in journal.blocks.values())
    assert len(journal.blocks) == 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines if line["key"] == key] == ["failed"]


def test_killed_in_the_middle_it_goes_on_and_measures_nothing_twice(tmp_path):
    path = tmp_path / "j.jsonl"
    code = KILLED.format(root=str(ROOT), journal=str(path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    while not path.exists() or path.read_text().count('"status": "ok"') < 70:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = [(line["key"], line["round"]) for line in _blocks(path)]
    assert 70 <= len(before) < 300
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) > 0
    after = [(line["key"], line["round"]) for line in _blocks(path)]
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) >= 300
    assert Journal.load(path).failures == {}


def test_doctor_finds_every_runtime():
    found = doctor()
    assert {check.name: check.works for check in found.runtimes} == dict.fromkeys(runtimes.NAMES, True)
    assert "ai-edge-litert" in str(found)
    assert found.to_json()["steady"] is found.steady


def _blocks(path):
    """Whole lines of measured blocks."""
    text = path.read_text()
    lines = [json.loads(line) for line in text[: text.rfind("\n")].splitlines()]
    return [line for line in lines if line["status"] == "ok"]

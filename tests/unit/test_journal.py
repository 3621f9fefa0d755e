import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest

from latency_lab.errors import EnvironmentMismatchError, FileFormatError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import Journal, Protocol, Task, profile
from latency_lab.profiling.transport import WorkerDiedError
from latency_lab.runtimes.litert import LiteRT

IDENTITY = {"cpu": "x", "threads": 1, "runtime": "litert", "precision": "float32"}
SUMMARY = {"min": 0.5, "deciles": [0.5] * 9, "median": 0.5}
OPS = [OpConfig("dense", in_channels=c, out_channels=8) for c in (1, 2, 3, 4)]


class FakeWorker:
    """Answers at once; dies at the nth block, and on models whose bytes hold `deadly`."""

    started = 0
    blocks = 0

    def __init__(self, stop_after=None):
        type(self).started += 1
        self.hello = {"package": "fake", "version": "1", "worker": 1}
        self.stop_after = stop_after

    def block(self, path, settings):
        type(self).blocks += 1
        if self.stop_after is not None and type(self).blocks > self.stop_after:
            raise KeyboardInterrupt
        return {
            "id": 0,
            "status": "ok",
            "count": 3,
            "repeats": 1,
            "wall_ms": SUMMARY,
            "cpu_ms": SUMMARY,
            "cold_ms": None,
        }

    def close(self):
        pass


@pytest.fixture(autouse=True)
def _fresh():
    FakeWorker.started = FakeWorker.blocks = 0


def keys_and_rounds(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["key"], line["round"]) for line in lines if line["status"] in {"ok", "failed"}]


def test_every_task_is_measured_once_a_round_over_two_workers(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = profile(OPS, runtime="litert", journal=path, start_worker=FakeWorker)
    assert sorted(keys_and_rounds(path)) == sorted((op.key, r) for op in OPS for r in range(5))
    assert FakeWorker.started == 2
    assert journal.samples == 60
    orders = [[k for k, r in keys_and_rounds(path) if r == round_] for round_ in range(5)]
    assert len({tuple(order) for order in orders}) > 1


def test_a_stopped_run_goes_on_and_measures_no_block_again(tmp_path):
    path = tmp_path / "j.jsonl"
    with pytest.raises(KeyboardInterrupt):
        profile(OPS, runtime="litert", journal=path, start_worker=lambda: FakeWorker(stop_after=7))
    before = keys_and_rounds(path)
    assert len(before) == 7
    with path.open("a") as file:
        file.write('{"key": "cut off in the mid')
    FakeWorker.blocks = 0
    profile(OPS, runtime="litert", journal=path, start_worker=FakeWorker)
    after = keys_and_rounds(path)
    assert after[:7] == before
    assert len(after) == len(set(after)) == 20
    assert FakeWorker.blocks == 13


def test_a_worker_that_dies_costs_one_operation_and_is_replaced(tmp_path):
    class Dying(FakeWorker):
        def block(self, path, settings):
            if path.endswith("/0.tflite"):
                raise WorkerDiedError("the worker died: signal SIGABRT")
            return super().block(path, settings)

    journal = profile(OPS, runtime="litert", journal=tmp_path / "j.jsonl", start_worker=Dying)
    assert len(journal.failures) == 1
    assert "SIGABRT" in next(iter(journal.failures.values()))
    assert [len(blocks) for blocks in journal.blocks.values()] == [5, 5, 5]
    assert Dying.started == 3


def test_an_operation_that_cannot_be_built_is_failed_with_the_reason(tmp_path):
    bad = OpConfig(
        "depthwise_conv2d",
        height=8,
        width=8,
        in_channels=4,
        out_channels=4,
        kernel_size=(3, 3),
        dilation=(2, 2),
        strides=(2, 2),
    )
    journal = profile([OPS[0], bad], runtime="litert", journal=tmp_path / "j.jsonl", start_worker=FakeWorker)
    assert "strided and dilated" in journal.failures[bad.key]
    assert len(journal.blocks[OPS[0].key]) == 5


def test_a_builder_that_breaks_costs_that_operation_alone(tmp_path, monkeypatch, caplog):
    real = LiteRT.build

    def build(self, network):
        return 1 // 0 if network.key == OPS[1].key else real(self, network)

    monkeypatch.setattr(LiteRT, "build", build)
    journal = profile(OPS, runtime="litert", journal=tmp_path / "j.jsonl", start_worker=FakeWorker)
    assert set(journal.failures) == {OPS[1].key}
    assert "litert cannot build 'dense 1x1 bias float32 2->8': ZeroDivisionError" in journal.failures[OPS[1].key]
    assert "ZeroDivisionError" in caplog.text
    assert [len(blocks) for blocks in journal.blocks.values()] == [5, 5, 5]


def test_a_journal_of_another_environment_is_refused_by_name(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal.resume(path, IDENTITY, Protocol()).close()
    with pytest.raises(EnvironmentMismatchError, match=r"threads: 1 there, 2 here"):
        Journal.resume(path, {**IDENTITY, "threads": 2}, Protocol())
    Journal.resume(path, {**IDENTITY, "threads": 2}, Protocol(), force=True).close()
    Journal.resume(path, IDENTITY, Protocol()).close()


def test_wrong_files_are_named_with_the_line(tmp_path):
    path = tmp_path / "j.jsonl"
    with pytest.raises(FileFormatError, match="Cannot read a journal"):
        Journal.load(path)
    path.write_text(
        '{"key": "environment", "round": -1, "status": "header", "identity": {"a": 1}, "protocol": {}}\nnonsense\n'
    )
    with pytest.raises(FileFormatError, match="line 2"):
        Journal.load(path)
    path.write_text("\n")
    with pytest.raises(FileFormatError):
        Journal.load(path)


@pytest.mark.parametrize("content", [b'{"name": "other"}', b"\xff\xfe{\x00", b"\x1f\x8b\x08\n"])
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="notes.json is not a journal"):
        Journal.resume(path, {"cpu": "x"}, Protocol())
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["", '{"key": "env', '{"key": "environment", "round": -1, "sta'])
def test_a_header_that_was_cut_off_is_begun_anew(tmp_path, content):
    path = tmp_path / "j.jsonl"
    path.write_text(content)
    Journal.resume(path, {"cpu": "x"}, Protocol()).close()
    assert Journal.load(path).identity == {"cpu": "x"}


def test_tasks_survive_the_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    network = Network(((OPS[0], (-1,)), (OPS[0].with_channels(8, 2), (0,))), "pair")
    profile([Task(network, "network"), OPS[1]], runtime="litert", journal=path, start_worker=FakeWorker)
    journal = Journal.load(path)
    assert journal.tasks[Task(network, "network").key].network == network
    assert {task.role for task in journal.tasks.values()} == {"op", "network"}
    assert journal.statistic(OPS[1].key).latency_ms == 0.5


def test_a_run_that_goes_on_in_more_rounds_says_so(tmp_path):
    path = tmp_path / "j.jsonl"
    profile(OPS, runtime="litert", journal=path, start_worker=FakeWorker, protocol=Protocol(rounds=2))
    journal = profile(OPS, runtime="litert", journal=path, start_worker=FakeWorker, protocol=Protocol(rounds=5))
    assert journal.protocol["rounds"] == Journal.load(path).protocol["rounds"] == 5
    assert len(keys_and_rounds(path)) == len(set(keys_and_rounds(path))) == 5 * len(OPS)


class SteppingWorker:
    """Large models take the same each time; small ones are slow in their first blocks. Dies after some."""

    hello = {"package": "fake", "version": "1", "worker": 1}

    def __init__(self, counts, stop_after=100, slow=3):
        self.counts, self.stop_after, self.slow = counts, stop_after, slow

    def block(self, path, settings):
        if sum(self.counts.values()) == self.stop_after:
            raise KeyboardInterrupt
        small = Path(path).stat().st_size < 1 << 16
        self.counts[small] = self.counts.get(small, 0) + 1
        ms = 0.5 + 0.1 * self.counts[small] if small and self.counts[small] <= self.slow else 0.5
        summary = {"min": ms, "deciles": [ms] * 9, "median": ms}
        return {"id": 0, "status": "ok", "count": 3, "repeats": 1, "wall_ms": summary, "cpu_ms": None, "cold_ms": None}

    def close(self):
        pass


STEADY = OpConfig("dense", in_channels=512, out_channels=64)
STEPPING = OpConfig("dense", in_channels=64, out_channels=64)


def test_what_is_unstable_is_measured_in_extra_rounds_until_rounds_agree(tmp_path):
    path, counts, seen = tmp_path / "j.jsonl", {}, []
    journal = profile(
        [STEADY, STEPPING],
        runtime="litert",
        journal=path,
        start_worker=lambda: SteppingWorker(counts),
        on_progress=lambda progress: seen.append((progress.done, progress.total)),
    )
    assert [block["round"] for block in journal.blocks[STEADY.key]] == list(range(5))
    extra = len(journal.blocks[STEPPING.key])
    assert [block["round"] for block in journal.blocks[STEPPING.key]] == list(range(extra))
    assert 5 < extra < 15
    assert not journal.statistic(STEPPING.key).unstable
    assert journal.statistic(STEPPING.key).latency_ms == 0.5
    assert seen == [(i + 1, 10) for i in range(10)] + [(i + 1, i + 1) for i in range(10, 5 + extra)]
    assert Journal.load(path).waiting(journal.tasks.values(), Protocol()) == []


def test_what_was_stable_for_two_extra_rounds_is_not_looked_at_again(tmp_path, monkeypatch):
    """With every block a little more is known of the machine's speed: among thousands, some would turn each time."""
    stepping, others = {"flipped": False}, [STEADY, STEPPING]
    run = partial(profile, runtime="litert", journal=tmp_path / "j.jsonl", protocol=Protocol(extra_rounds=4))
    journal = run(others, start_worker=lambda: SteppingWorker({}))
    assert len(journal.blocks[STEADY.key]) == 5
    known = Journal.statistic

    def turned(self, key):
        found = known(self, key)
        return dataclasses.replace(found, unstable=True) if stepping["flipped"] and key != STEPPING.key else found

    monkeypatch.setattr(Journal, "statistic", turned)
    stepping["flipped"] = True
    again = run(others, start_worker=lambda: SteppingWorker({}))
    assert len(again.blocks[STEADY.key]) == 5
    third = OpConfig("dense", in_channels=24, out_channels=24)  # and one that was not there before is
    assert len(run([*others, third], start_worker=lambda: SteppingWorker({})).blocks[third.key]) == 9


def test_what_stays_unstable_is_given_up_and_a_killed_run_goes_on_with_it(tmp_path):
    path, counts = tmp_path / "j.jsonl", {}
    run = partial(profile, [STEADY, STEPPING], runtime="litert", journal=path, protocol=Protocol(extra_rounds=2))
    with pytest.raises(KeyboardInterrupt):
        run(start_worker=lambda: SteppingWorker(counts, stop_after=11, slow=4))
    assert len(Journal.load(path).blocks[STEPPING.key]) == 6
    journal = run(start_worker=lambda: SteppingWorker(counts, slow=4))
    assert [block["round"] for block in journal.blocks[STEPPING.key]] == list(range(7))
    assert journal.statistic(STEPPING.key).unstable

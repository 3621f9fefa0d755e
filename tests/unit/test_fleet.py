"""A plan split among boards, what they answer, how they compare; and a run of it on a scheduler that is none."""

import json
from collections import Counter

import pytest

from latency_lab.errors import DeviceLostError, EnvironmentMismatchError, MissingRuntimeError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import Journal, Protocol, Task, boards, device, profile
from latency_lab.profiling.answers import plain
from latency_lab.profiling.fleet import Fleet, _Run
from latency_lab.report import boards_line

OPS = [OpConfig("dense", in_channels=c, out_channels=8) for c in range(1, 11)]
IDENTITY = {"cpu": "A76", "cores": 4, "quota_cores": None}
HELLO = {"package": "fake", "version": "1", "worker": 3, "resolution_s": 1e-9}


def summary(ms):
    return {"min": ms, "deciles": [ms] * 9, "median": ms}


def block(ms=0.5, **more):
    return {"id": 0, "status": "ok", "count": 3, "repeats": 1, "wall_ms": summary(ms), "cpu_ms": None, **more}


def answer(board="a", blocks=(), common=(), **more):
    found = {"board": board, "hello": HELLO, "identity": IDENTITY, "conditions": {"load": 0.5}}
    return json.dumps({**found, "blocks": list(blocks), "common": list(common), **more}).encode()


# ---- splitting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ops", "rounds", "count"), [(1, 1, 4), (10, 5, 4), (100, 5, 3), (1000, 2, 4), (7, 3, 0)])
def test_chunks_hold_every_block_once_in_order_of_rounds_and_none_is_of_two(ops, rounds, count):
    tasks = [Task(Network.of(OpConfig("dense", in_channels=c + 1, out_channels=8))) for c in range(ops)]
    waiting = [(r, task) for r in range(rounds) for task in tasks]
    found = boards.chunks(waiting, count)
    assert [(r, task) for r, chunk in found for task in chunk] == waiting
    assert max(len(chunk) for _, chunk in found) <= boards.CHUNK_BLOCKS


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_common_operations_are_small_to_send(precision):
    from latency_lab import runtimes

    sizes = [len(runtimes.get("litert").build(task.network)) for task in boards.common_tasks(precision)]
    assert len(sizes) == 4
    assert sum(sizes) < 300_000


# ---- answers --------------------------------------------------------------------------------------------------------


def test_an_answer_is_its_checked_parts():
    found = boards.answer_of(answer("pi-1", [block()], [block(), block()]), 1, 2)
    assert (found.board, found.conditions) == ("pi-1", {"load": 0.5})
    assert found.identity == {**IDENTITY, "package": "fake", "version": "1", "worker": 3}
    assert (len(found.blocks), len(found.common)) == (1, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "fine"},
        block(0.0),
        block(-1.0),
        block(count=0),
        block(wall_ms=None),
        block(cpu_ms={"min": 1.0, "median": 1.0}),
        "no block",
        None,
    ],
)
def test_a_block_that_is_none_has_failed_and_the_others_are_kept(wrong):
    first, second = boards.answer_of(answer(blocks=[block(), wrong]), 2).blocks
    assert first["status"] == "ok"
    assert second["status"] == "failed"
    assert "is no block" in second["reason"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (1 << 21),
        "text",
        None,
        answer(blocks=[block()]),
        answer(blocks=[block()] * 2, common=[block()]),
        answer("", blocks=[block()] * 2),
        answer(7, blocks=[block()] * 2),
        answer(blocks=[block()] * 2, hello=None),
        answer(blocks=[block()] * 2, hello={"package": "fake"}),
        answer(blocks=[block()] * 2, identity={"cores": "4"}),
        answer(blocks=[block()] * 2, conditions=None),
        answer(blocks=[block(float("nan"))] * 2),
        answer(blocks=[block(float("inf"))] * 2),
    ],
)
def test_an_answer_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        boards.answer_of(text, 2, 4)


def test_names_and_reasons_are_plain_and_short():
    found = boards.answer_of(json.dumps({"board": "\x1b]0;x\x07" + "y" * 999, "error": "E", "reason": "\n"}).encode())
    assert len(found.board) == boards.NAME_LIMIT
    assert found.board == plain(found.board)
    assert found.reason == " "


# ---- comparing ------------------------------------------------------------------------------------------------------


def common(key, board, ms, round_=0):
    return {"key": key, "round": round_, "status": "common", "board": board, **block(ms)}


def test_ratios_are_to_the_median_of_the_boards_over_the_common_operations():
    lines = [common(key, board, ms * scale) for key, ms in (("x", 1.0), ("y", 8.0), ("z", 0.1))
             for board, scale in (("a", 1.0), ("b", 1.02), ("c", 1.3), ("d", 0.98))]  # fmt: skip
    assert boards.ratios(lines) == pytest.approx({"a": 0.990, "b": 1.010, "c": 1.287, "d": 0.970}, abs=1e-3)


def test_a_slow_round_makes_no_board_slow():
    lines = [common("x", board, 1.0, r) for board in "abc" for r in range(3)] + [common("x", "c", 3.0, 3)]
    assert boards.ratios(lines) == {"a": 1.0, "b": 1.0, "c": 1.0}


def test_a_board_beyond_ten_percent_is_named_and_others_are_not():
    found = {name: {"blocks": 5, "ratio": 1.0 + 0.1 * i, "off": i > 1} for i, name in enumerate("abc")}
    assert len(boards.warnings_of(found)) == 1
    assert boards.warnings_of(found)[0].startswith("c takes 1.20 of the fleet's median")
    assert boards_line({"a": {"blocks": 2}}) == "boards: a 2 blocks"
    assert boards_line({}) == ""


def test_most_boards_say_what_is_usual():
    who = {name: {"cpu": "A76", "version": "2"} for name in "abc"}
    assert boards.odd_ones(who) == []
    assert boards.odd_ones({"z": {"cpu": "A76", "version": "1", "device": "x"}, **who}) == [
        "z: version is '1', that of the others '2'",
        "z: device is 'x', that of the others None",
    ]


# ---- addresses ------------------------------------------------------------------------------------------------------


def test_addresses_of_fleets():
    assert device("fleet://host:8786") == Fleet("fleet://host:8786")
    found = device("fleet://[::1]:8786/", "py", "bench", "pixel6")
    assert found == Fleet("fleet://[::1]:8786/", "pixel6", "py", "bench")
    for wrong in ("fleet://host", "fleet://", "fleet://a b:1", "fleet://host:1/x", "fleet://-x:1"):
        with pytest.raises(UsageError, match="fleet://host:port"):
            device(wrong)
    with pytest.raises(UsageError, match="resource is of a fleet"):
        device("local", resource="pixel6")
    with pytest.raises(UsageError, match="vela estimates"):
        profile(OPS, runtime="vela", journal="j.jsonl", on="fleet://127.0.0.1:1")


def test_a_scheduler_that_is_not_there_is_a_lost_device(monkeypatch):
    monkeypatch.setattr("latency_lab.profiling.fleet.CONNECT_S", 0.1)
    with pytest.raises(DeviceLostError, match=r"fleet://127.0.0.1:1 cannot be reached.*See that a dask scheduler"):
        profile(OPS, runtime="litert", journal="j.jsonl", on="fleet://127.0.0.1:1")


# ---- a run ----------------------------------------------------------------------------------------------------------


class FakeFuture:
    def __init__(self, answer):
        self.answer = answer
        self.status = "error" if isinstance(answer, Exception) else "finished"

    def done(self):
        return True

    def exception(self):
        return self.answer

    def result(self, timeout=None):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeClient:
    """A scheduler whose boards take turns and answer at once.

    Args:
        names: of the boards.
        answers: takes (board, job) and gives bytes, an exception, or None for what a board answers by itself.
    """

    def __init__(self, names="abc", answers=lambda board, job: None, resource=1.0):
        self.boards = {f"tcp://{name}": name for name in names}
        self.answers, self.resource = answers, resource
        self.seen, self.retired, self.ended, self.turn = set(), [], [], 0

    def scheduler_info(self, n_workers):
        worker = {"resources": {"board": self.resource}}
        return {"workers": {address: {**worker, "name": name} for address, name in self.boards.items()}}

    def submit(self, function, job, resources, workers, pure):
        assert resources == {"board": 1}
        self.turn += 1
        board = self.boards[workers[0]] if workers else list(self.boards.values())[self.turn % len(self.boards)]
        given = self.answers(board, job)
        if given is not None:
            return FakeFuture(given)
        again = not job["blocks"] or (board, job["round"]) in self.seen
        if job["blocks"]:
            self.seen.add((board, job["round"]))
        common = [] if again else [block()] * len(job["common"])
        return FakeFuture(answer(board, [block() for _ in job["blocks"]], common))

    def retire_workers(self, addresses):
        self.retired += [self.boards.pop(address) for address in addresses]

    def cancel(self, futures):
        pass

    def run(self, function, run, workers):
        self.ended += workers

    def close(self, timeout):
        pass


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Profiles OPS on a fake client; the journal is kept from one run to the next."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(_Run, "_wait", lambda self, futures, seconds, every=False: futures if every else futures[:1])

    def profiled(client, rounds=2, ops=OPS):
        monkeypatch.setattr("distributed.Client", lambda address, timeout, set_as_default: client)
        return profile(
            ops, runtime="litert", journal=tmp_path / "j.jsonl", protocol=Protocol(rounds=rounds), on="fleet://host:1"
        )

    profiled.path = tmp_path / "j.jsonl"
    return profiled


def blocks(journal):
    return Counter((key, one["round"]) for key, found in journal.blocks.items() for one in found)


def every(rounds=2):
    return Counter((op.key, r) for op in OPS for r in range(rounds))


def test_every_block_is_measured_once_and_says_by_whom(run):
    client = FakeClient()
    journal = run(client)
    assert blocks(journal) == every()
    assert {one["board"] for found in journal.blocks.values() for one in found} == set("abc")
    assert Counter((line["board"], line["round"]) for line in journal.common) == {
        (board, r): 4 for board in "abc" for r in (0, 1)
    }
    assert journal.identity == {**IDENTITY, "package": "fake", "version": "1", "worker": 3, "runtime": "litert",
                                "threads": 1, "precision": "float32"}  # fmt: skip
    assert sorted((note["board"], note["round"]) for note in journal.notes) == [(b, r) for b in "abc" for r in (0, 1)]
    found = boards.boards_of(Journal.load(run.path))
    assert sum(board["blocks"] for board in found.values()) == 20
    assert all(board["ratio"] == 1.0 and not board["off"] for board in found.values())
    assert sorted(client.ended) == ["tcp://a", "tcp://b", "tcp://c"]


def test_a_board_says_nothing_in_the_journals_own_words(run):
    def forged(board, job):
        found = [block(key="x", round=9, board="y", task={}) for _ in job["blocks"]]
        return answer(board, found) if found else None

    journal = run(FakeClient(answers=forged))
    assert blocks(journal) == every()
    assert {one["board"] for found in journal.blocks.values() for one in found} == set("abc")


def test_a_run_that_was_stopped_goes_on(run):
    def stops(board, job):
        if client.turn > 12:
            raise KeyboardInterrupt

    client = FakeClient(answers=stops)
    with pytest.raises(KeyboardInterrupt):
        run(client)
    assert client.ended
    before = run.path.read_text()
    assert 0 < sum(blocks(Journal.load(run.path)).values()) < 20
    assert blocks(run(FakeClient())) == every()
    assert run.path.read_text().startswith(before)


def test_an_operation_that_takes_boards_with_it_costs_itself_alone(run):
    from distributed import KilledWorker

    from latency_lab import runtimes

    deadly = runtimes.get("litert").build(Network.of(OPS[3]))

    def kills(board, job):
        return KilledWorker("t", None, 3) if deadly in [model for model, _ in job["blocks"]] else None

    journal = run(FakeClient(answers=kills))
    assert journal.failures == {OPS[3].key: "every board that was given it was lost"}
    assert blocks(journal) == Counter({key: n for key, n in every().items() if key[0] != OPS[3].key})


def test_a_board_whose_device_is_lost_is_retired_and_its_blocks_go_to_others(run, caplog):
    def lost(board, job):
        gone = board == "b" and job["blocks"]
        return json.dumps({"board": "b", "error": "DeviceLostError", "reason": "no phone"}).encode() if gone else None

    client = FakeClient(answers=lost)
    journal = run(client)
    assert client.retired == ["b"]
    assert blocks(journal) == every()
    assert "b: no phone. It is left out until its dask worker is started again." in caplog.text


def test_boards_of_other_environments_are_refused_by_name(run):
    def other(board, job):
        return answer(board, identity={**IDENTITY, "cpu": "A72"}) if board == "b" else None

    with pytest.raises(EnvironmentMismatchError, match=r"\* b: cpu is 'A72', that of the others 'A76'"):
        run(FakeClient(answers=other))
    assert not run.path.exists()


def test_a_board_that_joins_later_is_held_to_the_same(run):
    def late(board, job):
        return answer(board, [block() for _ in job["blocks"]], identity={}) if job["round"] else None

    with pytest.raises(UsageError, match="a board's answer is none: cores is None"):
        run(FakeClient(answers=late))

    def joined(board, job):
        found = [block() for _ in job["blocks"]]
        return answer("new", found, identity={**IDENTITY, "cpu": "A72"}) if found else None

    before = run.path.read_text()
    with pytest.raises(EnvironmentMismatchError, match="new: cpu is 'A72'"):
        run(FakeClient(answers=joined))
    assert run.path.read_text() == before


def test_what_a_board_cannot_do_is_said_with_its_name(run):
    def refuses(board, job):
        return json.dumps({"board": "b", "error": "MissingRuntimeError", "reason": "pip install it"}).encode()

    with pytest.raises(MissingRuntimeError, match="fleet://host:1: b: pip install it"):
        run(FakeClient(answers=refuses))
    with pytest.raises(UsageError, match="a board cannot measure: ModuleNotFoundError: No module named 'latency_lab'"):
        run(FakeClient(answers=lambda board, job: ModuleNotFoundError("No module named 'latency_lab'")))
    with pytest.raises(UsageError, match="fleet://host:1 has no board.*dask worker host:1 .*board=1"):
        run(FakeClient(names=""))
    with pytest.raises(UsageError, match="a has board=2"):
        run(FakeClient(resource=2.0))


def test_a_board_that_is_off_is_named(run, caplog):
    def slow(board, job):
        if board == "c" and job["blocks"]:
            return answer(board, [block() for _ in job["blocks"]], [block(0.7) for _ in job["common"]])
        return None

    journal = run(FakeClient(answers=slow))
    assert boards.boards_of(journal)["c"]["ratio"] == pytest.approx(1.4)
    assert "c takes 1.40 of the fleet's median" in caplog.text

"""Four boards behind a dask scheduler, as processes of this machine; their runtime sleeps."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import latency_lab
from latency_lab import runtimes
from latency_lab.cli.main import main
from latency_lab.errors import DeviceLostError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import Journal, Protocol, device, profile

pytest.importorskip("distributed")
SCRIPTS = Path(__file__).parents[2] / "scripts"
OPS = [OpConfig("dense", in_channels=c, out_channels=8) for c in range(1, 61)]
SHORT = Protocol(rounds=3, extra_rounds=0, processes=2, warm_up=1)


@pytest.fixture(scope="module")
def local_fleet():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import local_fleet as found
    finally:
        sys.path.remove(str(SCRIPTS))
    yield found
    del sys.modules["local_fleet"]


@pytest.fixture
def fleet(local_fleet, tmp_path):
    folder = tmp_path / "fleet"
    folder.mkdir()
    with local_fleet.LocalFleet(folder, ["pi-1", "pi-2", "pi-3", "pi-4"]) as found:
        yield found


def lines_of(path):
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def test_a_board_that_is_killed_loses_no_operation_and_none_is_counted_twice(fleet, tmp_path):
    path = tmp_path / "j.jsonl"

    def kill():
        while not any(line.get("board") == "pi-2" for line in lines_of(path)):
            time.sleep(0.02)
        fleet.workers["pi-2"].kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    journal = profile(OPS, runtime="litert", journal=path, protocol=SHORT, on=device(fleet.address, fleet.python))
    killer.join(timeout=0)
    assert not killer.is_alive()
    assert fleet.workers["pi-2"].poll() == -9
    assert journal.failures == {}
    measured = Counter((line["key"], line["round"]) for line in lines_of(path) if line["status"] == "ok")
    assert measured == Counter((op.key, r) for op in OPS for r in range(3))
    found = latency_lab.fit_profile(journal).environment["boards"]
    assert set(found) == {"pi-1", "pi-2", "pi-3", "pi-4"}
    assert sum(board["blocks"] for board in found.values()) == 180
    assert found["pi-2"]["blocks"] < 90


def test_a_scheduler_that_is_killed_ends_the_run_and_leaves_the_journal(local_fleet, tmp_path, monkeypatch):
    monkeypatch.setattr("latency_lab.profiling.fleet.CONNECT_S", 1)
    path = tmp_path / "j.jsonl"
    with local_fleet.LocalFleet(tmp_path, ["pi-1", "pi-2"]) as fleet:

        def kill(progress):
            if progress.done and fleet.scheduler.poll() is None:
                fleet.scheduler.kill()

        where = device(fleet.address, fleet.python)
        with pytest.raises(DeviceLostError, match=r"cannot be reached any more\. What was measured is in the journal"):
            profile(OPS, runtime="litert", journal=path, protocol=SHORT, on=where, on_progress=kill)
        assert 0 < sum(map(len, Journal.load(path).blocks.values())) < 180
        with pytest.raises(DeviceLostError, match="cannot be reached: "):
            profile(OPS, runtime="litert", journal=path, protocol=SHORT, on=where)


def test_the_command_line_goes_on_after_a_kill_and_other_verbs_say_what_to_do(fleet, tmp_path, capsys):
    model = tmp_path / "m.tflite"
    model.write_bytes(runtimes.get("litert").build(Network.of(OpConfig("dense", in_channels=8, out_channels=8))))
    where = ["--on", fleet.address]
    out, journal = tmp_path / "p.json", tmp_path / "p.journal.jsonl"
    words = ["profile", *where, "--python", fleet.python, "--model", str(model), "-o", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "latency_lab.cli.main", *words], cwd=SCRIPTS.parent,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while process.poll() is None and sum(line["status"] == "ok" for line in lines_of(journal)) < 3:
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = lines_of(journal)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "boards: pi-1 " in said
    assert lines_of(journal)[: len(before)] == before
    measured = Counter((line["key"], line["round"]) for line in lines_of(journal) if line["status"] == "ok")
    assert set(measured.values()) == {1}
    assert len(measured) >= 5 * len(Journal.load(journal).blocks)
    assert main(["show", str(out)]) == 0
    assert "pi-4 " in capsys.readouterr().out
    for verb in (["measure", str(model)], ["doctor"], ["compare", str(model), str(model)]):
        assert main([*verb, *where]) == 2
        assert "is a fleet (4 boards: pi-1, pi-2, pi-3, pi-4): it is for profile alone" in capsys.readouterr().err

"""A device by ssh: an OpenSSH server of the test's own on the loopback address, with its own keys."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import latency_lab
from latency_lab import runtimes
from latency_lab.cli.main import main
from latency_lab.errors import DeviceLostError, MissingRuntimeError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import Journal, Protocol, WorkerDiedError, device, environment_of, remote
from scripts._sshd import SSHD, Server

CONV = OpConfig("conv2d", height=8, width=8, in_channels=8, out_channels=16, kernel_size=(3, 3), activation="relu")
OPS = [OpConfig("dense", in_channels=c, out_channels=8) for c in range(1, 9)]
SHORT = Protocol(rounds=2, extra_rounds=0, block_ms=1.0)

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="there is no sshd: apt-get install openssh-server"
)


@pytest.fixture
def server(tmp_path, monkeypatch):
    board = tmp_path / "board"
    board.mkdir()
    found = Server(tmp_path / "ssh", board)
    monkeypatch.setenv("LATENCY_LAB_SSH", found.client)
    monkeypatch.setattr(remote, "BACKOFF_S", (0.05, 0.2, 0.4))
    yield found
    found.stop()


def board(**options):
    return device("ssh://board", **{"python": sys.executable, **options})


def left(server):
    """What is on the board, once nothing is added or removed any more."""
    for _ in range(200):
        if not any(server.board.iterdir()):
            break
        time.sleep(0.02)
    return [path.name for path in server.board.iterdir()]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "conv.tflite"
    path.write_bytes(runtimes.get("litert").build(Network.of(CONV)))
    return str(path)


def test_a_worker_answers_there_and_its_folder_is_removed(server, model):
    worker = board().start("litert", 1)
    try:
        assert worker.hello["runtime"] == "litert"
        (folder,) = server.board.iterdir()
        assert (folder.stat().st_mode & 0o777, [path.name for path in folder.iterdir()]) == (0o700, ["worker.py"])
        block = worker.block(model, {"cold": 1})
        assert block["status"] == "ok"
        assert block["wall_ms"]["min"] > 0 and block["cold_ms"]["min"] > 0
        assert worker.block(__file__, {})["status"] == "failed"
        who, now = environment_of(worker)
        assert who["cores"] == len(os.sched_getaffinity(0))
        assert now["load"] >= 0
    finally:
        worker.close()
    assert left(server) == []


def test_a_connection_that_is_cut_in_the_middle_is_made_again_and_nothing_is_measured_twice(server, tmp_path):
    cut = threading.Event()

    def cut_once(progress):
        if progress.done == 5 and not cut.is_set():
            cut.set()
            server.cut()

    path = tmp_path / "j.jsonl"
    journal = latency_lab.profile(OPS, runtime="litert", journal=path, protocol=SHORT, on=board(), on_progress=cut_once)
    assert cut.is_set()
    assert journal.failures == {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [(line["key"], line["round"]) for line in lines if line["status"] == "ok"]
    assert len(found) == len(set(found)) == 2 * len(OPS)
    assert left(server) == []


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_what_a_board_runs_on_that_did_not_notice_the_loss_is_ended_when_it_answers_again(server, model):
    worker = board().start("litert", 1)
    old, shell = worker.session.folder, worker.session._pid
    connection = parent_of(shell)
    os.kill(connection, signal.SIGSTOP)  # the board hears nothing of what follows
    try:
        worker.session.pipe._process.kill()
        assert worker.block(model, {})["status"] == "ok"
        assert worker.session.folder != old
        for _ in range(200):
            if not Path(old).exists() and not Path(f"/proc/{shell}/fd/0").exists():
                break
            time.sleep(0.02)
        assert [path.name for path in server.board.iterdir()] == [Path(worker.session.folder).name]
        assert not Path(f"/proc/{shell}/fd/0").exists()  # ended, if not yet waited for
    finally:
        worker.close()
        os.kill(connection, signal.SIGCONT)
    assert left(server) == []


def test_a_device_that_stays_away_ends_with_exit_code_3_and_the_journal_goes_on(
    server, model, tmp_path, monkeypatch, capsys
):
    command = [
        "profile", "--runtime", "litert", "--model", model, "--on", "ssh://board", "--python", sys.executable,
        "-o", str(tmp_path / "p.json"),
    ]  # fmt: skip
    path = tmp_path / "p.journal.jsonl"
    real = Journal.append
    count = 0

    def append(self, line, task=None):
        nonlocal count
        real(self, line, task)
        count += line["status"] == "ok"
        if count == 2:
            server.stop()

    monkeypatch.setattr(Journal, "append", append)
    assert main(command) == 3
    said = capsys.readouterr().err
    assert "ssh://board cannot be reached any more" in said
    assert "go on with: latency-lab profile --runtime litert" in said
    before = Journal.load(path)
    assert (before.samples > 0, before.failures) == (True, {})
    server.start()
    count = 10
    journal = latency_lab.profile(
        before.tasks.values(), runtime="litert", journal=path, on=board(), protocol=Protocol(rounds=5, extra_rounds=0)
    )
    assert all(len(blocks) == 5 for blocks in journal.blocks.values())
    assert left(server) == []


def test_a_model_with_which_the_connection_is_lost_twice_costs_one_block(server, model, monkeypatch):
    worker = board().start("litert", 1)
    ask = worker.measure

    def lose(path, settings):
        server.cut()
        return ask(path, settings)

    monkeypatch.setattr(worker, "measure", lose)
    with pytest.raises(WorkerDiedError, match="lost twice"):
        worker.block(model, {})
    worker.close()


def test_what_is_missing_on_the_board_is_named_with_what_to_do(server, tmp_path, model, capsys):
    with pytest.raises(UsageError, match="/no/such/python.*--python"):
        board(python="/no/such/python").start("litert", 1)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # -S: without the packages of the environment
    bare.chmod(0o755)
    with pytest.raises(MissingRuntimeError, match="Run there: .*bare -m pip install numpy ai-edge-litert"):
        board(python=str(bare)).start("litert", 1)
    assert main(["doctor", "--on", "ssh://board", "--python", str(bare)]) == 1
    assert "litert: does not work" in capsys.readouterr().out
    assert main(["measure", model, "--on", "ssh://nobody@board", "--python", sys.executable]) == 3
    said = capsys.readouterr().err
    assert "Permission denied" in said
    assert "without a password" in said


def test_an_unknown_host_key_is_refused(server):
    (server.folder / "known_hosts").write_text("")
    with pytest.raises(DeviceLostError, match="Host key verification failed"):
        board().start("litert", 1)


def test_a_worker_that_hangs_is_ended_there(server, model, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(remote, "END_TIMEOUT_S", 0.2)
    hello = json.dumps({"package": "x", "version": "1"})
    hanging = tmp_path / "hanging"
    hanging.write_text(f"#!/bin/sh\necho '{hello}'\nexec sleep 600\n")
    hanging.chmod(0o755)
    worker = board(python=str(hanging)).start("litert", 1)
    with pytest.raises(WorkerDiedError, match="no answer in 1 s"):
        worker.block(model, {})
    assert left(server) == []


def test_measure_and_doctor_ask_the_board(server, model, capsys):
    there = ["--on", "ssh://board", "--python", sys.executable]
    assert main(["measure", model, "--json", *there]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["environment"]["package"] == "ai-edge-litert"
    assert found["latency_ms"] > 0
    report = latency_lab.doctor(on=dataclasses.replace(board(), runtimes=("litert",)))
    (check,) = report.runtimes
    assert check.works
    assert check.detail.startswith("ai-edge-litert ")
    assert report.trusted is report.steady
    assert left(server) == []


@pytest.mark.full
def test_a_board_with_tflite_runtime_alone_is_killed_and_cut_in_the_middle(
    server, tmp_path, model, monkeypatch, capsys
):
    if sys.version_info[:2] not in {(3, 9), (3, 10), (3, 11)}:
        pytest.skip("tflite-runtime 2.14 has wheels for Python 3.9 to 3.11")
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    packages = ("tflite-runtime==2.14.0", "numpy<2")
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-input", *packages]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
    there = ["--on", "ssh://board", "--python", str(folder / "bin" / "python")]
    main(["doctor", "--json", *there])
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["runtimes"]}
    assert checks["litert"]["detail"].startswith("tflite-runtime 2.14.0")
    assert "pip install numpy onnxruntime" in checks["onnxruntime"]["detail"]
    events = iter((None, None, server.stop, None, server.cut))
    real = Journal.append

    def append(self, line, task=None):
        real(self, line, task)
        if line["status"] == "ok" and (event := next(events, None)):
            event()

    monkeypatch.setattr(Journal, "append", append)
    command = ["profile", "--model", model, "-o", str(tmp_path / "p.json"), *there]
    assert main(command) == 3  # the server was killed after three blocks
    server.start()
    assert main(command) == 0  # and its sessions after two more: connected again
    assert next(events, "all") == "all"
    lines = [json.loads(line) for line in (tmp_path / "p.journal.jsonl").read_text().splitlines()]
    found = [(line["key"], line["round"]) for line in lines if line["status"] == "ok"]
    assert len(found) == len(set(found)) >= 5 * len({key for key, _ in found})
    assert not [line for line in lines if line["status"] == "failed"]
    assert json.loads((tmp_path / "p.json").read_text())["environment"]["package"] == "tflite-runtime"
    assert left(server) == []

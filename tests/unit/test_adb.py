"""Devices by adb: a stand-in `adb` that runs a local shell and copies files, and a stand-in `benchmark_model`."""

import json
import os
import signal
import sys

import pytest

import latency_lab
from latency_lab import runtimes
from latency_lab.cli.main import main
from latency_lab.errors import DeviceLostError, UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiling import Protocol, device, doctor, environment_of, remote
from latency_lab.profiling.adb import described, parse

ADB = """#!/bin/sh
test "$1 $2" = "-s phone-1" || { echo "adb: device '$2' not found" >&2; exit 1; }
shift 2
echo "$1" >> @/calls
test -e @/unplugged && { echo "adb: device offline" >&2; exit 1; }
case $1 in
  shell) shift; TMPDIR=@/phone exec sh -c "$*" ;;
  push) cp "$2" "$3" && echo "$2: 1 file pushed, 0 skipped." ;;
esac
"""

BENCHMARK = """#!/bin/sh
echo "$*" >> @/flags
graph=${1#--graph=}
grep -q TFL3 "$graph" || { echo "ERROR: Model provided has model identifier 'nope', should be 'TFL3'"; exit 1; }
echo "INFO: Loaded model $graph"
echo "INFO: Running benchmark for at least 2 iterations and at least 0 seconds but terminate if exceeding 60 seconds."
echo "INFO: count=2 first=900 curr=700 min=700 max=900 avg=800 std=100"
echo
echo "INFO: Running benchmark for at least 3 iterations and at least 0.004 seconds"
echo "INFO: count=6 first=640 curr=652 min=640 max=712 avg=661.5 std=24 p5=640 median=655 p95=712"
echo
echo "INFO: Inference timings in us: Init: 855, First inference: 900, Warmup (avg): 800, Inference (avg): 661.5"
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    (tmp_path / "phone").mkdir()
    for name, text in {"adb": ADB, "benchmark_model": BENCHMARK}.items():
        (tmp_path / name).write_text(text.replace("@/", f"{tmp_path}/"))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("ADB", str(tmp_path / "adb"))
    monkeypatch.setattr(remote, "BACKOFF_S", (0.01,))
    return tmp_path


@pytest.fixture
def model(tmp_path):
    op = OpConfig("dense", in_channels=4, out_channels=8)
    path = tmp_path / "dense.tflite"
    path.write_bytes(runtimes.get("litert").build(Network.of(op)))
    return str(path)


def on_phone(phone):
    return device("adb://phone-1", benchmark_model=str(phone / "benchmark_model"))


def test_benchmark_model_is_pushed_told_the_threads_and_all_it_prints_is_kept(phone, model):
    worker = on_phone(phone).start("litert", 3)
    block = worker.block(model, {"block_ms": 4.0, "min_repeats": 3, "warm_up": 2, "kernels": False, "cold": 1})
    assert block["wall_ms"] == {"min": 0.64, "median": 0.655}
    assert (block["status"], block["count"], block["cold_ms"]) == ("ok", 6, None)
    assert block["printed_us"]["std"] == 24
    assert block["printed_us"]["avg"] == 661.5
    flags = (phone / "flags").read_text().split()
    assert {"--num_threads=3", "--num_runs=3", "--warmup_runs=2", "--min_secs=0.004"} <= set(flags)
    assert worker.hello["version"].startswith("sha256 ")
    who, now = environment_of(worker)
    assert who["cores"] >= 1 and now["load"] >= 0
    worker.close()
    assert list((phone / "phone").iterdir()) == []


def test_a_program_that_is_on_the_device_is_run_there(phone, model, monkeypatch):
    program = phone / "phone" / "benchmark model"
    (phone / "benchmark_model").rename(program)
    monkeypatch.setenv("HOME", str(program.parent))  # of the stand-in's shell
    worker = device("adb://phone-1", benchmark_model="~/benchmark model").start("litert", 1)
    assert worker.block(model, {})["status"] == "ok"
    assert (phone / "calls").read_text().split().count("push") == 1  # the model alone
    worker.close()
    with pytest.raises(UsageError, match="/no/such/program: No such file"):
        device("adb://phone-1", benchmark_model="/no/such/program").start("litert", 1)


def test_a_model_that_does_not_run_is_failed_with_what_was_printed(phone, tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"nope")
    worker = on_phone(phone).start("litert", 1)
    found = worker.block(str(bad), {})
    assert found["status"] == "failed"
    assert "should be 'TFL3'" in found["reason"]
    worker.close()


def test_profile_measure_and_doctor(phone, model, tmp_path, capsys):
    ops = [OpConfig("dense", in_channels=c, out_channels=8) for c in (1, 2)]
    journal = latency_lab.profile(
        ops, runtime="litert", journal=tmp_path / "j.jsonl", protocol=Protocol(rounds=2), on=on_phone(phone)
    )
    assert journal.failures == {}
    assert journal.statistic(ops[0].key).latency_ms == 0.64
    assert journal.identity["package"] == "benchmark_model"
    there = ["--on", "adb://phone-1", "--benchmark-model", str(phone / "benchmark_model")]
    assert main(["measure", model, "--json", *there]) == 0
    assert json.loads(capsys.readouterr().out)["latency_ms"] == 0.64
    (check,) = doctor(on=on_phone(phone)).runtimes
    assert (check.works, check.name) == (True, "litert")


def test_a_python_there_runs_the_worker(phone, model):
    worker = device("adb://phone-1", python=sys.executable).start("litert", 1)
    assert worker.block(model, {})["wall_ms"]["min"] > 0
    worker.close()
    assert list((phone / "phone").iterdir()) == []


def test_a_phone_that_is_not_there_or_goes_away(phone, model, capsys):
    with pytest.raises(DeviceLostError, match="device 'phone-2' not found.* shell true"):
        device("adb://phone-2", benchmark_model=str(phone / "benchmark_model")).start("litert", 1)
    worker = on_phone(phone).start("litert", 1)
    (phone / "unplugged").touch()
    with pytest.raises(DeviceLostError, match="any more: adb: device offline"):
        worker.block(model, {})
    worker.close()
    there = ["--on", "adb://phone-1", "--benchmark-model", str(phone / "benchmark_model")]
    assert main(["measure", model, *there]) == 3
    assert "go on with: latency-lab measure" in capsys.readouterr().err


def test_after_a_short_disconnect_the_program_is_pushed_again(phone, model):
    def unplug():
        os.kill(int(worker.session._pid), signal.SIGTERM)
        worker.session.pipe._process.wait()

    def run_unplugged(command, files=None):
        if "--graph" in command and not unplugged:
            unplugged.append(unplug())
        return run(command, files)

    worker = on_phone(phone).start("litert", 1)
    unplug()
    assert worker.block(model, {})["status"] == "ok"
    run, unplugged = worker.device.run, []
    worker.device.run = run_unplugged
    assert worker.block(model, {})["status"] == "ok"  # in the middle of a block, too
    assert unplugged
    worker.close()
    assert list((phone / "phone").iterdir()) == []


def test_what_benchmark_model_prints():
    warm_up = "count=1 curr=99"
    same = parse([warm_up, "INFO: count=3 curr=120(all same)"])
    assert (same["count"], same["wall_ms"]) == (3, {"min": 0.12, "median": 0.12})
    short = parse([warm_up, "count=900 first=4 curr=3 min=3 max=8 avg=3.6125 std=1"])
    assert short["wall_ms"]["min"] == pytest.approx(3.6125e-3)
    for lines in (
        [],
        [warm_up],
        [warm_up, "count=0"],
        [warm_up, "count=; rm -rf /"],
        [warm_up, "count=3 min=inf avg=nan"],
    ):
        with pytest.raises(ValueError, match="printed"):
            parse(lines)


def test_what_a_phone_says_of_itself():
    lines = ["machine=aarch64", "system=Linux", "model=Pixel 7", "chip=GS201", "cores=8", "governor=schedutil",
             "load=3.1", "heat=41000", "heat=83500", "heat="]  # fmt: skip
    found = described(lines)
    assert found["identity"]["cpu"] == "Pixel 7 GS201"
    assert (found["identity"]["cores"], found["identity"]["governor"]) == (8, "schedutil")
    assert (found["conditions"]["load"], found["conditions"]["temperature_c"]) == (3.1, 83.5)
    with pytest.raises(ValueError):
        described(["cores=many"])


@pytest.mark.parametrize(
    ("on", "options"),
    [
        ("adb://", {}),
        ("adb://-s", {}),
        ("adb://a;reboot", {}),
        ("ssh://", {}),
        ("ssh://-oProxyCommand=x", {}),
        ("ssh://a@b@c", {}),
        ("ssh://host:port", {}),
        ("ssh://host/$(x)", {}),
        ("telnet://host", {}),
        ("ssh://host", {"benchmark_model": "b"}),
        ("adb://phone-1", {"benchmark_model": "b", "python": "p"}),
    ],
)
def test_addresses_that_are_none(phone, on, options):
    with pytest.raises(UsageError):
        device(on, **options)


def test_what_only_estimates_is_not_started_elsewhere(phone):
    with pytest.raises(UsageError, match="vela estimates, on this machine"):
        device("adb://phone-1").start("vela", 1)

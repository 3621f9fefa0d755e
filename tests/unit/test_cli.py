"""The command line: exit codes, what goes to stdout and what to stderr, and what a person reads when it fails."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import latency_lab
from latency_lab.cli import inputs
from latency_lab.cli.main import VERBS, main, parser
from latency_lab.cli.progress import ProgressLine
from latency_lab.errors import BudgetError, DeviceLostError, MissingRuntimeError, UsageError
from latency_lab.profiles import DeviceProfile, Roofline


@pytest.fixture
def profile_file(tmp_path) -> Path:
    path = tmp_path / "v100.json"
    DeviceProfile.analytic("v100", peak_gflops=125000, bandwidth_gb_s=900).save(path)
    return path


def fails_with(monkeypatch, error: BaseException) -> None:
    def run(args):
        raise error

    monkeypatch.setattr(VERBS["profiles"], "run", run)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no such width"), 2),
        (BudgetError("no such budget"), 2),
        (MissingRuntimeError("install it"), 2),
        (DeviceLostError("gone; go on with: latency-lab profile"), 3),
    ],
)
def test_errors_of_the_library_are_messages_with_their_exit_code(monkeypatch, capsys, error, code):
    fails_with(monkeypatch, error)
    assert main(["profiles"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert first == f"latency-lab: {error}"
    assert bool(rest) == (code == 3)  # a device that was lost: the command that goes on


def test_a_bug_says_that_it_is_one(monkeypatch, capsys):
    fails_with(monkeypatch, ZeroDivisionError("division by zero"))
    assert main(["profiles"]) == 70
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert message.endswith(
        "latency-lab: this is a bug in latency-lab: the lines above say where. Please report them with the command.\n"
    )


def test_an_interrupted_command_names_the_command_that_goes_on(monkeypatch, capsys):
    fails_with(monkeypatch, KeyboardInterrupt())
    assert main(["profiles", "--json"]) == 130
    expected = "\nlatency-lab: interrupted. What was measured is kept; go on with: latency-lab profiles --json\n"
    assert capsys.readouterr().err == expected


def test_a_missing_framework_is_named_with_its_command(monkeypatch, capsys):
    fails_with(monkeypatch, ModuleNotFoundError("No module named 'tf2onnx'", name="tf2onnx.convert"))
    assert main(["profiles"]) == 2
    assert capsys.readouterr().err == (
        "latency-lab: latency-lab profiles needs tf2onnx, which is not installed. "
        'Install it: pip install "latency-lab[onnx]"\n'
    )


def test_a_mistyped_verb_is_guessed(capsys):
    assert main(["prdict", "m.keras"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latency-lab: there is no verb 'prdict'. Did you mean 'predict'? The verbs: doctor, ")


@pytest.mark.parametrize("words", [[], ["predict"], ["measure", "m.keras", "--threads", "0"], ["profiles", "--jsn"]])
def test_usage_exits_2(words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: latency-lab")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_has_a_summary(verb):
    words = {
        "predict": ["m.keras", "--profile", "p"],
        "measure": ["m.keras"],
        "validate": ["a.keras", "b.keras", "--profile", "p"],
        "compare": ["a.keras", "b.keras"],
        "profile": ["-o", "p.json"],
        "fit": ["t.csv", "-o", "p.json"],
        "show": ["p"],
        "shrink": ["m.keras", "s.json", "-o", "slim.keras"],
    }.get(verb, [])
    parsed = parser().parse_args([verb, *words, "--json"])
    assert parsed.json
    assert (VERBS[verb].__doc__ or "").partition("\n")[0]


def test_show_json_is_the_profile(profile_file, capsys):
    assert main(["show", str(profile_file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(profile_file.read_text())
    assert err == ""


def test_show_reads_stdin(profile_file, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(profile_file.read_text()))
    assert main(["show", "-"]) == 0
    assert capsys.readouterr().out.startswith("v100: analytic, float32, digest ")


def test_show_explains_the_channels_of_a_model(tmp_path, capsys):
    keras = pytest.importorskip("keras")
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="a")(image))
    path = tmp_path / "m.keras"
    keras.Model(image, keras.layers.Dense(2, name="head")(x)).save(path)
    assert main(["show", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [group["name"] for group in data["groups"]] == ["a"]
    assert {p["name"]: p["reason"] for p in data["pinned"]}["head"] == "it is an output of the model"
    assert main(["show", str(path), "--plot", "f.png"]) == 2
    assert "--plot is of a profile" in capsys.readouterr().err


def test_show_says_what_is_wrong_with_a_file(tmp_path, capsys):
    path = tmp_path / "p.json"
    path.write_text('{"format": "latency-lab device profile"}')
    assert main(["show", str(path)]) == 2
    assert f"latency-lab: {path} is not a device profile: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.keras", "absent.keras: there is no such file"),
        ("m.h5", "m.h5: expected a model that ends in .keras or .tflite or .onnx or .pb. Received: '.h5'"),
    ],
)
def test_model_that_cannot_be_taken(name, message, capsys):
    assert main(["measure", name]) == 2
    assert capsys.readouterr().err.strip() == f"latency-lab: {message}"


@pytest.mark.parametrize(
    ("data", "suffix"), [(b"PK\x03\x04rest", ".keras"), (b"\x1c\0\0\0TFL3rest", ".tflite"), (b"\x08\x07rest", ".onnx")]
)
def test_a_model_on_stdin_is_known_by_its_first_bytes(monkeypatch, data, suffix):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    with inputs.model_file("-") as path:
        assert path.suffix == suffix
        assert path.read_bytes() == data
    assert not path.exists()


@pytest.mark.parametrize(("faster", "unstable", "code"), [(True, False, 0), (False, False, 1), (True, True, 1)])
def test_compare_exits_1_when_the_answer_is_no(monkeypatch, tmp_path, capsys, faster, unstable, code):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"")
    comparison = SimpleNamespace(faster=faster, unstable=unstable, to_json=lambda: {"faster": faster})
    monkeypatch.setattr(latency_lab, "compare", lambda a, b, runtime, threads, on_progress, start_worker: comparison)
    assert main(["compare", str(path), str(path), "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"faster": faster}


def test_doctor_exits_1_when_timing_is_unsteady(monkeypatch, capsys):
    for steady in (True, False):
        report = SimpleNamespace(trusted=steady, to_json=dict)
        monkeypatch.setattr(latency_lab, "doctor", lambda on, names, report=report: report)
        assert main(["doctor", "--json"]) == (0 if steady else 1)
    assert capsys.readouterr().out == "{}\n{}\n"


def test_profile_to_stdout_asks_for_a_journal(capsys):
    assert main(["profile", "-o", "-"]) == 2
    assert capsys.readouterr().err.startswith("latency-lab: -o - writes the profile to stdout: name the journal's file")


def test_shrink_names_the_way_to_other_formats(capsys):
    assert main(["shrink", "m.keras", "s.json", "-o", "slim.tflite"]) == 2
    assert "add --to litert,onnx" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_updated_in_place_on_a_terminal():
    terminal, clock = Terminal(), iter([0.0, 1.0, 1.1, 2.0])
    with ProgressLine("measuring", terminal, lambda: next(clock)) as line:
        line(1, 4)
        line(2, 4)  # too soon after the first
        line(4, 4)
    assert terminal.getvalue() == (
        "\rmeasuring  25 %  1/4 blocks, 0:03 left\x1b[K\rmeasuring 100 %  4/4 blocks, 0:00 left\x1b[K\n"
    )


def test_progress_is_a_line_a_tenth_elsewhere():
    log = io.StringIO()
    line = ProgressLine("measuring", log, lambda: 0.0)
    for done in range(1, 101):
        line(done, 100)
    assert len(log.getvalue().splitlines()) == 11


def test_progress_begins_anew_with_another_pass():
    log, clock = io.StringIO(), iter([0.0, *(float(t) for t in range(1, 101)), 200.0, 201.0])
    line = ProgressLine("profiling", log, lambda: next(clock))
    for done in range(1, 101):
        line(done, 100)
    line(1, 1000)  # the second pass: its blocks are counted from 1, and its time from now
    line(500, 1000)
    assert log.getvalue().splitlines()[-2:] == [
        "profiling   0 %  1/1000 blocks, 0:00 left",
        "profiling  50 %  500/1000 blocks, 0:01 left",
    ]


@pytest.mark.parametrize("words", [["predict"], ["validate"], ["show"], ["shrink"]])
@pytest.mark.parametrize("data", [b"no model", b"PK\x05\x06" + 18 * b"\0", b""])
def test_a_keras_file_that_is_none_is_named_by_every_verb(words, data, tmp_path, capsys):
    model, profile = tmp_path / "m.keras", tmp_path / "p.json"
    model.write_bytes(data)
    DeviceProfile("pi4", "litert", "measured", Roofline(10.0, 5.0)).save(profile)
    more = {"predict": ["--profile", str(profile)], "validate": ["--profile", str(profile)]}
    more["shrink"] = ["--target", "0.5", "--cost", "flops", "--dry-run"]
    assert main([*words, str(model), *more.get(words[0], [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "m.keras: not a Keras model that can be loaded" in err


def test_a_backend_that_is_missing_has_its_extra(monkeypatch, capsys):
    fails_with(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert main(["profiles"]) == 2
    assert 'Install it: pip install "latency-lab[torch]"' in capsys.readouterr().err

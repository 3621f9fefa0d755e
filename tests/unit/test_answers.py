"""What comes from a device is data: bounded, checked, never run."""

import ast
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latency_lab.profiling import environment, transport
from latency_lab.profiling.answers import block_of, hello_of, plain
from latency_lab.profiling.remote import Session, checked_probe, script
from latency_lab.profiling.transport import LINE_LIMIT, Pipe, missing_module

SUMMARY = {"min": 0.5, "deciles": [0.5] * 9, "median": 0.5}
BLOCK = {"id": 0, "status": "ok", "count": 3, "repeats": 1, "wall_ms": SUMMARY, "cpu_ms": None, "cold_ms": None}
PROBE = {"identity": {"cores": 4}, "conditions": {"load": 0.5}, "wall_s": [1.0], "cpu_s": [1.0]}


def test_a_block_passes_with_what_is_not_known_here():
    assert block_of(json.dumps({**BLOCK, "placement": "GPU"}))["placement"] == "GPU"
    zero = {"min": 0.0, "deciles": [0.0] * 9, "median": 0.0}
    assert block_of(json.dumps({**BLOCK, "cpu_ms": zero}))["cpu_ms"] == zero


@pytest.mark.parametrize(
    "changed",
    [
        {"status": "fine"},
        {"count": 0},
        {"count": True},
        {"count": 10**9},
        {"repeats": 1.5},
        {"wall_ms": None},
        {"wall_ms": {**SUMMARY, "min": 0.0}},
        {"wall_ms": {**SUMMARY, "min": -1.0}},
        {"wall_ms": {**SUMMARY, "min": 10**400}},
        {"wall_ms": {**SUMMARY, "median": "1"}},
        {"wall_ms": {**SUMMARY, "deciles": [0.5] * 8}},
        {"wall_ms": {**SUMMARY, "min": float("inf")}},
        {"cpu_ms": {"min": 1.0, "median": 1.0}},
        {"cold_ms": {**SUMMARY, "median": float("nan")}},
    ],
)
def test_a_block_with_other_values_is_refused(changed):
    with pytest.raises(ValueError):
        block_of(json.dumps({**BLOCK, **changed}))


@pytest.mark.parametrize(
    "line", ["", "[]", "null", "__import__('os')", "[" * 100_000, '{"wall_ms": 1e999}', "1" * 9999]
)
def test_a_line_that_is_no_object_is_refused(line):
    with pytest.raises(ValueError):
        block_of(line)


def test_a_reason_is_plain_and_short():
    reason = block_of(json.dumps({"status": "failed", "reason": "\x1b]0;x\x07" + "y" * 9999}))["reason"]
    assert len(reason) == 2000
    assert reason.isprintable()
    assert plain("a\nb\x00") == "a b "


@pytest.mark.parametrize("more", ['"device": 3', '"layout_block": "16x"', '"layout_block": 0', '"layout_block": true'])
def test_a_hello_with_another_device_or_layout_is_refused(more):
    with pytest.raises(ValueError, match="its (device|layout_block) is"):
        hello_of('{"package": "p", "version": "1", ' + more + "}")


def test_a_device_s_name_can_be_printed():
    found = hello_of('{"package": "p", "version": "1", "device": "GPU\\u001b[2J", "layout_block": 16}')
    assert found == {"package": "p", "version": "1", "device": "GPU [2J", "layout_block": 16}


def test_a_process_that_takes_nothing_does_not_hold_up_the_end():
    pipe = Pipe([sys.executable, "-c", "import time; time.sleep(60)"])
    pipe.say(b"x" * 10_000_000)
    time.sleep(0.2)
    began = time.monotonic()
    pipe.end()
    pipe.close()
    assert time.monotonic() - began < 30


def test_a_hello_names_package_and_version():
    assert hello_of('{"package": "p\\u001b", "version": "1"}') == {"package": "p ", "version": "1"}
    for line in (
        '{"package": "p"}',
        '{"package": "p", "version": 1}',
        '{"package": "p", "version": "%s"}' % ("1" * 9999),
    ):
        with pytest.raises(ValueError, match="names its"):
            hello_of(line)


@pytest.mark.parametrize(
    "changed",
    [
        {"identity": None},
        {"identity": {"cores": None}},
        {"identity": {"cores": "4"}},
        {"conditions": {"load": "high"}},
        {"conditions": {"temperature_c": [1]}},
        {"wall_s": [-1.0]},
        {"wall_s": "1"},
        {"cpu_s": []},
    ],
)
def test_a_probe_with_other_values_is_refused(changed):
    assert checked_probe(PROBE)["identity"]["cores"] == 4
    with pytest.raises(ValueError):
        checked_probe({**PROBE, **changed})


def test_a_process_that_says_too_much_is_ended():
    code = f"import sys; sys.stdout.write('x' * {2 * LINE_LIMIT}); sys.stdout.flush(); sys.stdin.read()"
    pipe = Pipe([sys.executable, "-c", code])
    assert pipe.line(30.0) is None
    assert "said more than" in pipe.last_words()
    assert pipe.code() < 0
    pipe.close()


def test_of_stderr_the_end_is_kept(monkeypatch):
    monkeypatch.setattr(transport, "TAIL_BYTES", 100)
    pipe = Pipe([sys.executable, "-c", "import sys; sys.stderr.write('x' * 10**6 + '\\nlast\\x1b words\\n')"])
    assert pipe.line(30.0) is None
    assert pipe.last_words().endswith("last  words")
    assert len(pipe.last_words()) < 120
    pipe.close()


def test_a_framework_s_notes_are_left_out_of_the_last_words():
    notes = ["WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
             "I0000 00:00:1795996280.1  23125 port.cc:153] oneDNN is on." + 300 * " x"]  # fmt: skip
    for lines, said in (([*notes, "no device GPU:0"], "no device GPU:0"), (notes, " | ".join(notes)[-600:])):
        pipe = Pipe([sys.executable, "-c", f"import sys; sys.stderr.write({chr(10).join(lines)!r})"])
        assert pipe.line(30.0) is None
        assert pipe.last_words() == said
        pipe.close()


def test_the_script_gives_files_then_stdin_to_the_command_and_removes_the_folder(tmp_path):
    text = script(str(tmp_path), {"a": 3, "b": 2}, 'sh -c \'cat "$d/a" "$d/b"; echo; cat; exit 7\'')
    done = subprocess.run(
        ["sh", "-c", text], input="onetwrest\n", capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    began, *said = done.stdout.split("\n")
    assert began.startswith(f"latency-lab began {tmp_path}/latency-lab-")
    assert [line for line in said if line] == ["onetw", "rest", "latency-lab ended 7"]
    assert list(tmp_path.iterdir()) == []


class FakeDevice:
    """Says lines of a device that is not to be trusted."""

    name, base, prefix = "fake", "/tmp", ("fake",)

    def __init__(self, *lines):
        self.lines = lines

    def argv(self, script):
        return ["sh", "-c", "printf '%s\\n' " + shlex.join(self.lines)]


@pytest.mark.parametrize(
    "folder", ["/", "/tmp/x; reboot/latency-lab-abcdef12", "/tmp/latency-lab-$(x)aaaa", "latency-lab-a"]
)
def test_a_folder_of_another_form_is_no_beginning(folder):
    from latency_lab.profiling.remote import LinkLostError

    with pytest.raises(LinkLostError):
        Session(FakeDevice(f"latency-lab began {folder} 1"), {}, "true")


def test_what_a_login_shell_says_first_is_passed_over():
    session = Session(FakeDevice("Welcome!", "latency-lab began /tmp/latency-lab-abcdef12 7", "", "x"), {}, "true")
    assert session.folder == "/tmp/latency-lab-abcdef12"
    assert session.line().strip() == "x"
    session.close()


def test_what_is_run_on_a_device_needs_the_standard_library_alone():
    tree = ast.parse(Path(environment.__file__).read_text(), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert imported <= set(sys.stdlib_module_names)
    done = subprocess.run(
        [sys.executable, "-S", environment.__file__, "--samples", "2"], capture_output=True, text=True, check=True
    )
    found = checked_probe(json.loads(done.stdout))
    assert len(found["wall_s"]) == 2
    assert found["identity"] == environment.identity()


def test_the_module_that_is_missing():
    assert missing_module("x: ModuleNotFoundError: No module named 'tflite_runtime'") == "tflite_runtime"
    assert missing_module("exit code 1") == ""

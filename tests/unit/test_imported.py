"""Timings of others: rows to operations, what is wrong with a file, a profile that predicts and cannot be measured."""

import gzip

import numpy as np
import pytest

from latency_lab import validate
from latency_lab.cli.main import main
from latency_lab.errors import FileFormatError, OutOfBoundsError, UsageError
from latency_lab.fitting import fit_csv
from latency_lab.fitting.timings import COLUMNS, read_timings
from latency_lab.ops import OpConfig
from latency_lab.profiles import load_profile, predict_block

HEADER = ",".join([*COLUMNS, "source", "licence"])
ROW = {
    "device": "board", "runtime": "vendor 1.2", "dtype": "fp32", "op": "conv2d", "n": 1, "h": 8, "w": 8, "cin": 16,
    "cout": 32, "kh": 3, "kw": 3, "sh": 1, "sw": 1, "ph": 1, "pw": 1, "dh": 1, "groups": 1, "ms": 0.5,
    "source": "somebody", "licence": "MIT",
}  # fmt: skip


def write(path, *rows):
    lines = [",".join(str(value) for value in {**ROW, **row}.values()) for row in rows]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def conv_rows(count=60):
    rng = np.random.default_rng(0)
    for cin, cout, n in zip(*rng.integers(4, 64, (2, count)), rng.integers(1, 5, count), strict=True):
        yield {"cin": cin, "cout": cout, "n": n, "ms": 1e-3 + 1e-6 * n * cin * cout}


def test_rows_become_operations(tmp_path):
    path = write(
        tmp_path / "t.csv",
        {"n": 4, "ms": 0.7},
        {"n": 4, "ms": 0.6},
        {"groups": 16, "op": "gconv2d"},
        {"groups": 16, "op": "dwconv2d"},
        {"groups": 4},
        {"op": "dense", "h": 1, "w": 1, "n": 9},
        {"op": "block:ffn:e4", "kh": 0, "kw": 0},
        {"h": 2, "ph": 0},
    )
    found = read_timings(path)
    batch, depthwise, grouped, dense = [m.op for m in found.ops]
    assert batch == OpConfig("conv2d", 4, 8, 8, 16, 32, (3, 3), padding=((1, 1), (1, 1)), use_bias=False)
    assert found.ops[0].point.latency_ms == 0.6
    assert (depthwise.kind, depthwise.groups, depthwise.out_channels) == ("depthwise_conv2d", 1, 32)
    assert (grouped.kind, grouped.groups) == ("conv2d", 4)
    assert (dense.kind, dense.batch, dense.macs) == ("dense", 9, 9 * 16 * 32)
    ((block,),) = found.blocks.values()
    assert list(found.blocks) == ["block:ffn"]
    assert block.op.macs == 4 * 64 * 16 * 32
    assert list(found.failed) == ["line 9"]
    assert "does not fit" in found.failed["line 9"]
    assert (found.device, found.dtype, found.source, found.licence) == ("board", "float32", "somebody", "MIT")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ms": 0}, r"t\.csv: line 3: column 'ms': expected a finite number from 1e-09, received '0'"),
        ({"ms": "1e-10"}, "line 3: column 'ms'"),
        ({"ms": "nan"}, "line 3: column 'ms'"),
        ({"ms": "inf"}, "line 3: column 'ms'"),
        ({"ms": "fast"}, "line 3: column 'ms'"),
        ({"cin": 1.5}, "line 3: column 'cin': expected a whole number from 1, received '1.5'"),
        ({"kh": 0}, "line 3: column 'kh': expected a whole number from 1"),
        ({"ph": -1}, "line 3: column 'ph': expected a whole number from 0"),
        ({"op": "fft"}, "line 3: column 'op': expected block:WORDS or one of"),
        ({"n": ""}, "line 3: column 'n' is empty"),
        ({"dtype": "fp8", "device": "other"}, "line 3: column 'dtype': expected one of fp32"),
    ],
)
def test_a_wrong_row_names_line_and_column(tmp_path, row, message):
    with pytest.raises(FileFormatError, match=message):
        read_timings(write(tmp_path / "t.csv", {}, row), device=row.get("device"))


def test_a_wrong_file_says_why(tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(FileFormatError, match="Cannot read timings"):
        read_timings(path)
    path.write_text(HEADER.replace("groups,", "") + "\n")
    with pytest.raises(FileFormatError, match="line 1: no column 'groups'"):
        read_timings(path)
    with pytest.raises(FileFormatError, match="no rows"):
        read_timings(write(path))
    zipped = tmp_path / "t.csv.gz"
    packed = gzip.compress((HEADER + "\n").encode())
    for data in (b"not zipped", packed[:-9], packed[:12] + b"\xff\xff" + packed[14:]):
        zipped.write_bytes(data)
        with pytest.raises(FileFormatError, match="Cannot read timings"):
            read_timings(zipped)
    for header in (HEADER.replace("device", '"device'), HEADER + "\rboard,"):
        path.write_bytes(header.encode())
        with pytest.raises(FileFormatError, match=r"t\.csv: line \d: not CSV"):
            read_timings(path)
    with pytest.raises(FileFormatError, match="several runtimes: vendor 1.2, vendor 1.3"):
        read_timings(write(path, {}, {"runtime": "vendor 1.3"}))


def test_device_and_dtype_are_chosen(tmp_path):
    path = write(tmp_path / "t.csv", {}, {"device": "gpu"}, {"device": "gpu", "dtype": "fp16", "ms": 0.1})
    with pytest.raises(UsageError, match="--device: 'board', 'gpu'"):
        read_timings(path)
    with pytest.raises(UsageError, match="--dtype: 'fp16', 'fp32'"):
        read_timings(path, device="gpu")
    with pytest.raises(UsageError, match="no rows of device 'cpu'. The file has: 'board', 'gpu'"):
        read_timings(path, device="cpu")
    for dtype in ("fp16", "float16"):
        assert read_timings(path, device="gpu", dtype=dtype).ops[0].op.dtype == "float16"


def test_a_profile_from_timings(tmp_path):
    path = write(tmp_path / "board.csv", *conv_rows(), {"h": 2, "ph": 0})
    zipped = tmp_path / "board.csv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    profile = fit_csv(zipped, source="a paper")
    assert (profile.name, profile.runtime, profile.kind) == ("board", "vendor 1.2", "measured")
    said = {"provenance": "imported", "device": "board", "source": "a paper", "licence": "MIT"}
    assert profile.environment == said
    assert list(profile.journal["failed"]) == ["line 62"]
    op = OpConfig("conv2d", 2, 8, 8, 24, 40, (3, 3))
    (found,) = profile.predict([op])
    assert found.latency_ms == pytest.approx(1e-3 + 2e-6 * 24 * 40, rel=0.2)
    assert found.low_ms < found.latency_ms < found.high_ms < float("inf")
    profile.save(tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json").predict([op]) == [found]
    with pytest.raises(UsageError, match="imported from timings of 'vendor 1.2'"):
        validate(profile, ["m.keras"])


def test_blocks_have_predictors_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"op": f"block:ffn:e{e}", "cin": c, "cout": c, "kh": 0, "kw": 0, "ms": 1e-2 + 2e-6 * e * c * c}
        for e, c in zip(rng.integers(2, 6, 60), rng.permutation(320)[:60] + 32, strict=True)
    ]
    profile = fit_csv(write(tmp_path / "t.csv", *rows))
    columns = {"height": 8, "width": 8, "in_channels": 128, "out_channels": 128}
    found = {e: predict_block(profile, f"block:ffn:e{e}", **columns) for e in (2, 4)}
    assert found[4].latency_ms == pytest.approx(1e-2 + 8e-6 * 128 * 128, rel=0.1)
    assert found[2].latency_ms < 0.7 * found[4].latency_ms
    assert found[4].source == "predicted"
    assert profile.holdout["block:ffn"]["points"] == 60
    with pytest.raises(OutOfBoundsError, match="no timings of block:attn. Blocks that it has: block:ffn"):
        predict_block(profile, "block:attn:e2", **columns)
    with pytest.raises(UsageError, match="Expected block:WORDS"):
        predict_block(profile, "ffn", **columns)


def test_the_verb_fits_and_says_what_it_left_out(tmp_path, capsys):
    path = write(tmp_path / "t.csv", *conv_rows(), {"h": 2, "ph": 0})
    target = tmp_path / "p.json"
    assert main(["fit", str(path), "-o", str(target), "--licence", "CC0"]) == 0
    printed = capsys.readouterr().out
    assert "left out: line 62: The window does not fit" in printed
    assert f"wrote {target}: p, vendor 1.2, float32" in printed
    assert load_profile(target).environment["licence"] == "CC0"
    assert main(["show", str(target)]) == 0
    assert main(["fit", str(tmp_path / "t.txt"), "-o", str(target)]) == 2
    assert main(["fit", str(tmp_path / "t.jsonl"), "-o", str(target), "--device", "x"]) == 2
    assert "--device: a journal says that itself" in capsys.readouterr().err


def test_the_verb_fits_a_journal(tmp_path, capsys):
    from tests.unit.synthetic import conv_tasks, write_journal

    journal = write_journal(tmp_path / "pi.jsonl", conv_tasks())
    assert main(["fit", str(journal.path), "-o", str(tmp_path / "pi.json"), "--json"]) == 0
    assert '"name": "pi"' in capsys.readouterr().out
    assert load_profile(tmp_path / "pi.json").runtime == "litert"

"""Files from others are data: what no number is, what leads nowhere, and what is no file."""

import json
import os
import threading

import pytest

from latency_lab import files
from latency_lab.cli.main import main
from latency_lab.errors import FileFormatError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import DeviceProfile, LookupTable, Point, Roofline, load_profile
from latency_lab.report import describe

PROFILE = DeviceProfile.analytic("v100", peak_gflops=125000, bandwidth_gb_s=900)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_finite_number_is_refused_wherever_it_stands(tmp_path, text, capsys):
    data = PROFILE.to_json()
    data["environment"]["note"] = "here"
    for spoiled in ('"bandwidth_gb_s": 900', '"note": "here"'):
        path = tmp_path / "p.json"
        whole = json.dumps(data)
        assert spoiled in whole
        path.write_text(whole.replace(spoiled, f"{spoiled.partition(':')[0]}: {text}"))
        with pytest.raises(FileFormatError, match=r"p\.json: not JSON: .*(NaN|Infinity|1e999)"):
            load_profile(path)
        assert main(["show", str(path), "--json"]) == 2
        assert capsys.readouterr().out == ""


def test_brackets_without_end_are_no_json(tmp_path):
    (tmp_path / "p.json").write_text("[" * 100_000)
    with pytest.raises(FileFormatError, match="not JSON"):
        load_profile(tmp_path / "p.json")


@pytest.mark.parametrize(
    "op",
    [
        {"kind": "conv2d", "strides": [0, 0]},
        {"kind": "conv2d", "kernel_size": [3], "padding": "valid"},
        {"kind": "resize_nearest", "output_size": [5]},
        {"kind": "conv2d", "padding": [[1, 1]]},
        {"kind": "conv2d", "padding": "some"},
        {"kind": "conv2d", "dilation": [1.5, 1]},
        {"kind": "conv3d", "stride_depth": 0},
    ],
)
def test_an_operation_that_cannot_be_is_refused_in_a_profile_and_in_a_network(op):
    with pytest.raises(FileFormatError, match="Not an operation"):
        OpConfig.from_json(op)
    with pytest.raises(FileFormatError, match="Not an operation"):
        Network.from_json({"nodes": [[op, [-1]]]})


def test_a_table_without_points_or_with_fewer_channels_than_groups_is_refused():
    op = OpConfig("conv2d", 1, 8, 8, 16, 16, groups=8)
    profile = DeviceProfile(
        "pi4", "litert", "measured", Roofline(10.0, 5.0), tables={op.static_key: LookupTable(op, {})}
    )
    data = profile.to_json()
    for points in ([], [[4, 16, 0.1, 0.1, 0.1, None, False]]):
        data["tables"][0]["points"] = points
        with pytest.raises(FileFormatError, match=r"at least 8 channels - at \$\.tables"):
            DeviceProfile.from_json(data)
    data["tables"][0]["points"] = [[8, 16, 0.1, 0.1, 0.1, None, False]]
    assert DeviceProfile.from_json(data).tables[op.static_key].points == {(8, 16): Point(8, 16, 0.1, 0.1, 0.1)}


def test_boards_of_a_fleet_are_what_show_reads():
    data = PROFILE.to_json()
    data["environment"]["boards"] = [1]
    with pytest.raises(FileFormatError, match=r"Expected object, got array - at \$\.environment\.boards"):
        DeviceProfile.from_json(data)
    data["environment"]["boards"] = {"a": {"blocks": 7, "ratio": 1.0, "off": False}}
    assert "a 7 blocks at 1.00" in describe(DeviceProfile.from_json(data))


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    files.write_bytes(pipe, b"data")
    reader.join(5)
    assert got == [b"data"]
    assert pipe.is_fifo()


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    files.write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert [path.name for path in real.parent.iterdir()] == ["real.json"]

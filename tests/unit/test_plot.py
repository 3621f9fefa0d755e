"""The picture of a profile: what is drawn, and that it is written whole or not at all."""

import dataclasses
import sys

import numpy as np
import pytest

from latency_lab.cli.main import main
from latency_lab.errors import MissingRuntimeError, UsageError
from latency_lab.fitting import fit_profile
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import DeviceProfile
from latency_lab.profiling import Task
from latency_lab.report.plot import MAX_PANELS, panels, plot
from tests.unit.synthetic import conv_tasks, op_ms, write_journal


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    pools = [OpConfig("max_pool", 1, 8, 8, c, c, (2, 2)) for c in (8, 16, 24, 32, 48)]
    tasks = [*conv_tasks(), *(Task(Network.of(op)) for op in pools)]
    return fit_profile(write_journal(tmp_path_factory.mktemp("plot") / "pi.journal.jsonl", tasks))


def test_each_family_is_drawn_over_each_axis_with_the_measured_points_on_the_curve(profile):
    found = {(panel.op.family, panel.axis): panel for panel in panels(profile)}
    assert {("conv2d k3x3 s1x1", "out"), ("conv2d k3x3 s1x1", "in"), ("max_pool k2x2 s1x1", "both")} <= set(found)
    panel = found["conv2d k3x3 s1x1", "out"]
    assert (np.diff(panel.channels) > 0).all()
    assert panel.latency_ms == pytest.approx(
        [op_ms(panel.op.with_channels(panel.op.in_channels, int(c))) for c in panel.channels]
    )
    on_curve = np.interp(panel.channels, panel.curve_channels, panel.curve_ms)
    assert on_curve == pytest.approx(panel.latency_ms)
    assert len(panel.curve_channels) == panel.channels[-1] - panel.channels[0] + 1
    assert (panel.low_ms <= panel.latency_ms).all()


def test_families_with_steps_come_first_and_name_them(profile):
    found = panels(profile)
    assert found[0].quantum == 16
    assert found[0].label == f"out_channels (in_channels = {found[0].op.in_channels})"
    assert found[0].title.splitlines()[0] == found[0].op.family
    assert found[-1].label == "channels"
    assert len(found) <= MAX_PANELS


def test_a_kind_of_one_width_has_the_step_of_its_family(profile):
    """Steps name it "out"; the line and the chord ask for the width of the input."""
    pools = "max_pool k2x2 s1x1"
    stepped = dataclasses.replace(
        profile, steps=[{"family": pools, "axis": "out", "quantum": 8, "slow_remainders": {}}]
    )
    first = panels(stepped)[0]
    assert (first.op.family, first.quantum) == (pools, 8)
    assert [stepped.quantum(first.op, axis) for axis in (0, 1)] == [8, 8]
    conv = next(panel.op for panel in panels(profile) if panel.op.kind == "conv2d")
    assert profile.quantum(conv, 1) == 16
    assert profile.quantum(conv, 0) == 1


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_picture_is_written(profile, tmp_path, suffix, magic):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"steps{suffix}"
    plot(profile, path)
    assert path.read_bytes().startswith(magic)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_show_draws_beside_its_text(profile, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    profile.save(tmp_path / "pi.json.gz")
    assert main(["show", str(tmp_path / "pi.json.gz"), "--plot", str(tmp_path / "pi.png")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("pi: measured")
    assert err == f"wrote {tmp_path / 'pi.png'}\n"
    assert (tmp_path / "pi.png").stat().st_size > 20_000


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(profile, tmp_path, capsys):
    analytic = DeviceProfile.analytic("v100", peak_gflops=125000, bandwidth_gb_s=900)
    with pytest.raises(UsageError, match=r"'v100' has no table of 4 or more points .* It is analytic"):
        plot(analytic, tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"a.jpg: expected a name that ends in .png, .svg, .pdf. Received: '.jpg'"):
        plot(profile, tmp_path / "a.jpg")
    assert main(["show", "v100", "--plot", str(tmp_path / "a.png")]) == 2
    assert "nothing to plot" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_command_that_installs_it_is_named(profile, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingRuntimeError, match=r'A plot needs matplotlib.*pip install "latency-lab\[plot\]"'):
        plot(profile, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())

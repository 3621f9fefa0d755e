"""The profiles of datasheets that ship, read from their files."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from latency_lab.cli.profiles import Listing
from latency_lab.cost import LatencyCost, linearised_loss
from latency_lab.profiles import load_profile, shipped_profiles
from latency_lab.report import describe
from tests.unit.cost_nets import GAMMA_A, net_a
from tests.unit.test_oracles import ALIVE, DEVICES, R, of_convs

ROOT = Path(__file__).parents[2]
NAMES = (
    "k80", "p4", "t4", "p100", "v100", "a100", "h100", "tpu-v2", "tpu-v3", "tpu-v4", "tpu-v5e", "edge-tpu",
)  # fmt: skip
ROWS = {
    # name: cost of Net A at the alive channels, ns; of each conv; linearised loss
    "k80": (762.226135, None, None),
    "p4": (1856.07898, None, None),
    "t4": (1191.25854, None, None),
    "tpu-v2": (1185.50671, None, None),
    "p100": (515.251526, [51.0548400879, 24.8907108307, 45.5409851074, 63.4480857849], 461.267181),
    "v100": (395.168915, [17.6222229, 20.2444458, 37.0400009, 51.6044464], 347.760895),
}


@pytest.fixture
def make(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make", ROOT / "scripts" / "make_analytic_profiles.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make", module)  # where dataclasses look for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_each_ships_and_says_where_its_numbers_are_from(name):
    assert name in shipped_profiles()
    profile = load_profile(name)
    assert (profile.name, profile.kind, profile.runtime) == (name, "analytic", "")
    assert not profile.tables
    assert not profile.predictors
    stated = profile.environment
    assert stated["provenance"] == "datasheet"
    assert "http" in stated["source"]
    assert any(format_ in stated["precision_of_peak"] for format_ in ("float32", "bfloat16", "int8"))
    text = describe(profile)
    assert f"source    {stated['source']}" in text
    assert f"peak is   {stated['precision_of_peak']}" in text


def test_the_files_are_what_the_script_writes(make, tmp_path):
    assert set(make.DATASHEETS) == set(NAMES)
    for name in NAMES:
        make.profile(name).save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_text() == (ROOT / "device_profiles" / f"{name}.json").read_text()


@pytest.mark.parametrize("name", ROWS)
def test_rooflines_of_net_a_are_reproduced_from_the_shipped_file(name):
    total, convs, loss = ROWS[name]
    cost = LatencyCost(net_a(), load_profile(name))
    assert cost.at(ALIVE) * 1e6 == pytest.approx(total, rel=1e-5)
    if convs is not None:
        assert of_convs(cost, cost.per_op(ALIVE)[0] * 1e6) == pytest.approx(convs, rel=1e-5)
        assert linearised_loss(cost, ALIVE, R) * 1e6 == pytest.approx(loss, rel=1e-5)


def test_net_a_at_batch_32_and_its_slope_from_the_shipped_files():
    batched = LatencyCost(net_a(batch=32), load_profile("v100"))
    assert batched.at(ALIVE) * 1e6 == pytest.approx(12274.2314, rel=1e-5)
    assert linearised_loss(batched, ALIVE, R) * 1e6 == pytest.approx(10498.7314, rel=1e-5)
    price = LatencyCost(net_a(), load_profile("p100")).gradient(ALIVE) * 1e6
    found = [p * np.sign(gamma[0]) for p, gamma in zip(price, GAMMA_A, strict=True)]
    assert found == pytest.approx([21.998466, -16.486338, 3.344262, -8.923496], rel=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_the_six_devices_have_the_numbers_of_the_oracles(device):
    roofline = load_profile({"TPU v2": "tpu-v2"}.get(device, device.lower())).roofline
    assert (roofline.peak_gflops, roofline.bandwidth_gb_s) == DEVICES[device]


def test_the_listing_names_device_and_provenance():
    text = str(Listing({name: load_profile(name) for name in NAMES}))
    (row,) = [line for line in text.splitlines() if line.startswith("v100 ")]
    assert "analytic" in row
    assert "NVIDIA Tesla V100 SXM2" in row
    assert row.endswith("datasheet")

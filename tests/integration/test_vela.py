"""Vela's estimates, which are the same each time: exact numbers of Vela 5.2.0."""

import json
import subprocess
import sys
from importlib import metadata

import keras
import pytest
from keras import layers

import latency_lab
from latency_lab import runtimes
from latency_lab.cli.main import main
from latency_lab.convert import to_tflite
from latency_lab.errors import UsageError
from latency_lab.ops import Network, OpConfig
from latency_lab.profiles import fuse
from latency_lab.profiling import LocalWorker, worker_command

RUNTIME = "vela:ethos-u55-128"
CONV = OpConfig(
    "conv2d", height=14, width=14, in_channels=16, out_channels=24, kernel_size=(3, 3), activation="relu", dtype="int8"
)
POOL = OpConfig("global_avg_pool", height=14, width=14, in_channels=24, out_channels=24, dtype="int8")
ELU = OpConfig("activation", height=8, width=8, in_channels=8, out_channels=8, activation="elu", dtype="int8")
NET = Network(((CONV, (-1,)), (POOL, (0,))))
VERSION = "5.2.0"


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """A Python that has this version of Vela: this one, or one of an environment that is made for it."""
    try:
        if metadata.version("ethos-u-vela") == VERSION:
            return sys.executable
    except metadata.PackageNotFoundError:
        pass
    folder = tmp_path_factory.mktemp("vela") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    found = folder / "bin" / "python"
    command = [found, "-m", "pip", "install", "-q", "--no-input", f"ethos-u-vela=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"pip cannot install ethos-u-vela=={VERSION}: {done.stderr.strip().splitlines()[-1:]}")
    return str(found)


@pytest.fixture
def start(python):
    return lambda runtime=RUNTIME: LocalWorker(runtime, 1, worker_command(python, runtime))


@pytest.fixture
def cycles(start, tmp_path):
    """Cycles that the worker gives for a network, or why it gives none."""

    def of(network, runtime=RUNTIME):
        path = tmp_path / "model.tflite"
        path.write_bytes(runtimes.get(runtime).build(network))
        worker = start(runtime)
        try:
            found = worker.block(str(path), {})
        finally:
            worker.close()
        return found.get("cycles", found.get("reason"))

    return of


def test_the_worker_says_what_it_estimates_for(start):
    worker = start("vela:ethos-u65-256:Ethos_U65_Embedded:Shared_Sram")
    worker.close()
    assert worker.hello["version"] == VERSION
    assert worker.hello["provenance"] == "estimated"
    assert worker.hello["device"] == "Arm ethos-u65-256 at 500 MHz, Ethos_U65_Embedded, Shared_Sram"


def test_a_configuration_that_vela_does_not_have_is_named_with_those_it_has(start):
    with pytest.raises(UsageError, match=r"no System_Config Fast. It has: .*Ethos_U55_High_End_Embedded"):
        start("vela:ethos-u55-128:Fast")


@pytest.mark.parametrize(
    ("runtime", "conv", "whole"),
    [("vela:ethos-u55-128", 8787, 17813), ("vela:ethos-u65-512", 2794, 7622), ("vela:ethos-u85-256", 4422, 14740)],
)
def test_estimates_are_exact(cycles, runtime, conv, whole):
    assert (cycles(Network.of(CONV), runtime), cycles(NET, runtime)) == (conv, whole)


def test_what_is_copied_nearer_for_the_context_is_no_part_of_the_operation(cycles):
    """Vela copies the input of the convolution before it to SRAM first, on Ethos-U85."""
    op = OpConfig(
        "depthwise_conv2d", height=14, width=14, in_channels=256, out_channels=256, kernel_size=(3, 3), dtype="int8"
    )
    assert cycles(Network.of(op), "vela:ethos-u85-256") == 19860


@pytest.mark.parametrize(("kind", "cycles_of"), [("multiply", 25088), ("add", 25088), ("batch_norm", 50176)])
def test_arithmetic_with_constants_is_not_chained_onto_its_context(cycles, kind, cycles_of):
    """On Ethos-U85 a sum is chained onto a product, whose row has the cycles of both; neither onto a concatenation."""
    broadcast = {} if kind == "batch_norm" else {"broadcast": "channels"}
    op = OpConfig(kind, height=14, width=14, in_channels=512, out_channels=512, dtype="int8", **broadcast)
    assert cycles(Network.of(op), "vela:ethos-u85-256") == cycles_of


@pytest.mark.parametrize(
    ("runtime", "whole", "copy"),
    [("vela:ethos-u55-128", 91812, 37912), ("vela:ethos-u65-512", 27685, 9616), ("vela:ethos-u85-256", 75653, 19960)],
)
def test_an_operand_of_a_concatenation_that_something_else_reads_is_copied(cycles, runtime, whole, copy):
    conv, both = OpConfig("conv2d", height=28, width=28, in_channels=16, out_channels=48, dtype="int8"), 96
    join = OpConfig("concatenate", height=28, width=28, in_channels=both, out_channels=both, operands=2, dtype="int8")
    nodes = [(conv, (-1,)), (conv.with_channels(48, 48), (0,)), (join, (0, 1)), (conv.with_channels(both, 16), (2,))]
    assert cycles(Network(tuple(nodes)), runtime) == whole
    kernels = fuse(Network(tuple(nodes)), runtimes.get(runtime).fusions("int8")[1])
    found = {kernel.op.kind: cycles(Network.of(kernel.op), runtime) for kernel in kernels}
    assert found["avg_pool"] == copy
    assert sum(cycles(Network.of(kernel.op), runtime) for kernel in kernels) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("reads", ["conv2d", "pad"])
def test_an_operand_of_a_pad_is_copied_if_something_else_reads_it(cycles, reads):
    size = {"height": 28, "width": 28, "dtype": "int8"}
    conv = OpConfig("conv2d", **size, in_channels=16, out_channels=48)
    pad = OpConfig("pad", **size, in_channels=48, out_channels=48, padding=((0, 1), (0, 1)))
    pool = OpConfig("max_pool", 1, 29, 29, 48, 48, kernel_size=(2, 2), strides=(2, 2), padding="valid", dtype="int8")
    other = (conv.with_channels(48, 16), (0,)) if reads == "conv2d" else (pad, (0,))
    network = Network(((conv, (-1,)), (pad, (0,)), (pool, (1,)), other))
    kernels = fuse(network, runtimes.get(RUNTIME).fusions("int8")[1])
    assert sum(kernel.op.kind == "avg_pool" for kernel in kernels) == (1 if reads == "conv2d" else 2)
    assert sum(cycles(Network.of(kernel.op)) for kernel in kernels) == pytest.approx(cycles(network), rel=0.05)


@pytest.mark.parametrize(("size", "channels", "cycles_of"), [(28, 512, 39038), (7, 160, 0)])
def test_a_sum_that_is_chained_costs_what_its_convolution_has_more_than_the_twin(cycles, size, channels, cycles_of):
    """Where the other operand is in the slow memory, that is the time to read it."""
    op = OpConfig("add", 1, size, size, channels, channels, operands=2, activation="relu", dtype="int8")
    assert cycles(Network.of(op), "vela:ethos-u85-256") == cycles_of


def test_a_gate_by_channels_is_not_chained(cycles):
    image = {"height": 14, "width": 14, "in_channels": 240, "out_channels": 240}
    op = OpConfig("multiply", **image, operands=2, broadcast="channels", dtype="int8")
    assert cycles(Network.of(op), "vela:ethos-u85-256") == 11760


def test_the_first_convolution_reads_a_scaled_image_from_the_npu_s_own_memory(cycles):
    image = {"height": 224, "width": 224, "in_channels": 3, "dtype": "int8"}
    conv = OpConfig("conv2d", **image, out_channels=16, kernel_size=(3, 3), strides=(2, 2))
    scale, shift = (OpConfig(kind, **image, out_channels=3, broadcast="scalar") for kind in ("multiply", "add"))
    network = Network(((scale, (-1,)), (shift, (0,)), (conv, (1,)), (conv.with_channels(16, 8), (2,))))
    (kernel, _) = fuse(network, runtimes.get(RUNTIME).fusions("int8")[1])
    scaled, bare = (cycles(Network.of(op), "vela:ethos-u85-256") for op in (kernel.op, conv))
    assert scaled == 75264 + 75935
    assert bare > 400_000


def test_the_clock_and_the_memory_are_those_of_the_configuration(start, tmp_path):
    """The same cycles of arithmetic at 200 and at 500 MHz; a slower clock waits less for memory."""
    path = tmp_path / "conv.tflite"
    path.write_bytes(runtimes.get(RUNTIME).build(Network.of(CONV)))
    found = []
    for system in ("Ethos_U55_Deep_Embedded", "Ethos_U55_High_End_Embedded"):
        worker = start(f"{RUNTIME}:{system}")
        block = worker.block(str(path), {})
        worker.close()
        found.append(block["cycles"] / block["wall_ms"]["min"] / 1e3)
    assert found == pytest.approx([200, 500])


@pytest.mark.parametrize(
    ("kind", "linear", "cycles_of"),
    [
        ("activation", "", 51856),
        ("activation", "input", 177628),
        ("avg_pool", "", 20468),
        ("avg_pool", "input", 177408),
    ],
)
def test_a_large_tensor_without_bricks_is_read_from_the_slow_memory(cycles, kind, linear, cycles_of):
    size = {"height": 28, "width": 28, "in_channels": 264, "out_channels": 264, "dtype": "int8"}
    what = {"activation": "relu"} if kind == "activation" else {"strides": (2, 2), "padding": "valid"}
    op = OpConfig(kind, **size, **what, linear=linear)
    assert cycles(Network.of(op), "vela:ethos-u65-512") == cycles_of


def test_what_is_left_to_the_cpu_is_listed_and_has_no_time(cycles, start, tmp_path):
    reason = "Vela leaves 3 of 3 operators to the CPU, not estimated: Dequantize, Elu, Quantize"
    assert cycles(Network.of(ELU)) == reason
    journal = latency_lab.profile([CONV, ELU], runtime=RUNTIME, journal=tmp_path / "j.jsonl", start_worker=start)
    assert journal.failures == {ELU.key: reason}
    profile = latency_lab.fit_profile(journal)
    (prediction,) = profile.predict([ELU])
    assert (prediction.source, prediction.high_ms) == ("bounded", float("inf"))


def test_a_profile_is_marked_as_estimated_taken_once_and_the_same_each_time(start, tmp_path):
    journals = [
        latency_lab.profile([CONV, POOL, NET], runtime=RUNTIME, journal=tmp_path / f"{k}.jsonl", start_worker=start)
        for k in range(2)
    ]
    assert journals[0].digest == journals[1].digest
    assert journals[0].protocol["rounds"] == 1
    profile = latency_lab.fit_profile(journals[0], name="ethos")
    assert profile.environment["provenance"] == "estimated"
    assert profile.environment["taken"] is None
    assert "cpu" not in profile.environment
    assert profile.runtime == RUNTIME


def test_a_file_is_measured_and_a_models_profile_predicts_it(python, tmp_path, capsys):
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = layers.Conv2D(24, 1)(x)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    model.save(tmp_path / "net.keras")
    (tmp_path / "net.tflite").write_bytes(to_tflite(model, precision="int8"))
    vela = ["--runtime", RUNTIME, "--python", python]
    assert main(["measure", str(tmp_path / "net.tflite"), *vela, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["latency_ms"] == measured["median_ms"]
    output = str(tmp_path / "p.json")
    words = ["--precision", "int8", "--model", str(tmp_path / "net.keras"), "-o", output]
    assert main(["profile", *vela, *words]) == 0
    profile = latency_lab.load_profile(output)
    predicted = latency_lab.LatencyCost(latency_lab.ChannelGraph.from_model(model), profile).at()
    assert predicted == pytest.approx(measured["latency_ms"], rel=0.1)


def small_net():
    """A residual, a depthwise convolution, and a concatenation of which something else reads an operand."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((24, 24, 3))
    x = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(24, 3, padding="same", activation="relu")(x)
    x = layers.Add()([x, layers.Conv2D(24, 3, padding="same")(y)])
    x = layers.Concatenate()([x, layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)])
    x = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("runtime", ["vela:ethos-u55-128", "vela:ethos-u85-256"])
def test_a_network_narrowed_to_a_budget_meets_it_by_vela_s_own_figure(runtime, start, tmp_path):
    model = small_net()
    graph = latency_lab.ChannelGraph.from_model(model)
    tasks = latency_lab.sweep(graph, runtime, "int8")
    journal = latency_lab.profile(
        tasks, runtime=runtime, journal=tmp_path / "j.jsonl", start_worker=lambda: start(runtime)
    )
    cost = latency_lab.LatencyCost(graph, latency_lab.fit_profile(journal))
    for target in (1.0, 0.5):
        slim = latency_lab.shrink(model, latency_lab.plan_structure(model, cost, target)) if target < 1 else model
        file = tmp_path / "slim.tflite"
        file.write_bytes(to_tflite(slim, precision="int8"))
        found = latency_lab.measure(file, runtime, start_worker=lambda: start(runtime)).statistic.latency_ms
        assert found == pytest.approx(target * cost.at(), rel=0.1)


def test_float32_is_refused_with_what_to_ask_for(tmp_path, capsys):
    assert main(["profile", "--runtime", RUNTIME, "--precision", "float32", "-o", str(tmp_path / "p.json")]) == 2
    assert "ask for precision int8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ethos-u55-128", "ethos-u55-256", "ethos-u65-512", "ethos-u85-256"])
def test_a_shipped_profile_says_that_it_is_an_estimate(name):
    profile = latency_lab.load_profile(name)
    assert profile.environment["provenance"] == "estimated"
    assert profile.environment["version"] == VERSION
    assert profile.runtime == f"vela:{name}"
    assert profile.precision == "int8"

import builtins
import json
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from latency_lab import runtimes
from latency_lab.convert import to_onnx, to_tflite
from latency_lab.errors import FileFormatError, MissingRuntimeError, UnsupportedModelError
from latency_lab.graph import ChannelGraph
from latency_lab.profiles.fusions import fused_network


def run_litert(model, inputs):
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def run_onnx(model, inputs):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {node.name: x for node, x in zip(session.get_inputs(), inputs, strict=True)})


WAYS = [pytest.param(to_tflite, run_litert, id="tflite"), pytest.param(to_onnx, run_onnx, id="onnx")]


def randomised(model):
    generator = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape) * generator.choice([1, -1], weight.shape[-1:]))
        if "variance" in weight.path:
            weight.assign(np.abs(weight))
    return model


@pytest.fixture(scope="module")
def model():
    image = keras.Input((13, 11, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.Activation("gelu")(layers.BatchNormalization()(y))
    scale = layers.GlobalAveragePooling2D(keepdims=True)(y)
    scale = layers.Conv2D(8, 1, activation="hard_sigmoid")(layers.Conv2D(2, 1, activation="silu")(scale))
    x = layers.Concatenate()([layers.Add()([x, layers.Multiply()([y, scale])]), y])
    x = layers.MaxPooling2D(3, 2, padding="same")(layers.ZeroPadding2D(((0, 1), (1, 0)))(x))
    return randomised(keras.Model(image, layers.Dense(5)(layers.Flatten()(x)), name="small"))


@pytest.mark.parametrize(("convert", "run"), WAYS)
def test_a_converted_model_answers_as_keras_does(model, convert, run):
    x = np.random.default_rng(1).normal(size=(1, 13, 11, 3)).astype(np.float32)
    expected = model(x).numpy()
    (found,) = run(convert(model), [x])
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def blocks():
    """Blocks of common networks, to be rebuilt from their operations."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.ZeroPadding2D(((0, 1), (0, 1)))(layers.Conv2D(32, 1, activation="relu")(x))
    y = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(y)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    scale = layers.GlobalAveragePooling2D(keepdims=True)(y)
    scale = layers.Conv2D(32, 1, activation="sigmoid")(layers.Conv2D(8, 1, activation="relu")(scale))
    y = layers.Conv2D(16, 1)(layers.Multiply()([y, scale]))
    x = layers.Conv2D(16, 1)(layers.MaxPooling2D(2)(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Concatenate()([x, layers.Conv2D(16, 3, padding="same", activation="silu")(x)])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 1, activation="hard_swish")(x))
    return randomised(keras.Model(image, layers.Dense(10, activation="softmax")(x), name="blocks"))


def operators(tflite):
    model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    return [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in model.subgraphs[0].operators]


def kernels(file, folder):
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    session.run(None, {node.name: np.ones(node.shape, np.float32) for node in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]


def test_a_network_of_a_model_s_operations_has_the_operators_of_the_converted_model(blocks, tmp_path):
    network = ChannelGraph.from_model(blocks).network()
    litert, ort = runtimes.get("litert"), runtimes.get("onnxruntime")
    rebuilt = litert.build(fused_network(network, litert.conversion_fusions))
    # Branches come in any order.
    assert sorted(operators(rebuilt)) == sorted(operators(to_tflite(blocks)))
    assert sorted(kernels(ort.build(network), tmp_path)) == sorted(kernels(to_onnx(blocks), tmp_path))


@pytest.mark.parametrize(("convert", "run"), WAYS)
def test_a_path_is_loaded_and_the_model_left_as_it_was(model, convert, run, tmp_path):
    before = [weight.numpy() for weight in model.weights]
    model.save(tmp_path / "small.keras")
    x = np.ones((1, 13, 11, 3), np.float32)
    (found,) = run(convert(tmp_path / "small.keras"), [x])
    np.testing.assert_allclose(found, model(x), rtol=1e-4, atol=1e-3)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))


@pytest.mark.parametrize("structure", ["list", "dict"])
@pytest.mark.parametrize(("convert", "run"), WAYS)
def test_inputs_and_outputs_keep_the_model_s_order(convert, run, structure):
    inputs = [keras.Input((3 + k,), name=name) for k, name in enumerate("zamqwertyuio")]
    joined = layers.Concatenate()(inputs)
    outputs = [layers.Dense(2 + k)(joined) for k in range(11)]
    given = inputs if structure == "list" else {tensor.name: tensor for tensor in inputs}
    model = randomised(keras.Model(given, outputs, name="many"))
    xs = [
        np.random.default_rng(k).normal(size=(1, *t.shape[1:])).astype(np.float32) for k, t in enumerate(model.inputs)
    ]
    expected = model(xs if structure == "list" else dict(zip([t.name for t in model.inputs], xs, strict=True)))
    found = run(convert(model), xs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("convert", [to_tflite, to_onnx])
def test_nothing_is_printed(model, convert, capfd):
    convert(model)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("convert", [to_tflite, to_onnx])
def test_sizes_that_are_not_fixed_are_refused(convert):
    model = keras.Sequential([keras.Input((None, None, 3), name="image"), layers.Conv2D(2, 1)], name="any_size")
    with pytest.raises(
        UnsupportedModelError, match=r"Input 'image' of the model 'any_size' has shape \(None, None, None, 3\)"
    ):
        convert(model)


def test_a_model_without_inputs_is_refused():
    with pytest.raises(UnsupportedModelError, match="has no inputs of known shape"):
        to_onnx(keras.Sequential([layers.Dense(2)]))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="Expected a Keras model or the path"):
        to_tflite(layers.Dense(2))
    with pytest.raises(FileFormatError, match="There is no file"):
        to_tflite(tmp_path / "missing.keras")
    (tmp_path / "other.keras").write_text("not a model")
    with pytest.raises(FileFormatError, match="other.keras: not a Keras model that can be loaded"):
        to_tflite(str(tmp_path / "other.keras"))


def test_a_layer_that_onnx_cannot_express_is_named():
    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.erfinv(x), name="inverse")
    with pytest.raises(UnsupportedModelError, match="cannot express Erfinv of .* in the model 'inverse'"):
        to_onnx(model)


def test_grouped_convolutions_and_what_layers_hold_are_in_the_onnx_file():
    x = keras.Input((4, 4, 8))
    normalised = layers.Normalization(mean=[float(k) for k in range(8)], variance=[2.0] * 8)(x)
    model = keras.Model(x, layers.Conv2D(8, 3, groups=2)(normalised))
    images = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(to_onnx(model))
    assert [value.name for value in session.get_inputs()] == ["args_0"]
    np.testing.assert_allclose(session.run(None, {"args_0": images})[0], model(images), rtol=1e-4, atol=1e-5)


def test_an_exported_gelu_is_standard_onnx(model):
    found = onnx.load_from_string(to_onnx(model))
    onnx.checker.check_model(found)
    assert "Erf" in {node.op_type for node in found.graph.node}


@pytest.mark.parametrize(
    ("convert", "module", "extra"),
    [(to_tflite, "tensorflow", "keras"), (to_onnx, "tf2onnx", "onnx"), (to_onnx, "keras", "keras")],
)
def test_a_missing_package_comes_with_the_command_that_installs_it(model, convert, module, extra, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingRuntimeError, match=rf'needs {module}.*pip install "latency-lab\[{extra}\]"'):
        convert(model)

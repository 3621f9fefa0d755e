"""The networks of keras.applications are rebuilt exactly: small ones of each family of trouble, and all 40 with --full.

The small ones are made of the blocks of keras.applications, few and narrow.
"""

import importlib
import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from keras.src.applications import convnext, densenet, efficientnet_v2, inception_resnet_v2, nasnet, resnet
from keras.src.applications import mobilenet_v3 as mobilenet_v3_blocks

SCRIPTS = Path(__file__).parents[2] / "scripts"
DOCS = Path(__file__).parents[2] / "docs"
SMALL = {"weights": None, "input_shape": (32, 32, 3), "classes": 10, "classifier_activation": None}


@pytest.fixture(scope="module")
def scripts():
    """Imports a script by its name."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def architectures(scripts):
    return scripts("architectures")


@pytest.fixture
def exactness(scripts):
    return scripts("exactness")


# ---- small ones ---------------------------------------------------------------------------------------------------


def mobilenet_v3():
    """Squeeze-excite of hard sigmoids, hard swish, and a classifier of 1x1 convolutions."""

    def stack(x, kernel, activation, se_ratio):
        for k, (expansion, channels, stride) in enumerate(((1, 8, 2), (4, 12, 2), (3, 12, 1))):
            x = mobilenet_v3_blocks._inverted_res_block(x, expansion, channels, kernel, stride, se_ratio, activation, k)
        return x

    return mobilenet_v3_blocks.MobileNetV3(stack, 32, **SMALL)


def efficientnet():
    """Fused and plain inverted residuals, squeeze-excite, drop connect."""
    blocks = efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"]
    few = [{**blocks[k], "num_repeat": 2, "input_filters": 32, "output_filters": 32} for k in (1, 3)]
    return efficientnet_v2.EfficientNetV2(0.4, 1.0, 32, blocks_args=few, **SMALL)


def nasnet_mobile():
    """Cells of many parallel branches of separable convolutions, cropping and concatenation."""
    image = keras.Input((32, 32, 3))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, use_bias=False)(image))
    x, p = nasnet._reduction_a_cell(x, None, 4, block_id="stem")
    x, _ = nasnet._normal_a_cell(x, p, 6, block_id="0")
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def dense_net():
    """Concatenations of concatenations."""
    return densenet.DenseNet([1, 2, 2, 1], **SMALL)


def conv_next():
    """Layer norms, layer scale, stochastic depth, a dense layer on images."""
    return convnext.ConvNeXt([1, 2, 1, 1], [8, 12, 16, 20], drop_path_rate=0.1, **SMALL)


def resnet_v2():
    """Residuals of pre-activations, shortcuts by pooling and by 1x1 convolutions."""

    def stack(x):
        x = resnet.stack_residual_blocks_v2(x, 8, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 12, 3, stride1=1, name="conv3")

    return resnet.ResNet(stack, True, True, **SMALL)


def inception_resnet():
    """Residuals that a layer of keras.applications scales and adds."""
    image = keras.Input((32, 32, 3))
    x = inception_resnet_v2.conv2d_bn(image, 320, 3, strides=2)
    for k in (1, 2):
        x = inception_resnet_v2.inception_resnet_block(x, scale=0.17, block_type="block35", block_idx=k)
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


BUILDERS = (mobilenet_v3, efficientnet, nasnet_mobile, dense_net, conv_next, resnet_v2, inception_resnet)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_small_networks_are_rebuilt_exactly(exactness, build):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    outcome, slim, _ = exactness.check(build(), seed=1)
    assert outcome.faults() == []
    assert slim.count_params() < outcome.parameters


def test_faults_are_found(exactness):
    keras.utils.clear_session()
    model = resnet_v2()
    outcome, _, images = exactness.check(model, seed=2)
    assert outcome.faults() == []
    assert not outcome.rounding_alone()
    worse = replace(outcome.narrowed, difference=2e-4)
    assert replace(outcome, narrowed=worse).rounding_alone()
    assert replace(outcome, narrowed=worse).faults() == ["masked and slim differ by 2.0e-04"]
    assert replace(outcome, control=9e-3, swaps=5).faults() == [
        "of 5 swaps of channels none changes outputs by more than 9.0e-03"
    ]
    assert not replace(outcome, control=9e-3, swaps=5).rounding_alone()
    assert replace(outcome, vanished=worse).faults() == ["masked and slim differ by 2.0e-04, branches removed"]
    assert replace(worse, difference=0.0, spread=1e-3).faults() == [
        "collapsed: outputs vary over inputs by 1.0e-03 of their size"
    ]
    wrong = replace(worse, difference=float("nan"), parameters=(5, 6), flops=(8, 7))
    assert wrong.faults() == [
        "masked and slim differ by nan",
        "5 parameters in the slim model, 6 by the cost",
        "8 FLOPs in the slim model, 7 by the cost",
    ]


def test_weights_are_all_random(exactness):
    keras.utils.clear_session()
    model = dense_net()
    graph = exactness.ChannelGraph.from_model(model)
    random = np.random.default_rng(0)
    before = model.get_weights()
    exactness.randomise(model, graph, exactness.random_structure(graph, random), random)
    for variable, old in zip(model.weights, before, strict=True):
        assert np.all(np.asarray(variable) != old), variable.path
        if variable.name == "gamma":
            size = np.abs(np.asarray(variable))
            assert size.min() >= 0.5
            assert size.max() <= 1.5


def test_results_are_of_the_code_and_not_of_what_it_says_about_itself(architectures, tmp_path, monkeypatch):
    monkeypatch.setattr(architectures, "ROOT", tmp_path)
    monkeypatch.setattr(architectures, "CHECKED", {"exact": ("a.py",), "exports": ("b.py",)})

    def digest(text, *steps):
        (tmp_path / "a.py").write_text(text)
        (tmp_path / "b.py").write_text("y = 2")
        return architectures._digest(*(steps or ("exact",)))

    plain = digest("def f():\n    return 'x'\nz = 1\n")
    assert digest('"""Of a."""\ndef f():\n    """Of f."""\n    return "x"  # x\nz = 1\n"""Of z."""') == plain
    assert digest("def f():\n    return 'y'\nz = 1\n") != plain
    assert digest("def f():\n    return 'x'\nz = 1\n", "exact", "exports") != plain


# ---- all of them --------------------------------------------------------------------------------------------------


def test_the_list_is_all_of_keras_applications(architectures):
    networks = [
        name for name, value in vars(keras.applications).items() if name[0].isupper() and inspect.isfunction(value)
    ]
    assert sorted(architectures.NETWORKS) == sorted(networks)


def test_the_document_quotes_the_results(architectures):
    results = json.loads((DOCS / "architectures.json").read_text())
    assert len(results["networks"]) >= 35
    assert list(results["networks"]) == [name for name in architectures.NETWORKS if name in results["networks"]]
    assert architectures.table(results) in (DOCS / "architectures.md").read_text()


@pytest.mark.full
@pytest.mark.parametrize("k", range(40))
def test_all_networks_are_rebuilt_exactly(architectures, k):
    assert architectures.faults(architectures.rebuilt(architectures.NETWORKS[k])) == []

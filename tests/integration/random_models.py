"""Random Keras models: a hypothesis strategy that draws a small description, and `build`, which makes the model of it.

A description is plain data, and any combination of its values builds: what does not fit (a stride where positions must
stay, a window larger than the image) is put right while building. So hypothesis shrinks it freely, and a failing
example is a line that can be pasted into a test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops


class _Short:
    """Shows what differs from the defaults."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(changed)})"


@dataclass(frozen=True, repr=False)
class Step(_Short):
    """One block of a model.

    Attributes:
        kind: name of a function of `KINDS`.
        channels: that its layers make, unless the kind says how many.
        kernel, stride, dilation, same, bias, activation: of its layers with a window.
        variant: which form of the kind, 0..11.
        extras: layers are frozen, or have a regularizer and a constraint.
        body: the blocks inside of it, which keep positions.
    """

    kind: str = "conv"
    channels: int = 2
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    same: bool = True
    bias: bool = True
    activation: str = "linear"
    variant: int = 0
    extras: bool = False
    body: tuple[Step, ...] = ()


@dataclass(frozen=True, repr=False)
class Description(_Short):
    """One model.

    Attributes:
        rank: axes of positions: 2 for images, 0 for vectors.
        size: of the first axis of positions; each further one is longer by 1.
        channels: of the input.
        inputs: 1; 2: a second one is added to the first; 3: it is concatenated; 4: it is a vector that joins the tail.
        policy: dtype policy of all layers.
        steps: blocks over positions.
        top: how positions end ("none": they stay).
        tail: blocks over vectors after that.
        last: whether a last dense layer or 1x1 convolution makes the output.
        outputs: 1; 2: a list, with a tensor from within; 3: the same as a dictionary.
    """

    rank: int = 2
    size: int = 6
    channels: int = 1
    inputs: int = 1
    policy: str = "float32"
    steps: tuple[Step, ...] = ()
    top: str = "average"
    tail: tuple[Step, ...] = ()
    last: bool = True
    outputs: int = 1


Block = Callable[["Builder", Any, Step], Any]
KINDS: dict[str, Block] = {}
"""Kind of block -> the tensor that it makes of a tensor."""
ACTIVATIONS = (
    "linear", "relu", "relu6", "silu", "gelu", "sigmoid", "tanh", "hard_sigmoid", "hard_swish", "elu", "selu",
    "leaky_relu", "softplus", "mish", "layer",
)  # fmt: skip
TOPS = ("average", "max", "flatten", "keepdims", "both", "tokens", "none")


@keras.saving.register_keras_serializable(package="random_models")
class Own(layers.Layer):  # type: ignore[misc]
    """A layer that latency-lab does not know: each channel times a weight."""

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="scale")
        self.built = True

    def call(self, inputs: Any) -> Any:
        return inputs * ops.cast(self.scale, inputs.dtype)


class Builder:
    """Makes layers of one dtype policy, and remembers the tensors between blocks."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.past: list[Any] = []
        self._count = 0

    def make(self, layer: str, *args: Any, **kwargs: Any) -> Any:
        """A layer of this class, named by its place in the model."""
        self._count += 1
        kwargs.setdefault("name", f"{layer.lower()}{self._count}")
        if self.policy != "float32":
            kwargs["dtype"] = self.policy
        return getattr(layers, layer)(*args, **kwargs)

    def at(self, layer: str, x: Any, *args: Any, **kwargs: Any) -> Any:
        """A layer of the class for the rank of x: "MaxPooling{}D" is MaxPooling2D on images."""
        return self.make(layer.format(rank_of(x)), *args, **kwargs)

    def mixing(self, x: Any, channels: int, s: Step, layer: str = "Conv{}D", **kwargs: Any) -> Any:
        """A layer that mixes the channels of x, not called yet: on vectors, dense."""
        kwargs |= {"use_bias": s.bias, "activation": _activation(s.activation), **_extras(s)}
        if not rank_of(x):
            kwargs.pop("groups", None)
            return self.make("Dense", channels, **kwargs)
        return self.at(layer, x, channels, **_window(x, s, causal=layer == "Conv{}D"), **kwargs)

    def project(self, x: Any, channels: int, activation: str = "linear") -> Any:
        """A 1x1 convolution or dense layer, called."""
        return self.mixing(x, channels, Step(bias=False, activation=activation))(x)

    def inside(self, x: Any, s: Step) -> Any:
        """The body of a block; positions stay."""
        for step in s.body:
            x = KINDS[step.kind](self, x, dataclasses.replace(step, stride=1, same=True))
        return x

    def like(self, x: Any, s: Step) -> Any:
        """The body of a block, with as many channels as x."""
        return self.project(self.inside(x, s), x.shape[-1])


def rank_of(x: Any) -> int:
    """Axes of positions of (batch, ..., channels)."""
    return len(x.shape) - 2


def _kind(function: Block) -> Block:
    KINDS[function.__name__.strip("_")] = function
    return function


def _pick(s: Step, *options: Any) -> Any:
    return options[s.variant % len(options)]


def _activation(name: str) -> Any:
    return layers.LeakyReLU(negative_slope=0.2) if name == "layer" else name


def _extras(s: Step, *names: str) -> dict[str, Any]:
    if not s.extras:
        return {}
    if s.variant % 2:
        return {"trainable": False}
    names = names or ("kernel",)
    found: dict[str, Any] = {f"{name}_regularizer": keras.regularizers.L2(0.01) for name in names}
    return {**found, f"{names[0]}_constraint": keras.constraints.MaxNorm(3.0)}


def _window(x: Any, s: Step, causal: bool = False) -> dict[str, Any]:
    """Kernel, strides, dilation and padding that fit x."""
    dilation = s.dilation if s.stride == 1 else 1
    fits = min(x.shape[1:-1]) > (s.kernel - 1) * dilation
    kernel = (s.kernel, *(1,) * (rank_of(x) - 1)) if s.variant % 4 == 3 else s.kernel
    padding = "same" if s.same or not fits else "valid"
    if rank_of(x) == 1 and s.variant == 10 and causal:
        padding = "causal"
    return {"kernel_size": kernel, "strides": s.stride, "dilation_rate": dilation, "padding": padding}


def _divisor(number: int, variant: int) -> int:
    """A divisor above 1, where there is one."""
    found = [d for d in range(2, number + 1) if number % d == 0] or [1]
    return found[variant % len(found)]


# ---- layers with kernels ----------------------------------------------------------------------------------------


@_kind
def _conv(b: Builder, x: Any, s: Step) -> Any:
    return b.mixing(x, s.channels, s)(x)


@_kind
def _block(b: Builder, x: Any, s: Step) -> Any:
    x = b.mixing(x, s.channels, dataclasses.replace(s, bias=False, activation="linear"))(x)
    return b.make("Activation", _activation(s.activation))(b.make("BatchNormalization")(x))


@_kind
def _dense(b: Builder, x: Any, s: Step) -> Any:
    return b.make("Dense", s.channels, use_bias=s.bias, activation=_activation(s.activation), **_extras(s))(x)


@_kind
def _grouped(b: Builder, x: Any, s: Step) -> Any:
    groups = _divisor(x.shape[-1], s.variant)
    return b.mixing(x, groups * max(s.channels // groups, 1), s, groups=groups)(x)


@_kind
def _depthwise(b: Builder, x: Any, s: Step) -> Any:
    """A depthwise layer, or a convolution with as many groups as channels."""
    times = s.channels % 3 + 1
    if rank_of(x) not in (1, 2) or s.variant % 3 == 2:
        return b.mixing(x, times * x.shape[-1], s, groups=x.shape[-1])(x)
    return b.at("DepthwiseConv{}D", x, depth_multiplier=times, use_bias=s.bias, activation=_activation(s.activation),
                **{**_window(x, s), "kernel_size": s.kernel}, **_extras(s, "depthwise"))(x)  # fmt: skip


@_kind
def _separable(b: Builder, x: Any, s: Step) -> Any:
    if rank_of(x) not in (1, 2):
        return _conv(b, x, s)
    return b.at("SeparableConv{}D", x, s.channels, depth_multiplier=s.variant % 3 + 1, use_bias=s.bias,
                activation=_activation(s.activation), **{**_window(x, s), "kernel_size": s.kernel},
                **_extras(s, "depthwise", "pointwise"))(x)  # fmt: skip


@_kind
def _transposed(b: Builder, x: Any, s: Step) -> Any:
    grows = rank_of(x) and max(x.shape[1:-1]) <= 8
    s = dataclasses.replace(s, dilation=1, stride=s.stride if grows else 1)
    return b.mixing(x, s.channels, s, "Conv{}DTranspose")(x)


# ---- norms and activations --------------------------------------------------------------------------------------


@_kind
def _batch_norm(b: Builder, x: Any, s: Step) -> Any:
    common = {"gamma_regularizer": "l2"} if s.extras and not s.variant % 2 else _extras(s)
    scale, center = _pick(s, (True, True), (True, True), (False, True), (True, False), (False, False))
    return b.make("BatchNormalization", axis=1 if s.variant == 11 else -1, scale=scale, center=center, **common)(x)


@_kind
def _norm(b: Builder, x: Any, s: Step) -> Any:
    """Norms over channels, or over channels and positions."""
    every = list(range(1, len(x.shape)))
    kind, options = _pick(
        s, ("LayerNormalization", {}), ("GroupNormalization", {"groups": _divisor(x.shape[-1], s.channels)}),
        ("LayerNormalization", {"scale": False}), ("GroupNormalization", {"groups": 1}),
        ("LayerNormalization", {"axis": every}), ("GroupNormalization", {"groups": -1, "center": False}),
        ("RMSNormalization", {}), ("UnitNormalization", {}), ("LayerNormalization", {"center": False}),
    )  # fmt: skip
    if kind == "GroupNormalization" and not rank_of(x):
        kind, options = "LayerNormalization", {}
    return b.make(kind, **options)(x)


@_kind
def _activate(b: Builder, x: Any, s: Step) -> Any:
    """Layers without a kernel that work on each value, and softmax."""
    positions = list(range(1, len(x.shape) - 1))
    make = _pick(
        s, lambda: b.make("Activation", _activation(s.activation)), lambda: b.make("ReLU"), lambda: b.make("LeakyReLU"),
        lambda: b.make("PReLU", shared_axes=positions or None), lambda: b.make("ReLU", max_value=6.0),
        lambda: b.make("ReLU", negative_slope=0.1, threshold=0.2), lambda: b.make("ELU"), lambda: b.make("PReLU"),
        lambda: b.make("Softmax"), lambda: ops.silu, lambda: ops.abs, lambda: b.make("Activation", "softmax"),
    )  # fmt: skip
    if x.shape[-1] == 1 and s.variant in (8, 11):  # Keras warns of a softmax of one value
        return ops.tanh(x)
    return make()(x)


# ---- several branches -------------------------------------------------------------------------------------------


@_kind
def _residual(b: Builder, x: Any, s: Step) -> Any:
    y = b.like(x, s)
    join = _pick(
        s, lambda: b.make("Add")([x, y]), lambda: x + y, lambda: b.make("Add")([y, x, b.project(x, x.shape[-1])]),
        lambda: b.make("ReLU")(b.make("Add")([y, x])), lambda: b.make("Add")([x, x, y]), lambda: 0.5 * x + y,
        lambda: b.make("Multiply")([x, y]), lambda: x - y, lambda: b.make("Maximum")([x, y]),
        lambda: b.make("Average")([y, x]), lambda: (x + 1.0) * y, lambda: b.make("Add")([y, y]),
    )  # fmt: skip
    return join()


@_kind
def _concat(b: Builder, x: Any, s: Step) -> Any:
    y = b.project(b.inside(x, s), s.channels)
    tensors = _pick(
        s, lambda: [x, y], lambda: [b.inside(x, s), y], lambda: [y, x, b.project(x, 3, "relu")], lambda: [y, y],
        lambda: [b.project(x, 2), b.inside(y, s), y], lambda: [x, x],
    )()  # fmt: skip
    if s.variant == 11 and rank_of(x):
        return b.make("Concatenate", axis=1)([x, x])
    return b.make("Concatenate", axis=len(x.shape) - 1 if s.variant > 5 else -1)(tensors)


@_kind
def _concat_add(b: Builder, x: Any, s: Step) -> Any:
    """A concatenation that is added to another tensor of its width, or to another concatenation."""
    y, n = b.inside(x, s), s.channels
    left = b.make("Concatenate")([b.project(y, n), b.project(x, 3, "relu")])
    if s.variant % 3 == 0:
        return b.make("Add")([left, b.project(x, n + 3)])
    if s.variant % 3 == 1:
        return b.make("Add")([b.make("Concatenate")([b.project(x, 2), b.project(y, n + 1)]), left])
    return b.make("Concatenate")([left, x]) + b.make("Concatenate")([x, left])


@_kind
def _squeeze(b: Builder, x: Any, s: Step) -> Any:
    """Squeeze and excite."""
    channels = x.shape[-1]
    if not rank_of(x):
        y = b.project(b.project(x, s.channels, "relu"), channels, "sigmoid")
    elif s.variant % 3 == 0:
        y = b.at("GlobalAveragePooling{}D", x, keepdims=True)(x)
        y = b.project(b.project(y, s.channels, "relu"), channels, "sigmoid")
    else:
        y = b.at("GlobalMaxPooling{}D" if s.variant % 3 == 2 else "GlobalAveragePooling{}D", x)(x)
        ones, dense = (1,) * rank_of(x), b.make("Dense", channels, activation="hard_sigmoid")
        before = s.variant % 2
        y = b.project(b.make("Reshape", (*ones, channels))(y) if before else y, s.channels, "relu")
        y = dense(y) if before else b.make("Reshape", (*ones, channels))(dense(y))
    return _pick(s, lambda: b.make("Multiply")([x, y]), lambda: b.make("Multiply")([y, x]), lambda: x * y,
                 lambda: b.make("Add")([x, y]))()  # fmt: skip


@_kind
def _skip(b: Builder, x: Any, s: Step) -> Any:
    """A tensor from before joins again."""
    before = [t for t in b.past if t.shape[1:-1] == x.shape[1:-1]] or [x]
    other = before[s.channels % len(before)]
    if s.variant % 2:
        return b.make("Concatenate")([x, other])
    if other.shape[-1] != x.shape[-1]:
        other = b.project(other, x.shape[-1])
    return b.make("Add")([other, x])


# ---- layers and models that are used again ------------------------------------------------------------------------


@_kind
def _shared(b: Builder, x: Any, s: Step) -> Any:
    """One layer called two or three times."""
    channels, y = x.shape[-1], b.like(x, s)
    still = dataclasses.replace(s, stride=1, same=True)
    positions = list(range(1, len(x.shape) - 1))
    layer = _pick(
        s, lambda: b.mixing(x, channels, still), lambda: b.make("BatchNormalization"),
        lambda: b.make("Dense", channels), lambda: b.mixing(x, s.channels, s),
        lambda: b.make("PReLU", shared_axes=positions or None),
        lambda: b.mixing(x, channels, still, groups=_divisor(channels, s.channels)), lambda: b.make("ReLU"),
    )()  # fmt: skip
    if s.variant % 7 == 3:  # two branches: other channels come in than go out
        return b.make("Add" if s.variant % 2 else "Concatenate")([layer(x), layer(y)])
    if s.variant % 2:
        return layer(b.make("ReLU")(layer(x)))
    return b.make("Add")([layer(layer(x)), layer(y)])


@_kind
def _nested(b: Builder, x: Any, s: Step) -> Any:
    """A model inside of the model, called once or twice."""
    first = keras.Input(x.shape[1:])
    again = {"name": "inner"} if s.variant % 2 else {}  # nested models that have a layer of the same name
    if s.variant % 3 == 0:
        last = b.mixing(x, x.shape[-1], Step())
        inner = keras.Sequential([first, b.mixing(x, s.channels, dataclasses.replace(s, stride=1, same=True)), last])
    elif s.variant % 3 == 1:
        inner = keras.Model(first, b.make("Add")([first, b.make("ReLU", **again)(b.like(first, s))]))
    else:
        second = keras.Input(x.shape[1:])
        out = b.make("Activation", "tanh", **again)(b.like(first, s))
        inner = keras.Model([first, second], [b.make("Add")([out, second]), b.project(second, s.channels)])
        y, z = inner([x, b.project(x, x.shape[-1])])
        return b.make("Concatenate")([y, z]) if s.variant % 4 else y  # a model of which one output is read
    y = inner(x, training=False) if s.variant > 5 else inner(x)
    twice = _pick(s, lambda: y, lambda: y, lambda: inner(y), lambda: inner(b.project(x, x.shape[-1])))()
    return y if twice is y else b.make("Add")([y, twice])


# ---- layers that move positions, and others -----------------------------------------------------------------------


@_kind
def _pool(b: Builder, x: Any, s: Step) -> Any:
    if not rank_of(x):
        return x
    fits = min(x.shape[1:-1]) >= s.kernel
    name = "MaxPooling{}D" if s.variant % 2 else "AveragePooling{}D"
    return b.at(name, x, s.kernel, strides=s.stride, padding="same" if s.same or not fits else "valid")(x)


@_kind
def _move(b: Builder, x: Any, s: Step) -> Any:
    """Padding, cropping and upsampling; in a body, padding that is cropped again."""
    rank, sizes = rank_of(x), x.shape[1:-1]
    if not rank:
        return x
    uneven: Any = (1, 0) if rank == 1 else ((1, 0),) * rank
    if s.same:
        y = b.at("ZeroPadding{}D", x, uneven)(x)
        return b.at("Cropping{}D", x, uneven)(y)
    small, large = max(sizes) <= 8, min(sizes) > 3
    stretch = {"interpolation": _pick(s, "nearest", "bilinear", "nearest", "bicubic")} if rank == 2 else {}
    up: Any = (2, *(1,) * (rank - 1)) if rank > 1 else 2
    return _pick(
        s, lambda: b.at("ZeroPadding{}D", x, uneven)(x),
        lambda: b.at("UpSampling{}D", x, up, **stretch)(x) if small else x,
        lambda: b.at("Cropping{}D", x, uneven)(x) if large else x, lambda: b.at("ZeroPadding{}D", x, 1)(x),
        lambda: x[:, 1:] if large else x,
    )()  # fmt: skip


@_kind
def _still(b: Builder, x: Any, s: Step) -> Any:
    """Layers that do nothing in inference, or scale."""
    spatial = "SpatialDropout{}D" if rank_of(x) else "Dropout"
    adapted = b.make("Normalization", axis=-1)
    return _pick(
        s, lambda: b.make("Dropout", 0.3), lambda: b.at(spatial, x, 0.3), lambda: b.make("Rescaling", 0.5, offset=0.1),
        lambda: _adapted(adapted, x), lambda: b.make("GaussianNoise", 0.1), lambda: b.make("Identity"),
        lambda: b.make("ActivityRegularization", l2=0.01), lambda: b.make("GaussianDropout", 0.2),
        lambda: b.make("Rescaling", [0.5 + i for i in range(x.shape[-1])]),
    )()(x)  # fmt: skip


def _adapted(layer: Any, x: Any) -> Any:
    """A Normalization layer with a state."""
    layer.adapt(np.random.default_rng(0).normal(0.3, 1.5, (8, *x.shape[1:])).astype("float32"))
    return layer


@_kind
def _foreign(b: Builder, x: Any, s: Step) -> Any:
    """Layers and operations that latency-lab knows as unknown, at best."""
    last, channels = len(x.shape) - 1, x.shape[-1]
    axes = range(1, last)
    return _pick(
        s, lambda: Own(dtype=b.policy)(x), lambda: b.make("Concatenate")(ops.split(x, [channels // 2], axis=-1)[::-1]),
        lambda: x[..., : max(channels - 1, 1)], lambda: b.make("Permute", (*axes, last)[::-1])(x),
        lambda: ops.mean(x, axis=tuple(axes), keepdims=True) + x if axes else x, lambda: ops.flip(x, axis=-1),
        lambda: ops.roll(x, 1, axis=1), lambda: b.make("Reshape", x.shape[1:])(x),
        lambda: b.make("Reshape", (*x.shape[2:], x.shape[1]))(x), lambda: _attended(b, x, s),
        lambda: b.make("EinsumDense", "...a,ab->...b", output_shape=(s.channels,))(x),
        lambda: ops.matmul(x, ops.swapaxes(x, -1, -2)) if axes else x,
    )()  # fmt: skip


def _attended(b: Builder, x: Any, s: Step) -> Any:
    if rank_of(x) != 1:
        return x
    return b.make("Add")([x, b.make("MultiHeadAttention", 2, s.channels)(x, x)])


@_kind
def _tokens(b: Builder, x: Any, s: Step) -> Any:
    """Positions in a row, and back."""
    if rank_of(x) < 2:
        return _dense(b, x, s)
    y = b.make("Reshape", (int(np.prod(x.shape[1:-1])), x.shape[-1]))(x)
    y = b.make("Reshape", (-1, x.shape[-1]))(x) if s.variant % 2 else y
    y = b.make("LayerNormalization")(y) if s.variant % 3 == 2 else b.mixing(y, s.channels, Step(kernel=s.kernel))(y)
    return b.make("Reshape", (*x.shape[1:-1], y.shape[-1]))(y)


# ---- models -----------------------------------------------------------------------------------------------------


def build(d: Description) -> Any:
    """The Keras model of a description."""
    b = Builder(d.policy if d.rank < 3 else "float32")  # TensorFlow pools no volumes of float16
    sizes = [d.size + i if d.rank < 3 else 3 + i for i in range(d.rank)]
    inputs = [keras.Input((*sizes, d.channels), name="first")]
    x, vector = inputs[0], None
    if d.inputs > 1:
        inputs.append(keras.Input((3,) if d.inputs == 4 else (*sizes, 2), name="second"))
        vector = inputs[1] if d.inputs == 4 else None
    if d.inputs == 2:
        x = b.make("Add")([b.project(x, 3), b.project(inputs[1], 3)])
    elif d.inputs == 3:
        x = b.make("Concatenate")(inputs)
    x = _run(b, x, d.steps)
    x = _top(b, x, d.top)
    if vector is not None and not rank_of(x):
        x = b.make("Concatenate")([x, vector])
    x = _run(b, x, d.tail if not rank_of(x) else ())
    outputs = [b.project(x, 4) if d.last else b.make("Identity")(x)]
    if d.outputs > 1 and b.past:
        outputs.append(b.past[len(b.past) // 2])
    named = dict(zip(("main", "within"), outputs, strict=False))
    used = inputs if vector is None or not rank_of(x) else inputs[:1]
    return keras.Model(used if len(used) > 1 else used[0], named if d.outputs == 3 else outputs if d.outputs > 1 else
                       outputs[0], name="drawn")  # fmt: skip


def _run(b: Builder, x: Any, steps: tuple[Step, ...]) -> Any:
    for step in steps:
        x = KINDS[step.kind](b, x, step)
        b.past.append(x)
    return x


def _top(b: Builder, x: Any, top: str) -> Any:
    if not rank_of(x) or top == "none":
        return x
    if top == "flatten":
        return b.make("Flatten")(x)
    if top == "tokens":
        x = b.make("Reshape", (int(np.prod(x.shape[1:-1])), x.shape[-1]))(x)
        return b.make("GlobalAveragePooling1D")(b.make("Dense", 5, activation="gelu")(x))
    average = b.at("GlobalAveragePooling{}D", x, keepdims=top == "keepdims")(x)
    if top == "keepdims":
        return b.make("Flatten")(b.project(average, 5, "relu"))
    largest = b.at("GlobalMaxPooling{}D", x)(x)
    return {"average": average, "max": largest}[top] if top != "both" else b.make("Concatenate")([largest, average])


# ---- drawing ----------------------------------------------------------------------------------------------------

_FLAT = ("conv", "block", "dense", "batch_norm", "norm", "activate", "residual", "concat", "concat_add", "squeeze",
         "skip", "shared", "nested", "still", "foreign")  # fmt: skip
_IN_BODY = ("conv", "block", "depthwise", "grouped", "separable", "batch_norm", "activate", "squeeze", "dense", "norm",
            "still", "move", "residual", "nested", "transposed")  # fmt: skip
_USUAL = ("conv", "block", "residual", "shared", "nested")


def _step(draw: Any, kinds: tuple[str, ...], body: bool) -> Step:
    """One block; `body`: it may have blocks inside."""
    kind = draw(st.sampled_from(kinds))
    inner = body and kind in {"residual", "concat", "concat_add", "shared", "nested"}
    return Step(
        kind=kind,
        channels=draw(st.integers(2, 9)),
        kernel=draw(st.integers(1, 3)),
        stride=draw(st.integers(1, 2)),
        dilation=draw(st.integers(1, 2)),
        same=draw(st.booleans()),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        variant=draw(st.integers(0, 11)),
        extras=draw(st.integers(0, 3)) == 3,
        body=tuple(_step(draw, _IN_BODY, False) for _ in range(draw(st.integers(0, 2)))) if inner else (),
    )


@st.composite
def descriptions(draw: Any) -> Description:
    """Small models: images mostly, also signals, volumes and vectors."""
    rank = draw(st.sampled_from((2, 2, 2, 2, 2, 1, 3, 0)))
    kinds = (*_USUAL, *KINDS) if rank else (*_USUAL, *_FLAT)
    return Description(
        rank=rank,
        size=draw(st.integers(5, 9)),
        channels=draw(st.integers(1, 4)),
        inputs=draw(st.sampled_from((1, 1, 1, 2, 3, 4))),
        policy=draw(st.sampled_from(("float32",) * 7 + ("mixed_float16",))),
        steps=tuple(_step(draw, kinds, True) for _ in range(draw(st.integers(1, 4)))),
        top=draw(st.sampled_from(TOPS)),
        tail=tuple(_step(draw, (*_USUAL, *_FLAT), False) for _ in range(draw(st.integers(0, 1)))),
        last=draw(st.integers(0, 4)) < 4,
        outputs=draw(st.sampled_from((1, 1, 1, 2, 3))),
    )

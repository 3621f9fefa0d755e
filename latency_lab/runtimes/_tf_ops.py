"""How each kind of operation looks in a TensorFlow graph that a Keras model was frozen to, one small method a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from latency_lab.errors import UsageError
from latency_lab.ops import GLOBAL_POOLS, RESIZES, OpConfig
from latency_lab.runtimes import base

Tensor = Any

_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": tf.add,
    "subtract": tf.subtract,
    "multiply": tf.multiply,
    "divide": tf.divide,
    "maximum": tf.maximum,
    "minimum": tf.minimum,
    "squared_difference": tf.math.squared_difference,
}
_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "leaky_relu": lambda x: tf.nn.leaky_relu(x, base.LEAKY_SLOPE),
    "elu": tf.nn.elu,
    "selu": tf.nn.selu,
    "sigmoid": tf.sigmoid,
    "hard_sigmoid": lambda x: _hard_sigmoid(x),
    "tanh": tf.tanh,
    "hard_swish": lambda x: x * _hard_sigmoid(x),
    "silu": tf.nn.silu,
    "gelu": lambda x: tf.nn.gelu(x, approximate=False),
    "softplus": tf.math.softplus,
    "exponential": tf.exp,
    "log": tf.math.log,
    "sqrt": tf.sqrt,
    "rsqrt": tf.math.rsqrt,
    "square": tf.square,
    "abs": tf.abs,
    "negative": tf.negative,
    "erf": tf.math.erf,
}
"""prelu has weights, and is a method."""


class Node:
    """One node of a network while it is written into the graph that is being built.

    Args:
        op: what it does.
        index: of the node in its network.
        shape: of its output.
    """

    def __init__(self, op: OpConfig, index: int, shape: base.Shape) -> None:
        self._op = op
        self._index = index
        self._shape = shape

    def emit(self, operands: list[Tensor]) -> Tensor:
        """Write the operators of this node; its output tensor, of the node's shape."""
        op = self._op
        residual = [operands.pop()] if op.residual else []
        output = self._kind(operands)
        for other in residual:
            output = tf.add(output, other)
        if op.kind != "activation" and op.activation is not None:
            output = self._activate(output, op.activation)
        return output

    def _kind(self, operands: list[Tensor]) -> Tensor:
        kind = self._op.kind
        if kind in _BINARY:
            return self._binary(operands)
        if kind in GLOBAL_POOLS:
            return self._global_pool(operands[0])
        if kind in RESIZES:
            return self._resize(operands[0])
        if kind == "concatenate":
            return tf.concat(operands, axis=-1)
        if kind in {"flatten", "reshape"}:
            return tf.reshape(operands[0], self._shape)
        return getattr(self, f"_{kind}")(operands[0])

    # ---- kernels ----------------------------------------------------------------------------------------------

    def _conv2d(self, data: Tensor) -> Tensor:
        op = self._op
        kernel = self._kernel().transpose(1, 2, 3, 0)
        return self._biased(self._convolution(data, kernel, op.strides, op.dilation))

    def _conv3d(self, data: Tensor) -> Tensor:
        op = self._op
        kernel = self._kernel().transpose(1, 2, 3, 4, 0)
        return self._biased(self._convolution(data, kernel, (op.stride_depth, *op.strides), (1, *op.dilation)))

    def _convolution(
        self, data: Tensor, kernel: base.Array, strides: tuple[int, ...], dilations: tuple[int, ...]
    ) -> Tensor:
        data, padding = self._padded(data)

        def convolve() -> Tensor:
            return tf.nn.convolution(data, tf.constant(kernel), strides, padding, dilations=dilations)

        # Keras compiles a grouped convolution by XLA, and so a frozen model holds it as a call of a compiled function.
        return tf.function(convolve, jit_compile=True)() if self._op.groups > 1 else convolve()

    def _depthwise_conv2d(self, data: Tensor) -> Tensor:
        op = self._op
        data, padding = self._padded(data)
        kernel = self._kernel().reshape(*op.kernel_size, op.in_channels, op.out_channels // op.in_channels)
        strides = (1, *op.strides, 1)
        return self._biased(tf.nn.depthwise_conv2d(data, kernel, strides, padding, dilations=op.dilation))

    def _conv2d_transpose(self, data: Tensor) -> Tensor:
        op = self._op
        (top, _), (left, _) = op.pads
        # TensorFlow's kernel is that of the convolution whose gradient this is: [rows, columns, out, in].
        kernel = self._kernel().transpose(1, 2, 0, 3)
        if op.padding == "same":
            return self._biased(tf.nn.conv2d_transpose(data, kernel, self._shape, op.strides, "SAME"))
        rows, columns = (
            size * stride + max(window - stride, 0)
            for size, stride, window in zip((op.height, op.width), op.strides, op.kernel_size, strict=True)
        )
        whole = (op.batch, rows, columns, op.out_channels)
        output = tf.nn.conv2d_transpose(data, kernel, whole, op.strides, "VALID")
        if whole != self._shape:
            output = tf.slice(output, (0, top, left, 0), self._shape)
        return self._biased(output)

    def _dense(self, data: Tensor) -> Tensor:
        kernel = self._kernel().T
        product = tf.matmul(data, kernel) if len(self._shape) == 2 else tf.tensordot(data, kernel, axes=1)
        return self._biased(product)

    # ---- kinds without a kernel of weights --------------------------------------------------------------------

    def _activation(self, data: Tensor) -> Tensor:
        if self._op.activation is None:
            raise UsageError(f"An activation operation names what it does. Received: {self._op!r}")
        return self._activate(data, self._op.activation)

    def _binary(self, operands: list[Tensor]) -> Tensor:
        op = self._op
        output, *others = operands if op.operands > 1 else [*operands, base.operand(op, self._index)]
        for other in others:
            if op.broadcast == "channels" and op.operands > 1:
                other = self._one_position(other)
            output = _BINARY[op.kind](output, other)
        return output

    def _batch_norm(self, data: Tensor) -> Tensor:
        return data * base.scale(self._op, self._index) + base.bias(self._op, self._index)

    def _layer_norm(self, data: Tensor) -> Tensor:
        mean, variance = tf.nn.moments(data, axes=[-1], keepdims=True)
        inverse = tf.math.rsqrt(variance + base.NORM_EPSILON) * base.scale(self._op, self._index)
        return data * inverse + (-mean * inverse + base.bias(self._op, self._index))

    def _group_norm(self, data: Tensor) -> Tensor:
        groups = self._op.groups
        sizes = (*self._shape[:-1], groups, self._shape[-1] // groups)
        grouped = tf.reshape(data, sizes)
        axes = [axis for axis in range(1, len(sizes)) if axis != len(sizes) - 2]
        mean, variance = tf.nn.moments(grouped, axes, keepdims=True)
        scale, bias = (v(self._op, self._index).reshape(sizes[-2:]) for v in (base.scale, base.bias))
        normal = tf.nn.batch_normalization(grouped, mean, variance, bias, scale, base.NORM_EPSILON)
        return tf.reshape(normal, self._shape)

    def _local_response_norm(self, data: Tensor) -> Tensor:
        alpha = base.RESPONSE_ALPHA / base.RESPONSE_SIZE
        return tf.nn.local_response_normalization(
            data, base.RESPONSE_SIZE // 2, base.RESPONSE_BIAS, alpha, base.RESPONSE_BETA
        )

    def _max_pool(self, data: Tensor) -> Tensor:
        return tf.nn.max_pool2d(data, self._op.kernel_size, self._op.strides, self._padding())

    def _avg_pool(self, data: Tensor) -> Tensor:
        return tf.nn.avg_pool2d(data, self._op.kernel_size, self._op.strides, self._padding())

    def _global_pool(self, data: Tensor) -> Tensor:
        reduce = tf.reduce_mean if self._op.kind == "global_avg_pool" else tf.reduce_max
        axes = list(range(1, len(data.shape) - 1))
        return reduce(data, axes, keepdims=len(self._shape) > 2)

    def _channel_mean(self, data: Tensor) -> Tensor:
        return tf.reduce_mean(data, axis=-1, keepdims=True)

    def _softmax(self, data: Tensor) -> Tensor:
        return tf.nn.softmax(data)

    def _resize(self, data: Tensor) -> Tensor:
        op = self._op
        size = (op.output_height, op.output_width)
        if op.kind == "resize_bilinear":
            return tf.raw_ops.ResizeBilinear(images=data, size=size, half_pixel_centers=True)
        if any(new % old for new, old in zip(size, (op.height, op.width), strict=True)):
            return tf.raw_ops.ResizeNearestNeighbor(images=data, size=size, half_pixel_centers=True)
        return tf.repeat(tf.repeat(data, size[0] // op.height, axis=1), size[1] // op.width, axis=2)

    def _slice(self, data: Tensor) -> Tensor:
        return tf.slice(data, [0] * len(self._shape), self._shape)

    def _pad(self, data: Tensor) -> Tensor:
        return self._pad_by(data)

    def _transpose(self, data: Tensor) -> Tensor:
        return tf.transpose(data, (0, 3, 1, 2))

    def _channel_shuffle(self, data: Tensor) -> Tensor:
        groups, channels = self._op.groups, self._op.in_channels
        split = tf.reshape(data, (*self._shape[:-1], groups, channels // groups))
        rank = len(self._shape) + 1
        return tf.reshape(tf.transpose(split, (*range(rank - 2), rank - 1, rank - 2)), self._shape)

    # ---- parts ------------------------------------------------------------------------------------------------

    def _activate(self, data: Tensor, name: str) -> Tensor:
        if name == "prelu":  # as Keras writes it
            return tf.nn.relu(data) - base.slopes(self._op, self._index) * tf.nn.relu(-data)
        return _ACTIVATIONS[name](data)

    def _kernel(self) -> base.Array:
        return base.kernel(self._op, self._index)

    def _biased(self, data: Tensor) -> Tensor:
        return tf.nn.bias_add(data, base.bias(self._op, self._index)) if self._op.use_bias else data

    def _padding(self) -> str:
        return "SAME" if self._op.padding == "same" else "VALID"

    def _padded(self, data: Tensor) -> tuple[Tensor, str]:
        """Input of a conv and its padding word: given counts are an operator of their own, as a Keras layer's are."""
        if any(map(any, self._op.pads)) and self._op.padding != "same":
            data = self._pad_by(data)
        return data, self._padding()

    def _pad_by(self, data: Tensor) -> Tensor:
        return tf.pad(data, ((0, 0), *self._op.pads, (0, 0)))

    def _one_position(self, data: Tensor) -> Tensor:
        """(batch, channels), or that with positions of one, in a form that multiplies an image channel by channel."""
        op = self._op
        ones = (1,) * (len(self._shape) - 2)
        return data if len(data.shape) > 2 else tf.reshape(data, (op.batch, *ones, op.in_channels))


def _hard_sigmoid(x: Tensor) -> Tensor:
    return tf.nn.relu6(x + 3.0) / 6.0

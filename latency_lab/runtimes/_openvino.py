"""What OpenVINO's CPU plugin makes of a network: which operations it merges, and where it computes channels last.

It computes float32 convolutions channels last, as a Keras model has its images, and takes the Transposes that an export
puts around them for other names of the same bytes. A Transpose costs only where channels first are asked for, as at the
ends of a model of one operation that is written channels first: there each tensor was moved twice.

A convolution or a dense layer takes along whatever function of one number comes behind it; sums, products and scales of
channels take one along as well. It also adds a residual, in the residual's own memory. An operation alone cannot show
what that costs, since OpenVINO first copies what it may not write on, so a sum is priced as the operation that it is.
Behind two convolutions it does not show it either: a sum that is a model's output is moved twice. A reshape is nothing
but another name.

A pooling takes the layout of its input. Alone it is given channels first and takes more than twice as long, and a pad
or a crop alone is left to another provider: so they stand behind a convolution, whose own time is taken off.

Source: the models that version 2025.4 makes of networks (`CompiledModel.get_runtime_model`), on a CPU with AVX-512.
"""

from __future__ import annotations

from latency_lab.ops import GLOBAL_POOLS, KINDS, POOLS, RESIZES, OpConfig

PROVIDER = "OpenVINOExecutionProvider"
_CONVS = ("conv2d", "depthwise_conv2d")
_TAKEN_ALONG = (
    "relu",
    "relu6",
    "prelu",
    "leaky_relu",
    "elu",
    "sigmoid",
    "hard_sigmoid",
    "tanh",
    "hard_swish",
    "silu",
    "gelu",
)
FUSIONS = frozenset(
    [f"{kind}+{what}" for kind in (*_CONVS, "conv3d", "conv2d_transpose", "dense") for what in _TAKEN_ALONG]
    + [f"{kind}+{what}" for kind in ("add", "multiply", "batch_norm") for what in _TAKEN_ALONG]
    + [f"pad+{kind}" for kind in (*_CONVS, "avg_pool")]
    + [f"transpose+{kind}" for kind in KINDS]
    + [f"{kind}+{what}" for kind in KINDS for what in ("reshape", "flatten")]
    + ["scale+shift"]
)
"""Rules of `profiles.fusions`."""
_BEHIND_A_CONVOLUTION = POOLS | GLOBAL_POOLS | RESIZES | {"pad", "slice"}


def context_of(op: OpConfig) -> OpConfig | None:
    """The smallest convolution that makes the input of an operation that takes its layout; None for others.

    Example:
        >>> from latency_lab.ops import OpConfig
        >>> from latency_lab.runtimes._openvino import context_of
        >>> context_of(OpConfig("max_pool", height=8, width=8, in_channels=4, out_channels=4)).key
        'conv2d 8x8 k1x1 s1x1 same bias float32 1->4'
    """
    if op.kind not in _BEHIND_A_CONVOLUTION or op.depth > 1 or op.height * op.width == 1:
        return None
    return OpConfig("conv2d", op.batch, op.height, op.width, 1, op.in_channels, dtype=op.dtype)

"""What OpenVINO's CPU plugin makes of a network: which operations it merges, and where it computes channels last.

It computes float32 convolutions channels last, as a Keras model has its images, and takes the Transposes that an export
puts around them for other names of the same bytes. A Transpose costs only where channels first are asked for, as at the
ends of a model of one operation that is written channels first: there each tensor was moved twice.

A convolution or a dense layer takes along whatever function of one number comes behind it; sums, products and scales of
channels take one along as well. It also adds a residual, in the residual's own memory. An operation alone cannot show
what that costs, since OpenVINO first copies what it may not write on, so a sum is priced as the operation that it is. A
reshape is nothing but another name.

Source: the models that version 2025.4 makes of networks (`CompiledModel.get_runtime_model`), on a CPU with AVX-512.
"""

from __future__ import annotations

from latency_lab.ops import KINDS

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
)
"""Rules of `profiles.fusions`."""

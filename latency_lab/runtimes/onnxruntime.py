"""ONNX Runtime: graphs as `keras.Model.export(format="onnx")` writes them, channels first inside: float32, 8-bit, or
float16 for providers other than the CPU's."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from latency_lab.errors import UsageError
from latency_lab.extras import missing
from latency_lab.half import half_onnx
from latency_lab.ops import CASTS, REORDERS, Network, OpConfig
from latency_lab.runtimes import _openvino, base, worker
from latency_lab.runtimes.base import INPUT_TRANSPOSE

_REORDER_STEP = 4
"""Only images of a multiple of this many channels are reordered."""
_CONVS = ("conv2d", "depthwise_conv2d")
_PROVIDER = "ExecutionProvider"
_NO_HALF_ON_CPU = (
    "ONNX Runtime's CPU provider computes float16 models in float32, between casts. Ask for precision float32, or name "
    "another provider: onnxruntime:cuda, onnxruntime:webgpu, ..."
)


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """Builds .onnx files.

    **Provider.** All that follows but the form of networks is of the CPU's. Another provider's time is that of the
    call, so the model of a lone operation has nothing around it: images come and go channels first. OpenVINO computes
    channels last on a CPU, so there they come and go channels last, with Transposes that cost nothing, as in a network;
    and what takes the layout of its input stands behind a convolution (`_openvino`).

    **Layout.** The model of a lone float32 operation takes and gives images channels first; a "transpose" takes them
    channels last, and so do the kinds in `_onnx_graph.CHANNELS_LAST`, which give them so too. A network of several,
    and a lone 8-bit operation, takes and gives images channels last, with a Transpose at each input and output that
    something reads or makes channels first, as an exported Keras model does.

    **Names.** A node's operators are "op{i}" and "op{i}_...". What is in the graph only to put the operation into its
    surroundings is "context_...": the transposes above, and, in the model of a lone operation whose kernels depend on
    it, a convolution that makes its input in ONNX Runtime's blocked layout. Those are a residual (added inside the
    convolution only where it is blocked already), a batch norm (a convolution where its input is blocked), and a
    flatten (the Transpose before it is then part of the reorder). Such an input is (batch, 1, height, width), not
    negative, and each channel that the operation reads is equal to it.

    **After it.** A lone operation is followed by "context_end", which changes nothing: in a profile, an operation ends
    where the next kernel begins. It reads a chain of small "context_reference" kernels (`worker.KernelOverhead`).

    **Reorders.** The model of a lone "reorder_input" or "reorder_output" is a pooling of the context, which ONNX
    Runtime puts reorders around; the model's metadata says which one counts.

    **8-bit.** Graphs as `onnxruntime.quantization.quantize_static` writes them (`_onnx_qdq.QuantisedWriter`); inputs
    and outputs of the file are uint8 where the operation there is int8. An operation that has no integer kernel runs
    in float32 between casts, and its time is that of all three.

    **Kernel times.** `worker.OnnxRuntimeModel` tells which kernels count by these names.

    Attributes:
        provider: the execution provider with its options, "CUDAExecutionProvider,device_id=1"; "" for the CPU's.

    Example:
        >>> from latency_lab import runtimes
        >>> from latency_lab.ops import Network, OpConfig
        >>> op = OpConfig("conv2d", height=8, width=8, in_channels=4, out_channels=8, activation="relu")
        >>> b"op0_relu" in runtimes.get("onnxruntime").build(Network.of(op))
        True
        >>> runtimes.get("onnxruntime:cuda").name
        'onnxruntime:CUDAExecutionProvider'
    """

    provider: str = ""

    suffix = ".onnx"
    conversion_fusions = frozenset({"conv2d+batch_norm", "depthwise_conv2d+batch_norm", INPUT_TRANSPOSE})
    expected_fusions = frozenset(
        [f"{kind}+{second}" for kind in _CONVS for second in ("relu", "relu6", "sigmoid", "tanh", "leaky_relu", "add")]
        + [f"conv3d+{second}" for second in ("relu", "relu6", "sigmoid", "tanh", "leaky_relu")]
        + [f"dense+{activation}" for activation in ("relu", "sigmoid", "tanh", "leaky_relu", "elu")]
        + [f"pad+{kind}" for kind in ("conv2d", "depthwise_conv2d", "avg_pool")]
    )

    @property
    def name(self) -> str:
        """ "onnxruntime", with ":" and the provider where it is not the CPU's."""
        return f"onnxruntime:{self.provider}" if self.provider else "onnxruntime"

    @property
    def times_kernels(self) -> bool:
        """On the CPU."""
        return not self.provider

    @property
    def pays_for_calls(self) -> bool:
        """On all others."""
        return bool(self.provider)

    @property
    def _on_openvino(self) -> bool:
        """Whether it is OpenVINO on a CPU; what it does elsewhere was not seen."""
        provider, options = worker.device_and_options(self.provider)
        return provider == _openvino.PROVIDER and options.get("device_type", "CPU").startswith("CPU")

    def on(self, device: str) -> OnnxRuntime:
        """The same runtime on an execution provider.

        Args:
            device: "cuda", "CUDAExecutionProvider", "openvino,device_type=GPU", ...: a provider's name in full or
                without its end, and options of the provider.

        Raises:
            UsageError: this names no provider.
        """
        given, options = base.device_and_options("onnxruntime", device)
        provider = worker.provider_of(given)
        if not provider.endswith(_PROVIDER):
            known = sorted(name.removesuffix(_PROVIDER).lower() for name in worker.PROVIDER_PACKAGES)
            near = difflib.get_close_matches(given.lower(), known, n=1)
            hint = f" Did you mean 'onnxruntime:{near[0]}'?" if near else ""
            raise UsageError(
                f"Invalid device in runtime=onnxruntime:{device}. Expected cpu, {', '.join(known)}, or the full "
                f"name of another execution provider. Received: {given!r}.{hint}"
            )
        if provider == "CPUExecutionProvider":
            return OnnxRuntime()
        return OnnxRuntime(worker.device_name(provider, options))

    def build(self, network: Network) -> bytes:
        """Bytes of an .onnx file of this network, inputs and outputs in the network's order.

        Raises:
            UnsupportedOpError: an operation cannot be built.
            UsageError: the nodes do not fit together.
            MissingRuntimeError: onnx is not installed.
        """
        base.check(self, network)
        try:
            from latency_lab.runtimes import _onnx_bare, _onnx_graph
        except ModuleNotFoundError as error:
            raise missing(error, "An ONNX file") or error from error
        if not self.provider:
            return _onnx_graph.build(network)
        whole = base.in_context(self, network)
        if base.in_float16(network):
            return half_onnx(_onnx_bare.build(whole.of_type("float32"), self._on_openvino))
        return _onnx_bare.build(whole, self._on_openvino)

    def contexts_of(self, op: OpConfig) -> tuple[OpConfig, ...]:
        """On OpenVINO, a convolution before what takes the layout of its input."""
        context = _openvino.context_of(op) if self._on_openvino else None
        return () if context is None else (context,)

    def reason_unsupported(self, op: OpConfig) -> str | None:
        """None if the operation can be built, else why not, in a sentence."""
        if op.dtype == "float16" and not self.provider:
            return _NO_HALF_ON_CPU
        if op.dtype not in {"float32", "float16", "int8"}:
            return f"only float32, float16 and int8 models are built, this is {op.dtype}."
        if self.provider and op.dtype == "int8":
            return "8-bit operations are built for the CPU; on another provider, .onnx files of 8 bits can be measured."
        if self.provider and op.kind in REORDERS:
            return "only the CPU has a blocked layout to reorder to."
        if op.kind in CASTS and op.dtype != "int8":
            return f"a {op.kind} has the dtype of its 8-bit side, int8; this is {op.dtype}."
        if op.kind in REORDERS and op.dtype == "int8":
            return "8-bit operators have no blocked layout to reorder to."
        if op.kind in REORDERS and op.in_channels % _REORDER_STEP:
            return f"images are reordered only at multiples of {_REORDER_STEP} channels."
        if op.kind == "conv2d_transpose" and op.groups > 1:
            return "transposed convolutions of several groups are not built."
        if op.kind == "avg_pool" and op.dilation != (1, 1):
            return "the ONNX of Keras' exports has no average pooling that is dilated."
        return base.reason_of_groups(op) or base.reason_of_depth(op)

    def fusions(self, precision: str) -> tuple[frozenset[str], frozenset[str]]:
        """Merges before and on loading (`conversion_fusions`, `expected_fusions`) of models of this precision.

        An 8-bit operator does the work of a ReLU behind it when it rounds its output, and merges nothing else. OpenVINO
        has rules of its own.

        Raises:
            UsageError: of float16 on the CPU.

        Example:
            >>> from latency_lab import runtimes
            >>> "conv2d+relu" in runtimes.get("onnxruntime").fusions("int8")[0]
            True
        """
        if precision == "float16" and not self.provider:
            raise UsageError(f"onnxruntime: {_NO_HALF_ON_CPU}")
        if precision != "int8" and self._on_openvino:
            return self.conversion_fusions - {INPUT_TRANSPOSE}, _openvino.FUSIONS
        if precision != "int8":
            return self.conversion_fusions, self.expected_fusions
        rounded = {f"{kind}+{activation}" for kind in _ROUNDED for activation in ("relu", "relu6")}
        padded = {f"pad+{kind}" for kind in (*_CONVS, "avg_pool")}
        return self.conversion_fusions | rounded | padded, frozenset()


_ROUNDED = (
    *_CONVS,
    "conv3d",
    "conv2d_transpose",
    "dense",
    "batch_norm",
    "add",
    "multiply",
    "concatenate",
    "global_avg_pool",
)
"""Kinds whose output is rounded to 8 bits whatever comes before them."""

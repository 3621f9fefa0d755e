"""The ONNX graph of a network, that of a lone operation with nothing around it: for providers that time whole calls."""

from __future__ import annotations

from latency_lab.ops import Network
from latency_lab.runtimes._onnx_graph import _Graph


def build(network: Network) -> bytes:
    """Bytes of the .onnx file of a float32 network that can be built (`OnnxRuntime.build`)."""
    graph = _BareGraph(network)
    for i in range(len(network.nodes)):
        graph.add(i)
    return graph.to_bytes()


class _BareGraph(_Graph):
    """Without the context that tells the CPU's kernels apart."""

    def _is_blocked(self, source: int) -> bool:
        return False

    def _followed(self, name: str) -> str:
        return name

"""The ONNX graph of a network, that of a lone operation with nothing around it: for providers that time whole calls."""

from __future__ import annotations

from latency_lab.ops import Network
from latency_lab.runtimes._onnx_graph import _Graph


def build(network: Network, channels_last: bool = False) -> bytes:
    """Bytes of the .onnx file of a float32 network that can be built (`OnnxRuntime.build`).

    Args:
        network: to write.
        channels_last: whether the images of a lone operation come and go channels last, as those of a network do.
    """
    graph = _BareGraph(network, lone=len(network.nodes) == 1 and not channels_last)
    for i in range(len(network.nodes)):
        graph.add(i)
    return graph.to_bytes()


class _BareGraph(_Graph):
    """Without the context that tells the CPU's kernels apart: one operation is written as a network of one."""

    def __init__(self, network: Network, lone: bool = False) -> None:
        super().__init__(network, lone)

    def _is_blocked(self, source: int) -> bool:
        return False

    def _followed(self, name: str) -> str:
        return name

"""The ONNX graph of a network, that of a lone operation with nothing around it: for providers that time whole calls."""

from __future__ import annotations

from latency_lab.ops import Network
from latency_lab.runtimes._onnx_graph import CHANNELS_FIRST, LAST, _Graph


def build(network: Network, channels_last: bool = False) -> bytes:
    """Bytes of the .onnx file of a float32 network that can be built (`OnnxRuntime.build`).

    Args:
        network: to write.
        channels_last: whether the images of a lone operation come and go channels last, as those of a network do.
    """
    graph = _BareGraph(network, channels_last)
    for i in range(len(network.nodes)):
        graph.add(i)
    return graph.to_bytes()


class _BareGraph(_Graph):
    """Without the context that tells the CPU's kernels apart.

    Channels last, a lone operation is written as a network of one, or works on channels that are last where it can.
    """

    def __init__(self, network: Network, channels_last: bool) -> None:
        one = len(network.nodes) == 1
        self._last = one and channels_last and network.nodes[0][0].kind not in CHANNELS_FIRST | {"transpose"}
        super().__init__(network, lone=one and not channels_last)

    def _layout(self, i: int) -> str:
        return LAST if self._last else super()._layout(i)

    def _is_blocked(self, source: int) -> bool:
        return False

    def _followed(self, name: str) -> str:
        return name

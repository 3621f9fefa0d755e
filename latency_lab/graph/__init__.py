"""One model as operations and channel groups: what shrinks together, and what each width means for each operation."""

from latency_lab.graph.channel_graph import Branch, ChannelGraph, LayerChannels, Node, Unknown, Weights
from latency_lab.graph.channels import Group, Pinned
from latency_lab.graph.explain import Explanation

__all__ = ["Branch", "ChannelGraph", "Explanation", "Group", "LayerChannels", "Node", "Pinned", "Unknown", "Weights"]

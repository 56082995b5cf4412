"""What a network is: nodes and modules, how to read one from a user's module, and how to change it soundly."""

from penjing.graph.groups import Channel, Group, Grouping, Slot, channel_groups
from penjing.graph.network import NEVER, ExitOutputs, Network, Node, node_shapes
from penjing.graph.proof import prove_removal
from penjing.graph.select import select
from penjing.graph.surgery import fold_batch_norms, insert_after, push_biases, remove_channels, replace_node
from penjing.graph.trace import trace

__all__ = [
    "NEVER",
    "Channel",
    "ExitOutputs",
    "Group",
    "Grouping",
    "Network",
    "Node",
    "Slot",
    "channel_groups",
    "fold_batch_norms",
    "insert_after",
    "node_shapes",
    "prove_removal",
    "push_biases",
    "remove_channels",
    "replace_node",
    "select",
    "trace",
]

"""What a network is: nodes and modules, how to read one from a user's module, and how to change it soundly."""

from penjing.graph.branch import branch, cut_out, with_layers
from penjing.graph.features import features, layer_names, layers_like
from penjing.graph.groups import Group, Grouping, Place, Removal, channel_groups
from penjing.graph.network import NEVER, ExitOutputs, Network, Node, node_shapes
from penjing.graph.own_class import into_own_class
from penjing.graph.permute import permute_channels
from penjing.graph.proof import Proof, provable, prove_removal
from penjing.graph.select import select
from penjing.graph.surgery import (
    chain,
    fold_batch_norms,
    insert_after,
    push_biases,
    remove_channels,
    replace_by_nodes,
    replace_node,
    settled_batch_norms,
    with_one_answer,
)
from penjing.graph.trace import trace

__all__ = [
    "NEVER",
    "ExitOutputs",
    "Group",
    "Grouping",
    "Network",
    "Node",
    "Place",
    "Proof",
    "Removal",
    "branch",
    "chain",
    "channel_groups",
    "cut_out",
    "features",
    "fold_batch_norms",
    "insert_after",
    "into_own_class",
    "layer_names",
    "layers_like",
    "node_shapes",
    "permute_channels",
    "provable",
    "prove_removal",
    "push_biases",
    "remove_channels",
    "replace_by_nodes",
    "replace_node",
    "select",
    "settled_batch_norms",
    "trace",
    "with_layers",
    "with_one_answer",
]

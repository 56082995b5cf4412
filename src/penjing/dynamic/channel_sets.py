"""Blocks of which a sample uses the first a of k channel sets: a layer's width becomes a choice for each sample.

The hidden channels of a block are split into k sets of equal size. For every a < k the block has a narrower self
(`graph.branch`), which reads slices of the same weights; one of k gates is open for a sample, so one of the k is computed.
Source: Lin et al. 2017, Runtime Neural Pruning, NIPS, section 3.1 (nested sets of feature maps, the first a are computed).
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from penjing.dynamic.blocks import Block
from penjing.errors import SettingError
from penjing.graph import Group, Grouping, Network, Node, branch, channel_groups, provable, with_layers
from penjing.graph.ops import GATE, PUT, TAKE


def hidden_groups(network: Network, grouping: Grouping, block: Block) -> list[Group]:
    """The groups of channels that live in a block alone."""
    paths = {node.path for node in network.nodes if node.name in block.body and node.path}
    return [group for group in grouping.groups if set(group.layers) <= paths]


def split_blocks(network: Network, blocks: Sequence[Block], logits: Sequence[str], sets: int) -> Network:
    """Let the column of the largest logit say with how many sets each block is computed: column 0 with one, the last with all.

    Args:
        logits: for each block the node that gives its logits, (batch, sets), in front of the block.
        sets: k >= 2; a sets of n channels are the first a n / k, rounded.
    Raises: SettingError: a block has fewer hidden channels than that, or none.
    """
    grouping = channel_groups(network)
    layers: dict[str, nn.Module] = {}
    renamed: dict[str, str] = {}  # by a block's sum, the last of the puts that stand for it
    split = {block.body[0]: _split(network, grouping, block, logits[k], sets) for k, block in enumerate(blocks)}
    members = {name for block in blocks for name in block.body}
    nodes: list[Node] = []
    for node in network.nodes:
        own: list[Node] = []
        if node.name in split:
            own, modules = split[node.name]
            layers |= modules
            renamed[next(b.end for b in blocks if b.body[0] == node.name)] = own[-1].name
        inside = {each.name for each in own}
        for each in [*own, *([] if node.name in members else [node])]:
            inputs = tuple(name if name in inside else renamed.get(name, name) for name in each.inputs)
            nodes.append(replace(each, inputs=inputs))
    return with_layers(network, layers, nodes)


def _split(
    network: Network, grouping: Grouping, block: Block, logits: str, sets: int
) -> tuple[list[Node], dict[str, nn.Module]]:
    """The nodes in the place of a block's: gates, and for every number of sets take, narrower self, put; and its layers."""
    groups = hidden_groups(network, grouping, block)
    if not groups:
        raise SettingError(f'route-channels: the block "{block.name}" has no hidden channels of its own.')
    few = min(groups, key=lambda group: group.n_channels)
    if few.n_channels < sets:
        raise SettingError(
            f'route-channels: the {few.n_channels} channels of "{few.name}" cannot be split into {sets} sets; '
            f"take at most {few.n_channels}."
        )
    body = [node for node in network.nodes if node.name in block.body]
    gates = [
        Node(f"{logits}_gate_{a}", GATE, (logits,), settings={"column": a, "rule": "largest"}) for a in range(sets)
    ]
    nodes, layers, outside = list(gates), {}, block.start
    for a, gate in enumerate(gates):
        take = Node(f"{block.end}_take_{a}", TAKE, (block.start, gate.name))
        if a + 1 < sets:
            gone = {g.name: list(range(round((a + 1) * g.n_channels / sets), g.n_channels)) for g in groups}
            chosen, _, _ = provable(network, grouping, gone)
            made = branch(network, grouping.removal(chosen), body, f"sets_{a + 1}", start={block.start: take.name})
            layers.update(made.modules)
            inside, result = made.nodes, made.names[block.end]
        else:
            inside = [
                replace(n, inputs=tuple(take.name if name == block.start else name for name in n.inputs)) for n in body
            ]
            result = block.end
        put = Node(f"{block.end}_put_{a}", PUT, (result, outside, gate.name))
        outside = put.name
        nodes += [take, *inside, put]
    return nodes, layers

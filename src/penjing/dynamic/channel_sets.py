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
from penjing.graph import Group, Network, Node, branch, channel_groups, provable, with_layers
from penjing.graph.ops import GATE, PUT, TAKE


def hidden_groups(network: Network, blocks: Sequence[Block]) -> list[list[Group]]:
    """For each block the groups of channels that live in it alone."""
    owner = {node.name: node.path for node in network.nodes if node.path}
    found = []
    for block in blocks:
        inside = {owner[name] for name in block.body if name in owner}
        found.append([g for g in channel_groups(network).groups if set(g.layers) <= inside])
    return found


def split_blocks(network: Network, blocks: Sequence[Block], logits: Sequence[str], sets: int) -> Network:
    """Let the column of the largest logit say with how many sets each block is computed: column 0 with one, the last with all.

    Args:
        logits: for each block the node that gives its logits, (batch, sets), in front of the block.
        sets: k >= 2; a sets of n channels are the first a n / k, rounded.
    Raises: SettingError: a block has fewer hidden channels than that, or none.
    """
    grouping = channel_groups(network)
    layers: dict[str, nn.Module] = {}
    around: dict[str, list[Node]] = {}
    before: dict[str, list[Node]] = {}
    renamed: dict[str, str] = {}
    by_name = {node.name: node for node in network.nodes}
    for k, (block, groups) in enumerate(zip(blocks, hidden_groups(network, blocks), strict=True)):
        if not groups:
            raise SettingError(f'route-channels: the block "{block.name}" has no hidden channels of its own.')
        for group in groups:
            if group.n_channels < sets:
                raise SettingError(
                    f'route-channels: the {group.n_channels} channels of "{group.name}" cannot be split into {sets} sets; '
                    f"take at most {group.n_channels}."
                )
        body = [by_name[name] for name in block.body]
        gates = [f"{logits[k]}_gate_{a}" for a in range(sets)]
        extra = [
            Node(gate, GATE, (logits[k],), settings={"column": a, "rule": "largest"}) for a, gate in enumerate(gates)
        ]
        puts: list[Node] = []
        source = block.start
        for a, gate in enumerate(gates):
            take = Node(f"{block.end}_take_{a}", TAKE, (block.start, gate))
            if a + 1 < sets:
                gone = {g.name: list(range(round((a + 1) * g.n_channels / sets), g.n_channels)) for g in groups}
                chosen, _, _ = provable(network, grouping, gone)
                where = f"sets_{a + 1}"
                made = branch(network, grouping.removal(chosen), body, where, start={block.start: take.name})
                layers |= made.modules
                inside, result = made.nodes, made.names[block.end]
            else:
                inside = [
                    replace(node, inputs=tuple(take.name if name == block.start else name for name in node.inputs))
                    for node in body
                ]
                result = block.end
            put = Node(f"{block.end}_put_{a}", PUT, (result, source, gate))
            source = put.name
            puts += [take, *inside, put]
        before[block.body[0]] = [*extra, *puts]
        renamed[block.end] = source
        around[block.end] = []
    members = {name for block in blocks for name in block.body}
    nodes: list[Node] = []
    for node in network.nodes:
        fresh = before.get(node.name, [])
        inner = {n.name for n in fresh}
        nodes += [
            replace(n, inputs=tuple(renamed.get(name, name) if name not in inner else name for name in n.inputs))
            for n in fresh
        ]
        if node.name not in members:
            nodes.append(replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs)))
    return with_layers(network, layers, nodes)

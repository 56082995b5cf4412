"""What the tests of graphs share: channels chosen at random, and the network that does not hear them, made by hand."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.graph import Group, Grouping, Network, Node, node_shapes
from penjing.graph.network import MODULE, TENSOR, set_tensor

Chosen = Mapping[str, Sequence[int]]


@pytest.fixture(scope="session")
def some() -> Callable[[Sequence[Group], st.DrawFn], dict[str, list[int]]]:
    """Draws channels to remove, by group; each group keeps one."""

    def draw_some(groups: Sequence[Group], draw: st.DrawFn) -> dict[str, list[int]]:
        chosen = {}
        for group in groups:
            n = draw(st.integers(0, group.n_channels - 1))
            if n:
                chosen[group.name] = sorted(draw(st.permutations(range(group.n_channels)))[:n])
        return chosen

    return draw_some


@pytest.fixture(scope="session")
def silenced() -> Callable[[Network, Grouping, Chosen], Network]:
    """Makes the network whose consumers do not hear the channels, with nothing of the proof's own machinery.

    Entries of a layer's weight that would hear them are zero; other nodes take their input times a mask.
    """

    def silence(network: Network, grouping: Grouping, chosen: Chosen) -> Network:
        silent = copy.deepcopy(network)
        for name, positions in chosen.items():
            for read in grouping.group(name).reads:
                gone = torch.as_tensor(read.indices[np.isin(read.channels, positions)])
                node = next(n for n in network.nodes if n.name == read.node)
                if node.op == MODULE:
                    _deafen_(silent.get_submodule(node.path), gone)
                else:
                    _mask_(silent, read.node, read.position, read.dim, gone)
        return silent

    return silence


@torch.no_grad()
def _deafen_(layer: nn.Module, gone: Tensor) -> None:
    if isinstance(layer, nn.Linear):
        layer.weight[:, gone] = 0
    elif layer.transposed:  # (in, out / groups, kernel ...)
        layer.weight[gone] = 0
    else:  # (out, in / groups, kernel ...)
        n_in, n_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for channel in gone.tolist():
            block = channel // n_in
            layer.weight[block * n_out : (block + 1) * n_out, channel % n_in] = 0


def _mask_(network: Network, name: str, position: int, dim: int, gone: Tensor) -> None:
    position_of = {node.name: i for i, node in enumerate(network.nodes)}
    reader = network.nodes[position_of[name]]
    source = reader.inputs[position]
    shape = node_shapes(network)[source]
    mask = torch.ones([size if d == dim else 1 for d, size in enumerate(shape)])
    mask.index_fill_(dim, gone, 0)
    path = network.fresh_name("mask")
    set_tensor(network, f"masks.{path}", mask)
    masked = Node(f"{path}_times", "multiply", (source, path))
    inputs = tuple(masked.name if i == position else n for i, n in enumerate(reader.inputs))
    nodes = list(network.nodes)
    nodes[position_of[name] : position_of[name] + 1] = [
        Node(path, TENSOR, (), f"masks.{path}"),
        masked,
        replace(reader, inputs=inputs),
    ]
    network.nodes = nodes

"""A topology as a network of torch: what can be traced, trained, cut and saved like any other."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.pruning.weight_agnostic.evaluate import plan
from penjing.pruning.weight_agnostic.topology import ACTIVATIONS, Topology
from penjing.representation import Mask, represent_

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "step": lambda x: (x > 0).to(x.dtype),
    "sin": lambda x: torch.sin(math.pi * x),
    "gaussian": lambda x: torch.exp(-0.5 * x * x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "inverse": torch.neg,
    "abs": torch.abs,
    "relu": F.relu,
    "cos": lambda x: torch.cos(math.pi * x),
}
"""The activations by name; a step has no gradient."""


class TopologyNetwork(nn.Module):
    """Nodes that listen to earlier ones only, level by level: a linear layer, and each node's activation.

    bias and inputs ── level 0 ── level 1 ── ... ── outputs     every level may listen to all nodes before it

    Where there is no connection the weight is 0.

    Args:
        topology: what is computed; hidden nodes that no output hears are left out.
        weights: (genes,), or one number for all of them.
    """

    def __init__(self, topology: Topology, weights: ArrayLike) -> None:
        super().__init__()
        values = np.broadcast_to(np.asarray(weights, dtype=np.float64), topology.source.shape)
        work = plan(topology)
        level = np.zeros(topology.n_nodes, dtype=np.int64)
        heard = {}
        for place, node in enumerate(work.nodes.tolist()):
            links = range(work.begin[place], work.begin[place + 1])
            heard[node] = {int(work.sources[i]): float(values[work.genes[i]]) for i in links}
            level[node] = 1 + max((int(level[source]) for source in heard[node]), default=0)
        column = {node: node for node in range(topology.n_inputs + 1)}
        self.layers = nn.ModuleList()
        self._runs: list[list[tuple[str, int]]] = []
        for number in sorted({int(level[node]) for node in heard}):
            nodes = [node for node in heard if level[node] == number]
            nodes.sort(key=lambda node: (topology.activation[node], node))  # alike ones are computed together
            sources = sorted({source for node in nodes for source in heard[node]}) or [0]
            layer = nn.Linear(len(sources), len(nodes), bias=False)
            with torch.no_grad():
                layer.weight.zero_()
                for row, node in enumerate(nodes):
                    for source, weight in heard[node].items():
                        layer.weight[row, sources.index(source)] = weight
            self.layers.append(layer)
            self.register_buffer(f"reads{len(self._runs)}", torch.tensor([column[source] for source in sources]))
            kinds = [ACTIVATIONS[topology.activation[node]] for node in nodes]
            self._runs.append([(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)])
            for node in nodes:
                column[node] = len(column)
        self.register_buffer("answers", torch.tensor([column[node] for node in topology.outputs]))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        values = F.pad(x, (1, 0), "constant", 1.0)
        for number, (layer, runs) in enumerate(zip(self.layers, self._runs, strict=True)):
            sums = layer(values[:, self.get_buffer(f"reads{number}")])
            parts, first = [values], 0
            for kind, count in runs:
                parts.append(FUNCTIONS[kind](sums[:, first : first + count]))
                first += count
            values = torch.cat(parts, 1)
        return values[:, self.get_buffer("answers")]


def to_network(topology: Topology, weight: ArrayLike) -> TopologyNetwork:
    """An ordinary module that computes what `evaluate` does.

    Args:
        weight: the shared weight, or (genes,) one for each gene, disabled ones too.
    Raises: SettingError: another number of weights.
    """
    if np.shape(weight) not in ((), topology.source.shape):
        raise SettingError(
            f"to_network: weight must be one number or {len(topology.source)} of them, got {np.shape(weight)}."
        )
    return TopologyNetwork(topology, weight)


def hold_zeros_(network: Network) -> None:
    """Put a mask on every linear layer with zeros, so that training makes no new connections. In place."""
    for layer in network.layers().values():
        if isinstance(layer, nn.Linear) and bool((layer.weight == 0).any()):
            represent_(layer, "weight", Mask(layer.weight != 0))


def train_weights(
    network: Network,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 200,
    batch: int = 64,
    lr: float = 0.01,
    generator: torch.Generator | None = None,
) -> Sequence[float]:
    """Train the weights of a classifier by cross-entropy with Adam, in place; connections stay as they are.

    Args:
        network: under `hold_zeros_`.
        x, y: (samples, inputs), (samples,).
    Returns: the mean loss of each epoch.
    """
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for part in torch.randperm(len(y), generator=generator).split(batch):
            loss = F.cross_entropy(network(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part)
        schedule.step()
        losses.append(total / len(y))
    return losses

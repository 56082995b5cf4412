"""What gates do while they learn: choices that are drawn, forced or the best there are, and what they looked at."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from penjing.graph import Network, Node
from penjing.graph.network import OUTPUT
from penjing.graph.ops import PUT, TAKE

Chooser = Callable[[str, Tensor], Tensor]
"""Of the node that gives logits and its logits, (batch, columns): 0 or 1 for each column, (batch, columns), or where one of
several gates is open the number of it, (batch,)."""


_LEAST = 1e-12


def bounded(probabilities: Tensor, bound: float) -> Tensor:
    """bound p + (1 - bound) (1 - p): so that no choice becomes certain while it is still explored.

    Source: Wu et al. 2018, arXiv:1711.08393, section 3.3 (bound 0.8).
    """
    return bound * probabilities + (1 - bound) * (1 - probabilities)


@dataclass
class Choices:
    """What was chosen in one pass, by the node that gave the logits, in order of execution.

    Attributes:
        logits: (batch, columns).
        taken: as `Chooser` returns.
    """

    logits: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, Tensor] = field(default_factory=dict)

    def opened(self) -> Tensor:
        """Which gates were open, (batch, gates), for gates of their own."""
        return torch.cat(list(self.taken.values()), 1)

    def probabilities(self, bound: float = 1.0) -> Tensor:
        """Of each gate of its own to be open, (batch, gates), see `bounded`."""
        return bounded(torch.sigmoid(torch.cat(list(self.logits.values()), 1)), bound)

    def log_probabilities(self, bound: float = 1.0) -> Tensor:
        """log pi of what was taken, (batch, gates), for gates of their own."""
        p = self.probabilities(bound)
        return torch.where(self.opened() > 0, p, 1 - p).clamp_min(_LEAST).log()


@contextlib.contextmanager
def choosing(network: Network, choose: Chooser, *, detached: bool = False) -> Iterator[Choices]:
    """Within this context the gates of a network do what `choose` says, asked once for each node of logits.

    Args:
        detached: what gates look at gets no gradient from them, so that they learn alone.
    """
    found = Choices()
    exclusive = {node.inputs[0] for node in network.gates if node.settings["rule"] == "largest"}
    columns: dict[str, int] = {}  # whatever stands behind them is no gate's
    for node in network.gates:
        source = node.inputs[0]
        columns[source] = max(columns.get(source, 0), node.settings["column"] + 1)

    def act(node: Node, logits: Tensor) -> Tensor:
        source, column = node.inputs[0], node.settings["column"]
        if source not in found.taken:
            found.logits[source] = logits[:, : columns[source]]
            found.taken[source] = choose(source, found.logits[source])
        taken = found.taken[source]
        return ((taken == column) if source in exclusive else taken[:, column]).to(logits.dtype)

    with contextlib.ExitStack() as stack:
        stack.enter_context(network.replaced({node.name: partial(act, node) for node in network.gates}))
        if detached:
            edges: dict[str, dict[int, Callable[[Tensor], Tensor]]] = {}
            for name, position in edges_to_gates(network):
                edges.setdefault(name, {})[position] = torch.Tensor.detach
            stack.enter_context(network.also_watched(edges))
        yield found


def parts_of_gates(network: Network) -> set[str]:
    """The nodes that are there only for gates to look at."""
    nodes = {node.name: node for node in network.nodes}
    needed_without: set[str] = set()
    stack = [node for node in network.nodes if node.op in ("exit", OUTPUT)]
    while stack:
        node = stack.pop()
        for name in node.inputs[:-1] if node.op in (TAKE, PUT) else node.inputs:
            if name not in needed_without:
                needed_without.add(name)
                stack.append(nodes[name])
    return {node.name for node in network.nodes if node.name not in needed_without and node.op not in ("exit", OUTPUT)}


def edges_to_gates(network: Network) -> list[tuple[str, int]]:
    """Where gates begin to look: a node of theirs and the position among its inputs that comes from elsewhere."""
    theirs = parts_of_gates(network)
    return [
        (node.name, position)
        for node in network.nodes
        if node.name in theirs
        for position, name in enumerate(node.inputs)
        if name not in theirs
    ]


def drawn(bound: float = 1.0) -> Chooser:
    """Each gate open with its probability, see `bounded`."""
    return lambda _, logits: torch.bernoulli(bounded(torch.sigmoid(logits.detach()), bound))


def likeliest(_: str, logits: Tensor) -> Tensor:
    """Each gate open where that is likelier than not."""
    return (logits.detach() > 0).to(logits.dtype)

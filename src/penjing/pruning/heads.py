"""Attention heads: they are channels of their own, groups that attention takes along neither places nor widths.

Which groups are heads is seen, not guessed: when one channel of the group goes, some product of two results (attention, a
matrix product, an einsum) loses an index along one of the dimensions that it goes through one by one. Widths of heads shrink
what is summed or answered, hidden units and embeddings shrink no product, and channels of grouped or shuffled convolutions
never meet one.
Sources: Michel et al. 2019, arXiv:1905.10650 (few heads are needed; scores by the gradient of a gate); Voita et al. 2019,
arXiv:1905.09418.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from penjing.errors import SurgeryError
from penjing.graph import Group, Grouping, Network, Node, channel_groups, node_shapes, remove_channels
from penjing.graph.network import without_data
from penjing.pruning.channels import RemoveInRounds
from penjing.training import Workbench

_PRODUCTS = ("attention", "matmul", "einsum")


def head_groups(network: Network, grouping: Grouping | None = None) -> list[Group]:
    """The groups whose channels are attention heads; in grouped queries, a head of keys with the queries that it serves.

    Args:
        grouping: of this network, where it is there already.
    """
    grouping = channel_groups(network) if grouping is None else grouping
    products = [node for node in network.nodes if node.op in _PRODUCTS and _of_two_results(network, node)]
    if not products:
        return []
    before, twin = node_shapes(network), without_data(network)
    found = []
    for group in grouping.groups:
        if group.n_channels < 2:
            continue
        try:
            removal = grouping.removal({group.name: [0]})
        except SurgeryError:  # it would be the last channel of some tensor
            continue
        try:
            after = node_shapes(remove_channels(twin, removal))
        except (NotImplementedError, RuntimeError):  # an operation needs numbers to tell its shape
            after = node_shapes(remove_channels(network, removal))
        if any(_loses_a_head(node, before, after) for node in products):
            found.append(group)
    return found


class PruneHeads(RemoveInRounds):
    """Remove attention heads in rounds, the least important first, and train after each.

    Hidden units of feed-forward parts are channels like others: `prune-channels`. Where there are no heads, the network is only
    trained, and a warning says so.
    """

    label: ClassVar[str] = "prune-heads"
    sparsity: float = Field(default=0.5, gt=0, lt=1, description="fraction of all heads that are gone in the end")
    keep_at_least: int = Field(default=1, ge=1, description="heads that every layer keeps")
    rounds: int = Field(default=3, ge=1, description="in how many steps")

    def among(self, network: Network, groups: Sequence[Group]) -> list[Group]:
        heads = {group.name for group in head_groups(network)}
        return [group for group in groups if group.name in heads]

    def without_any(self, bench: Workbench, grouping: Grouping) -> None:
        bench.warn("the chosen layers have no attention heads that can go; the network is only trained")
        for turn in range(1, self.rounds + 1):
            bench.train(self.schedule(), self.parts(bench), f"round-{turn}")
        bench.facts |= {"kept whole": grouping.kept}


def _of_two_results(network: Network, node: Node) -> bool:
    """Whether at least two of the first inputs depend on what the network is given."""
    above: set[str] = set()
    for other in network.nodes:
        if other.op == "input" or above.intersection(other.inputs):
            above.add(other.name)
    return sum(name in above for name in node.inputs[:3]) > 1


def _loses_a_head(node: Node, before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a product goes through fewer indices one by one: dimensions that both factors and the result have."""
    was, now = before[node.name], after[node.name]
    if len(was) != len(now):
        return False
    alone = range(len(was) - 2)  # the last two are places and widths
    if node.op == "einsum":
        terms, result = str(node.settings["equation"]).replace(" ", "").split("->")
        if "." in result:
            return False
        both = set.intersection(*(set(term) for term in terms.split(",")))
        alone = [d for d, letter in enumerate(result) if letter in both]  # type: ignore[assignment]
    return any(was[d] != now[d] for d in alone)

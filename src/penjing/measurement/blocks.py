"""What was computed of each block of a network with gates, sample by sample."""

from collections.abc import Mapping
from itertools import takewhile

from torch import Tensor

from penjing.graph import Network, Node
from penjing.graph.ops import PUT, TAKE


def block_shares(network: Network, opened: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By block, what was computed of it for each sample, (n,), float64: 0 or 1; where a of k channel sets are chosen, a / k.

    Args:
        opened: by gate, (n,), bool, as `Network.route` tells.
    Returns: in order of execution, by the path that the block's layers have in common.
    """
    n_ways: dict[str, int] = {}
    for gate in network.gates:
        if gate.settings["rule"] == "largest":
            n_ways[gate.inputs[0]] = n_ways.get(gate.inputs[0], 0) + 1
    found: dict[tuple[str, int], Tensor] = {}
    names: dict[tuple[str, int], str] = {}
    for gate in network.gates:
        source, column = gate.inputs[0], int(gate.settings["column"])
        share = opened[gate.name].double()
        key = (source, -1) if source in n_ways else (source, column)
        if source in n_ways:
            share = share * (column + 1) / n_ways[source]
        found[key] = found[key] + share if key in found else share
        names[key] = _name(network, gate)  # of channel sets the last way has all of the block's own layers
    return {_unlike(names[key], list(names.values()), k): share for k, (key, share) in enumerate(found.items())}


def _name(network: Network, gate: Node) -> str:
    """The path that the layers behind a gate have in common, or that of the first."""
    inside: set[str] = set()
    paths: list[str] = []
    for node in network.nodes:
        if node.op == PUT or not (
            inside.intersection(node.inputs) or (node.op == TAKE and node.inputs[-1] == gate.name)
        ):
            continue
        inside.add(node.name)
        if node.path:
            paths.append(node.path)
    parts = [path.split(".")[:-1] for path in paths]
    common = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))]
    return ".".join(common) or (paths[0] if paths else gate.name)


def _unlike(name: str, names: list[str], number: int) -> str:
    return name if names.count(name) == 1 else f"{name} ({number + 1})"

"""Residual blocks: parts of a network that a sample may skip, because a shortcut leads around them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from penjing.errors import SurgeryError
from penjing.graph import Network, Node, with_layers
from penjing.graph.network import EXIT, INPUT, OUTPUT
from penjing.graph.ops import GATE, PUT, TAKE
from penjing.graph.program import gates_around, per_sample


@dataclass(frozen=True)
class Block:
    """y = x + F(x), with nothing but x itself on the shortcut.

    Attributes:
        name: of the user's layer that computes it.
        start: the node that gives x.
        body: the nodes of F in order, and last the sum.
    """

    name: str
    start: str
    body: tuple[str, ...]

    @property
    def end(self) -> str:
        """The sum."""
        return self.body[-1]


def residual_blocks(network: Network) -> list[Block]:
    """The blocks that can be skipped, in order: identity shortcuts around a body that depends on nothing but x.

    A block whose shortcut changes the shape, such as the first of a stage, is none: x cannot stand for y there.
    Raises: SurgeryError: there is none.
    """
    samples, around = per_sample(network.nodes), gates_around(network.nodes)
    found: list[Block] = []
    for node in network.nodes:
        if node.op != "add" or around[node.name] or node.inputs[0] == node.inputs[1]:
            continue
        for start in node.inputs:
            body = _between(network, start, node, samples)
            if body:
                paths = [n.path for n in network.nodes if n.name in body and n.path]
                name = node.scope or (paths[0].rpartition(".")[0] if paths else "") or node.name
                found.append(Block(name, start, body))
                break
    if not found:
        raise SurgeryError(
            "routing: the network has no residual block x + F(x) that could be skipped; layers without a shortcut cannot be "
            "left out. Use early-exits or slimmable for it."
        )
    return found


def _between(network: Network, start: str, end: Node, samples: frozenset[str]) -> tuple[str, ...]:
    """The nodes between `start` and the sum `end`, which is the last; none where others look into them or they look out."""
    nodes = {node.name: node for node in network.nodes}
    inside: set[str] = {end.name}
    stack = [name for name in end.inputs if name != start]
    while stack:
        name = stack.pop()
        if name == start or name in inside or name not in samples:
            continue
        if nodes[name].op in (INPUT, EXIT, OUTPUT, GATE, TAKE, PUT):
            return ()
        inside.add(name)
        stack += nodes[name].inputs
    read_by_others = any(
        reader.name not in inside for name in inside - {end.name} for reader in network.consumers(name)
    )
    if read_by_others or len(inside) == 1:
        return ()
    return tuple(node.name for node in network.nodes if node.name in inside)


def gate_blocks(network: Network, blocks: Sequence[Block], gates: Sequence[str]) -> Network:
    """Compute each block only for the samples whose gate is open; for the others y = x.

    Args:
        gates: for each block the name of its gate, a node of the network in front of the block.
    """
    block_of = {name: k for k, block in enumerate(blocks) for name in block.body}
    takes = [network.fresh_name(f"{block.end}_take") for block in blocks]
    renamed: dict[str, str] = {}  # what stands for a sum from its put on
    begun: set[int] = set()
    nodes: list[Node] = []
    for node in network.nodes:
        k = block_of.get(node.name)
        inputs = [renamed.get(name, name) for name in node.inputs]
        if k is None:
            nodes.append(replace(node, inputs=tuple(inputs)))
            continue
        start = renamed.get(blocks[k].start, blocks[k].start)
        if k not in begun and start in inputs:
            begun.add(k)
            nodes.append(Node(takes[k], TAKE, (start, gates[k])))
        nodes.append(replace(node, inputs=tuple(takes[k] if name == start else name for name in inputs)))
        if node.name == blocks[k].end:
            put = network.fresh_name(f"{node.name}_put")
            nodes.append(Node(put, PUT, (node.name, start, gates[k])))
            renamed[node.name] = put
    return with_layers(network, {}, nodes)

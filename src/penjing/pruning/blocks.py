"""Whole residual blocks: where the shortcut alone goes on, the branch beside it can go.

x ──┬── layers ──┬── add        becomes        x
    └────────────┘
Sources: Veit et al. 2016, arXiv:1605.06431 (a residual network without one of its blocks still works); Wen et al. 2016,
arXiv:1608.03665, section 3.2 (depth).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from penjing.errors import SurgeryError
from penjing.graph import Network, Node, node_shapes
from penjing.graph.network import INPUT, MODULE, TENSOR, module_at, needed
from penjing.pruning.evidence import evidence_of
from penjing.pruning.same_answers import TOLERANCE, answer_difference
from penjing.sensitivity import Evidence
from penjing.shapes import Json
from penjing.training import TrainedStage, Workbench


@dataclass(frozen=True)
class Block:
    """A branch beside a shortcut.

    Attributes:
        name: the node that adds the two.
        shortcut: the node whose result goes on alone when the branch is removed.
        position: which of the inputs of the addition is the branch.
        nodes: what is computed for the branch alone, in order.
        layers: by path, the layers with parameters that only these nodes use.
    """

    name: str
    shortcut: str
    position: int
    nodes: tuple[str, ...] = field(repr=False)
    layers: tuple[str, ...]


def find_blocks(network: Network) -> tuple[tuple[Block, ...], dict[str, str]]:
    """The blocks that can be removed whole, and for other additions behind layers the reason why not.

    An addition of x and b is one where b is computed from x, has its shape, and layers with parameters serve b alone.
    """
    shapes, above = node_shapes(network), _ancestors(network)
    blocks: list[Block] = []
    kept: dict[str, str] = {}
    for node in network.nodes:
        if node.op != "add" or node.inputs[0] == node.inputs[1] or not all(above[i] for i in node.inputs):
            continue
        ways = [(i, node.inputs[1 - i]) for i in (0, 1) if node.inputs[1 - i] in above[node.inputs[i]]]
        if ways:
            position, shortcut = ways[0]
            gone = _gone(network, node.name, shortcut)
            layers = _learned(network, gone)
            if not layers:
                continue
            if shapes[shortcut] == shapes[node.name] == shapes[node.inputs[position]]:
                names = {n.name for n in gone}
                elsewhere = {n.path for n in network.nodes if n.path and n.name not in names}
                own = tuple(path for path in layers if path not in elsewhere)
                blocks.append(Block(node.name, shortcut, position, tuple(n.name for n in gone), own))
            else:
                kept[node.name] = f"its branch of {', '.join(layers)} gives another shape than its shortcut has"
            continue
        both = above[node.inputs[0]] & above[node.inputs[1]]
        apart = [n for n in network.nodes if n.name in (above[node.inputs[0]] | above[node.inputs[1]]) - both]
        layers = _learned(network, apart)
        if both and layers:
            before = next(n.name for n in reversed(network.nodes) if n.name in both)
            change = f"it changes the shape from {_spoken(shapes[before])} to {_spoken(shapes[node.name])}, and "
            same = shapes[before] == shapes[node.name]
            kept[node.name] = ("" if same else change) + f"its shortcut is computed too ({', '.join(layers)} before it)"
    return tuple(blocks), kept


def remove_block(network: Network, block: Block) -> Network:
    """A network without a block's branch, which is proved before it is given.

    In float64, on random inputs: the same answers as the network whose branch is set to zero where it is added, within 1e-9 of
    the largest.
    Raises: SurgeryError: there is no such block, or the answers differ.
    """
    if block not in find_blocks(network)[0]:
        raise SurgeryError(f'surgery: the network has no block "{block.name}" of {", ".join(block.layers)}.')
    small = copy.deepcopy(network)
    small.nodes = needed(_bypassed(network, block.name, block.shortcut))
    _drop_uncalled_(small, network)
    small.train(network.training)
    error = answer_difference(network, small, {(block.name, block.position): torch.zeros_like})
    if not error <= TOLERANCE:
        raise SurgeryError(
            f"surgery: the network without the block {block.name} differs from the one whose branch is zero by {error:.2g} "
            "relative; nothing was changed. Please report this network."
        )
    return small


def skip_losses(network: Network, blocks: Sequence[Block], evidence: Evidence) -> list[float]:
    """How much the loss grows when a block is skipped: mean over samples of L(without the branch) - L; below 0 it falls.

    Each block by itself, in evaluation mode, measured, not approximated.
    """
    loss_of = evidence.loss_of("prune-blocks: loss")
    training = network.training
    network.eval()
    totals, whole, n = [0.0] * len(blocks), 0.0, 0
    try:
        with torch.no_grad():
            for batch in evidence.samples("prune-blocks: loss"):
                whole += float(loss_of(network, batch)) * batch.size
                n += batch.size
                for i, block in enumerate(blocks):
                    with network.watched({(block.name, block.position): torch.zeros_like}):
                        totals[i] += float(loss_of(network, batch)) * batch.size
    finally:
        network.train(training)
    return [(total - whole) / max(n, 1) for total in totals]


def last_magnitudes(network: Network, blocks: Sequence[Block]) -> list[float]:
    """How large the last norm's scales of each branch are, or the weights of its last layer where it has no norm with scales.

    score = sqrt(mean of w^2) over the weights w of the branch's last layer that has any; what comes out of the branch is in
    proportion to it.
    """
    nodes = {node.name: node for node in network.nodes}
    found = []
    for block in blocks:
        calls = [nodes[name].path for name in block.nodes if nodes[name].op == MODULE]
        weights = [getattr(network.get_submodule(path), "weight", None) for path in calls]
        held = [w for w in weights if isinstance(w, Tensor)]
        read = [
            module_at(network, n.path.rpartition(".")[0]) for n in map(nodes.__getitem__, block.nodes) if n.op == TENSOR
        ]
        if not held:  # the class of the user's holds them
            held = [p for owner in read for p in owner.parameters(recurse=False)]
        found.append(float(held[-1].detach().double().square().mean().sqrt()))
    return found


class PruneBlocks(TrainedStage):
    """Remove whole residual blocks, the least important first, and train after each round."""

    label: ClassVar[str] = "prune-blocks"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    blocks: int = Field(default=1, ge=1, description="how many blocks are gone in the end")
    rounds: int = Field(default=1, ge=1, description="in how many steps")
    score: Literal["loss", "magnitude"] = Field(
        default="loss", description="by how much the loss grows without it, or the size of its last norm or layer"
    )
    batches: int = Field(default=20, ge=1, description="training batches that the loss is averaged over")

    def planned_epochs(self) -> int:
        return self.epochs * self.rounds

    def apply(self, bench: Workbench) -> None:
        there, kept = find_blocks(bench.network)
        if len(there) < self.blocks:
            bench.warn(
                f"only {len(there)} of {self.blocks} blocks can go" + "".join(f"; {k}: {v}" for k, v in kept.items())
            )
        gone: dict[str, Json] = {}
        for turn in range(1, self.rounds + 1):
            n = min(round(self.blocks * turn / self.rounds), len(there)) - len(gone)
            for name in bench.decide(f"round-{turn}", lambda n=n: self._choose(bench, n)):  # type: ignore[misc]
                block = next(b for b in find_blocks(bench.network)[0] if b.name == name)
                gone[name] = list(block.layers)
                bench.network = remove_block(bench.network, block)
            bench.train(self.schedule(), self.parts(bench), f"round-{turn}")
        left, kept = find_blocks(bench.network)
        bench.facts |= {
            "blocks removed": gone,
            "blocks left": {b.name: list(b.layers) for b in left},
            "blocks kept": kept,
        }

    def _choose(self, bench: Workbench, n: int) -> Json:
        """The names of the n least important blocks."""
        blocks, _ = find_blocks(bench.network)
        if n < 1:
            return []
        if self.score == "loss":
            scores = skip_losses(bench.network, blocks, evidence_of(self, bench, self.batches))
        else:
            scores = last_magnitudes(bench.network, blocks)
        ranked = sorted(zip(scores, range(len(blocks)), strict=True))
        return _apart(blocks, [i for _, i in ranked], n)


def _apart(blocks: Sequence[Block], ranked: Sequence[int], n: int) -> list[Json]:
    """The first n that do not lie within one another."""
    chosen: list[Block] = []
    for i in ranked:
        block = blocks[i]
        inside = any(block.name in other.nodes or other.name in block.nodes for other in chosen)
        if len(chosen) < n and not inside:
            chosen.append(block)
    return [block.name for block in chosen]


def _ancestors(network: Network) -> dict[str, frozenset[str]]:
    """For each node that depends on the inputs, it and the nodes that it depends on and that do too; else nothing."""
    found: dict[str, frozenset[str]] = {}
    for node in network.nodes:
        above = frozenset().union(*(found.get(i, frozenset()) for i in node.inputs))
        found[node.name] = above | {node.name} if above or node.op == INPUT else frozenset()
    return found


def _bypassed(network: Network, name: str, shortcut: str) -> list[Node]:
    return [
        replace(node, inputs=tuple(shortcut if i == name else i for i in node.inputs))
        for node in network.nodes
        if node.name != name
    ]


def _gone(network: Network, name: str, shortcut: str) -> list[Node]:
    """What nobody needs any more when the shortcut takes the place of the addition, the addition left out."""
    left = {node.name for node in needed(_bypassed(network, name, shortcut))}
    return [node for node in network.nodes if node.name not in left and node.name != name]


def _learned(network: Network, nodes: Sequence[Node]) -> tuple[str, ...]:
    """The paths of the layers, or of the model's own parameters, among the nodes."""
    paths: dict[str, None] = {}
    for node in nodes:
        if node.op == MODULE and any(True for _ in network.get_submodule(node.path).parameters()):
            paths[node.path] = None
        elif node.op == TENSOR:
            owner, _, name = node.path.rpartition(".")
            if name in module_at(network, owner)._parameters:
                paths[node.path] = None
    return tuple(paths)


def _drop_uncalled_(small: Network, network: Network) -> None:
    """Take out the layers and tensors that the larger network used and the smaller does not."""
    used = {node.path for node in small.nodes if node.op in (MODULE, TENSOR)}
    for node in network.nodes:
        if node.op not in (MODULE, TENSOR) or any(p == node.path or p.startswith(f"{node.path}.") for p in used):
            continue
        parent, _, name = node.path.rpartition(".")
        owner = module_at(small, parent)
        tables: tuple[Mapping[str, Any], ...] = (owner._modules, owner._parameters, owner._buffers)
        within = any(node.path.startswith(f"{path}.") for path in used)  # of a layer that is still called
        for table in tables if node.op == TENSOR else tables[:1]:
            if name in table and not within:
                del table[name]  # type: ignore[attr-defined]


def _spoken(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[1:]))

"""Early exits: answers on the way, and samples that leave when one of them is sure.

A head after an inner layer averages over places and classifies. All answers are trained together, the sum of their losses.
In use a sample leaves at the first exit whose largest softmax probability reaches the threshold; what follows is not
computed for it.
Sources: Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686; Huang et al. 2018 (MSDNet), arXiv:1703.09844, section 4
(the sum of losses; thresholds from the validation set for a computational budget).
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from penjing.errors import SettingError, SurgeryError
from penjing.graph import NEVER, Network, Node, insert_after, node_shapes, select
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT
from penjing.graph.ops import OPERATIONS
from penjing.measurement import answer, macs_by_node, macs_to_exits, macs_without_exits
from penjing.shapes import Json
from penjing.training import TrainedStage, Workbench


def attach_exits(network: Network, after: Sequence[str]) -> Network:
    """Put an exit behind each of these nodes: mean over places, linear layer, exit.

    Args:
        after: names of nodes whose results are (batch, channels) or (batch, channels, height, width).
    Returns: the network with the exits in order of execution, and thresholds that nobody reaches.
    Raises: SurgeryError: a node whose result has another shape.
    """
    shapes = node_shapes(network)
    n_classes = shapes[network.nodes[-1].name][-1]
    parameter = next(network.parameters())
    order = [node.name for node in network.nodes]
    for number, name in enumerate(sorted(after, key=order.index), start=len(network.exits)):
        shape = shapes[name]
        if len(shape) not in (2, 4):
            raise SurgeryError(
                f'early exits: the result of "{name}" has shape {shape[1:]}; channels, or channels and places, are needed.'
            )
        path = _free_path(network, number)
        head: list[Node] = []
        source = name
        if len(shape) == 4:
            head.append(
                Node(
                    network.fresh_name(f"exit_{number}_mean"),
                    "mean",
                    (source,),
                    settings={"dims": (2, 3), "keepdim": False},
                )
            )
            source = head[-1].name
        head.append(Node(network.fresh_name(f"exit_{number}_linear"), MODULE, (source,), path))
        head.append(Node(network.fresh_name(f"exit_{number}"), EXIT, (head[-1].name,), settings={"threshold": NEVER}))
        linear = nn.Linear(shape[1], n_classes).to(parameter.device, parameter.dtype)
        network = insert_after(network, name, head, {path: linear})
    return network


def _free_path(network: Network, number: int) -> str:
    """exits.N, or where the user's network has a layer there, exits_1.N, exits_2.N ..."""
    taken = {name for name, _ in network.named_modules()}
    roots = itertools.chain(["exits"], (f"exits_{k}" for k in itertools.count(1)))
    return next(path for root in roots if (path := f"{root}.{number}") not in taken)


def places_for_exits(network: Network, n_exits: int) -> list[str]:
    """Nodes after which an exit makes sense, as evenly spaced in MACs as the network allows.

    Considered are results that everything after depends on alone (no shortcut runs past them), behind an activation, a
    pooling or a sum. Raises: SurgeryError: fewer than `n_exits` of them.
    """
    by_node = macs_by_node(network)
    total, done = sum(by_node.values()), 0
    places: dict[int, Node] = {}
    shapes = node_shapes(network)
    live: set[str] = set()
    last_use = {name: position for position, node in enumerate(network.nodes) for name in node.inputs}
    for position, node in enumerate(network.nodes):
        done += by_node[node.name]
        if node.op not in (EXIT, OUTPUT):
            live.add(node.name)
        live = {name for name in live if last_use.get(name, -1) > position}
        # of places behind the same work the first, but an activation rather than the sum that it follows
        is_new = done not in places or len(places[done].inputs) > 1
        alone = live == {node.name} and len(shapes[node.name]) == 4
        if alone and is_new and _ends_a_block(network, node) and 0 < done < total:
            places[done] = node
    candidates = [(macs / total, node.name) for macs, node in places.items()]
    if len(candidates) < n_exits:
        raise SurgeryError(
            f"early exits: the network has {len(candidates)} places for an exit; {n_exits} are asked for."
        )
    chosen: list[str] = []
    for k in range(1, n_exits + 1):
        free = [c for c in candidates if c[1] not in chosen]
        chosen.append(min(free, key=lambda c: abs(c[0] - k / (n_exits + 1)))[1])
    return chosen


def _ends_a_block(network: Network, node: Node) -> bool:
    if node.op == INPUT:
        return False
    if node.op != MODULE:
        return node.op in OPERATIONS and (OPERATIONS[node.op].elementwise or "pool" in node.op)
    kind = kind_of(network.get_submodule(node.path))
    return kind is not None and (MODULES[kind].elementwise or "Pool" in kind)


def confidence_threshold(confidences: Tensor, macs: Sequence[int], full: int, saving: float) -> float:
    """The highest common threshold at which at least this share of the work is saved.

    Args:
        confidences: (exits, n), the largest softmax probability of each sample at each exit.
        macs: of a sample that leaves at each exit, and last of one that goes all the way.
        full: MACs of the network without exits, what the saving is measured against.
        saving: 0 to 1.
    Returns: a threshold; a sample leaves at the first exit with a confidence at least as high.
    Raises: SettingError: the saving is out of reach, with the range that is possible.
    """
    candidates = torch.unique(confidences.float())
    work = torch.tensor(macs, dtype=torch.float64)

    def saved(threshold: float) -> float:
        leaves = torch.cat([confidences >= threshold, torch.ones_like(confidences[:1], dtype=torch.bool)])
        return 1 - float(work[leaves.int().argmax(0)].mean()) / full

    low, high = 0, len(candidates) - 1
    if saved(float(candidates[0])) < saving:
        raise SettingError(
            f"early-exits: saving {saving:.0%} of the MACs is out of reach: if every sample left at the first exit, "
            f"{saved(0.0):.0%} would be saved. Ask for less, or put the exit earlier."
        )
    while low < high:  # the saving falls as the threshold rises
        middle = (low + high + 1) // 2
        low, high = (middle, high) if saved(float(candidates[middle])) >= saving else (low, middle - 1)
    return float(candidates[low])


def set_thresholds_(bench: Workbench, saving: float) -> None:
    """Choose the exits' threshold on the validation set and store it in the network."""

    def choose() -> Json:
        network = bench.network.to(bench.accelerator.device)
        found = answer(network, bench.task, bench.task.valid)
        assert found.at_exits is not None
        confidences = torch.stack([a.softmax(-1).amax(-1) for a in found.at_exits[:-1]])
        return confidence_threshold(confidences, macs_to_exits(network), macs_without_exits(network), saving)

    threshold = bench.decide("exit-threshold", choose)
    bench.network.set_thresholds([threshold] * len(bench.network.exits))
    bench.facts["exit threshold"] = threshold


class EarlyExits(TrainedStage):
    """Attach exits, train all answers together, choose the confidence at which samples leave on the validation set."""

    label: ClassVar[str] = "early-exits"
    needs: ClassVar[tuple[str, ...]] = ("classification", "labels or a teacher")
    after: tuple[str, ...] = Field(default=(), description="layers to put an exit behind; empty: evenly by MACs")
    exits: int = Field(default=1, ge=1, description="how many, where `after` is empty")
    saving: float = Field(
        default=0.3, gt=0, lt=1, description="share of the MACs to save on average, on the validation set"
    )

    def apply(self, bench: Workbench) -> None:
        if not bench.task.is_classification:
            raise SettingError(
                f"{self.label}: confidence needs classification; this task's metric is {bench.task.metric.name}."
            )
        network = bench.network
        if self.after:
            paths = select(network.layers().items(), self.after, f"{self.label}: after")
            places = [network.node_of(path).name for path in paths]
        else:
            places = places_for_exits(network, self.exits)
        bench.network = attach_exits(network, places)
        bench.train(self.schedule(), self.parts(bench))
        bench.facts["exits after"] = [
            next(n.path or n.name for n in bench.network.nodes if n.name == place) for place in places
        ]
        set_thresholds_(bench, self.saving)
        saving = self.saving
        bench.standing["exit thresholds"] = lambda later: set_thresholds_(later, saving)

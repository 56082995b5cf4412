"""Early exits: answers on the way, and samples that leave when one of them is sure.

A head after an inner layer averages to a small map and classifies that. All answers are trained together, the sum of their
losses, or the heads alone. In use a sample leaves at the first exit whose largest softmax probability reaches the threshold;
what follows is not computed for it.
Sources: Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686; Huang et al. 2018 (MSDNet), arXiv:1703.09844, section 4
(the sum of losses; thresholds from the validation set for a computational budget); Kaya et al. 2019 (Shallow-Deep Networks),
arXiv:1810.07052 (maps of 4 x 4 before a linear layer, there of maxima and means mixed; heads behind a network that stays as it
is).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn

from penjing.dynamic.calibration import calibrate_exits, with_temperatures
from penjing.dynamic.maps import MAP, means_over_parts
from penjing.dynamic.thresholds import AtExits, Thresholds, checked, for_drop, for_saving
from penjing.errors import SettingError, SurgeryError
from penjing.graph import NEVER, Network, Node, insert_after, node_shapes
from penjing.graph.features import layers_like, node_named
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT, needed
from penjing.graph.ops import OPERATIONS
from penjing.graph.program import gates_around
from penjing.measurement import answer, macs_by_node
from penjing.shapes import Json
from penjing.training import Part, TrainedStage, Workbench
from penjing.training.part import OnlyLearn
from penjing.training.self_teaching import LearnFromLastAnswer
from penjing.units import parse_points


def attach_exits(network: Network, after: Sequence[str], places: int = MAP) -> Network:
    """Put an exit behind each of these nodes: mean over parts of the map, linear layer, exit.

    Args:
        after: names of nodes whose results are (batch, channels) or (batch, channels, height, width).
        places: a head sees means over so many parts a side, see `means_over_parts`.
    Returns: the network with the exits in order of execution, and thresholds that nobody reaches.
    Raises: SurgeryError: a node whose result has another shape, or that not every sample comes to.
    """
    around = gates_around(network.nodes)
    for name in after:
        if around[name]:
            raise SurgeryError(
                f'early exits: "{name}" lies in a block that not every sample enters; put the exit behind it.'
            )
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
        head, width = means_over_parts(network, f"exit_{number}", name, shape, places)
        source = head[-1].name if head else name
        head.append(Node(network.fresh_name(f"exit_{number}_linear"), MODULE, (source,), path))
        head.append(Node(network.fresh_name(f"exit_{number}"), EXIT, (head[-1].name,), settings={"threshold": NEVER}))
        linear = nn.Linear(width, n_classes).to(parameter.device, parameter.dtype)
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


def _by(node: Node, confidence: str) -> dict[str, object]:
    """The settings of an exit with another confidence."""
    rest = {name: value for name, value in node.settings.items() if name != "confidence"}
    return rest if confidence == "largest" else {**rest, "confidence": confidence}


def _ends_a_block(network: Network, node: Node) -> bool:
    if node.op == INPUT:
        return False
    if node.op != MODULE:
        return node.op in OPERATIONS and (OPERATIONS[node.op].elementwise or "pool" in node.op)
    kind = kind_of(network.get_submodule(node.path))
    return kind is not None and (MODULES[kind].elementwise or "Pool" in kind)


@dataclass(frozen=True)
class Choice:
    """How exit thresholds are chosen on the validation set.

    Attributes:
        saving: share of the MACs to save on average; or
        max_drop: accuracy that may be lost against the final answer, as a fraction.
        kind: one threshold for all exits, or one for each, see `for_saving`.
        calibrate: temperatures first, see `calibrate_exits`.
    """

    saving: float | None
    max_drop: float | None
    kind: Thresholds
    calibrate: bool

    def apply(self, bench: Workbench) -> None:
        """Choose the thresholds for the network as it now is and store them in it."""

        def choose() -> Json:
            network = bench.network.to(bench.accelerator.device)
            answers = answer(network, bench.task, bench.task.valid)
            temperatures: list[float] = []
            if self.calibrate:
                network, temperatures = calibrate_exits(network, answers)
                answers = answer(network, bench.task, bench.task.valid)
            at = AtExits.of(network, answers)
            if self.max_drop is None:
                thresholds = for_saving(at, 0.3 if self.saving is None else self.saving, self.kind)
            else:
                thresholds = for_drop(at, self.max_drop, self.kind)
            notes: list[str] = []
            facts = checked(at, thresholds, notes.append)
            if all(threshold >= NEVER for threshold in thresholds):
                notes.append(
                    "No sample leaves early: every way of leaving loses more accuracy than max_drop, or saves nothing."
                )
            return {"thresholds": thresholds, "temperatures": temperatures, "facts": facts, "notes": notes}

        found = bench.decide("exit-thresholds", choose)
        if found["temperatures"]:
            bench.network = with_temperatures(bench.network, found["temperatures"])
            bench.facts["exit temperatures"] = [round(t, 4) for t in found["temperatures"]]
        bench.network.set_thresholds(found["thresholds"])
        bench.facts["exit thresholds"] = [round(t, 4) for t in bench.network.thresholds]
        bench.facts.update(found["facts"])
        for note in found["notes"]:
            bench.warn(note)


class EarlyExits(TrainedStage):
    """Attach exits, train all answers together, choose the confidence at which samples leave on the validation set.

    A network that has exits already, such as MSDNet, keeps those, unless `after` or `exits` ask for more.
    """

    label: ClassVar[str] = "early-exits"
    needs: ClassVar[tuple[str, ...]] = ("classification", "labels or a teacher")
    after: tuple[str, ...] = Field(
        default=(), description="layers or blocks to put an exit behind; empty: evenly by MACs"
    )
    exits: int | None = Field(
        default=None, ge=1, description="how many, where `after` is empty; none: those that are there, else 1"
    )
    saving: float | None = Field(
        default=None, gt=0, lt=1, description="share of the MACs to save on average, on the validation set; none: 0.3"
    )
    max_drop: float | None = Field(
        default=None,
        description='instead: accuracy that may be lost on the validation set, "0.5 pp"; saves what it can',
    )
    thresholds: Thresholds = Field(
        default="common", description="common: one for all exits; geometric: one for each, shares in proportion to r^k"
    )
    confidence: Literal["largest", "margin", "entropy"] = Field(
        default="largest", description="how sure an answer is: largest probability, margin to the second, 1 - entropy"
    )
    calibrate: bool = Field(
        default=False, description="divide each answer's logits by a temperature fitted on the validation set first"
    )
    in_place: float | None = Field(
        default=None, ge=0, le=1, description="weight of the last answer as the teacher of the exits; none: labels only"
    )
    places: int = Field(
        default=MAP, ge=1, description="places a side of the map that a head looks at; 1 for the mean over all"
    )
    weight: float = Field(default=1.0, gt=0, description="of an exit's loss, where the last answer's has 1")
    heads_only: bool = Field(
        default=False, description="train the heads alone: the last answer stays what it was, to the bit"
    )

    @field_validator("max_drop", mode="before")
    @classmethod
    def _drop(cls, value: Any) -> Any:
        return parse_points(value, "early-exits: max_drop") if isinstance(value, (int, float, str)) else value

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        if self.saving is not None and self.max_drop is not None:
            raise ValueError("choose saving or max_drop, not both")
        if self.in_place is not None and self.teacher is not None:
            raise ValueError("choose a teacher or in_place, not both")
        if self.weight != 1 and self.teacher is not None:
            raise ValueError("weight is for labels and in_place; with a teacher all answers count alike")
        return self

    def apply(self, bench: Workbench) -> None:
        if not bench.task.is_classification:
            raise SettingError(
                f"{self.label}: confidence needs classification; this task's metric is {bench.task.metric.name}."
            )
        network = bench.network
        places: list[str] = []
        if self.after:
            where = f"{self.label}: after"
            names = [name for pattern in self.after for name in layers_like(network, pattern, where)]
            places = list(dict.fromkeys(node_named(network, name, where) for name in names))
        elif self.exits is not None or not network.exits:
            places = places_for_exits(network, self.exits or 1)
        if places:
            bench.network = attach_exits(network, places, self.places)
            by_name = {node.name: node for node in bench.network.nodes}
            bench.facts["exits after"] = [by_name[place].path or by_name[place].scope or place for place in places]
        bench.network.nodes = [
            replace(node, settings=_by(node, self.confidence)) if node.op == EXIT else node
            for node in bench.network.nodes
        ]
        bench.train(self.schedule(), self.parts(bench))
        choice = Choice(self.saving, self.max_drop, self.thresholds, self.calibrate)
        choice.apply(bench)
        bench.standing["exit thresholds"] = choice.apply

    def parts(self, bench: Workbench) -> list[Part]:
        found: list[Part] = [LearnFromLastAnswer(self.in_place or 0.0, self.temperature, self.weight), *self.averages()]
        if self.in_place is None and self.weight == 1:
            found = super().parts(bench)
        return [*found, OnlyLearn(_heads(bench.network))] if self.heads_only else found


def _heads(network: Network) -> list[str]:
    """The layers that the last answer does without."""
    last = {node.path for node in needed([node for node in network.nodes if node.op != EXIT])}
    return [path for path in network.layers() if path not in last]

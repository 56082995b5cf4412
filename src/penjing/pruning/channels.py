"""Channel pruning: whole channels are removed, from every layer they run through, a few at a time.

score -> ranking -> removal -> fine-tuning, and again. What is removed is gone from the weights, the file and the clock.
Sources: Li et al. 2017, arXiv:1608.08710 (filters); Molchanov et al. 2017, arXiv:1611.06440 (rounds with fine-tuning, ranking
over all layers with scores divided by their norm in each layer); Hu et al. 2016, arXiv:1607.03250 (the rule of often-zero
channels).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Group, Grouping, Network, channel_groups, prove_removal, remove_channels, select
from penjing.pruning.amounts import AMOUNTS, COUNTED, Amount, Stopwatch, fewest, first_of, in_order, search
from penjing.pruning.apoz import average_zeros, often_zero
from penjing.pruning.channel_scores import channel_scores, check_score
from penjing.pruning.evidence import evidence_of, samples_of
from penjing.shapes import Json
from penjing.training import TrainedStage, Workbench

_LATENCY_STEPS = 5
"""Networks that are timed in one round."""


def choose_channels(
    groups: Sequence[Group], scores: Sequence[Tensor], n_remove: int, *, keep_at_least: int = 2, at_most: float = 1.0
) -> list[list[int]]:
    """Which channels to remove: the least important of all groups together.

    Args:
        scores: per group (channels,); compared as they are.
        n_remove: how many in all; fewer where the limits leave fewer.
        keep_at_least: channels that every group keeps.
        at_most: largest fraction of a group's channels that may go.
    Returns: per group the positions of its channels to remove, ascending.
    """
    chosen: list[list[int]] = [[] for _ in groups]
    for g, c in in_order(groups, scores, keep_at_least=keep_at_least, at_most=at_most)[: max(n_remove, 0)]:
        chosen[g].append(c)
    return [sorted(positions) for positions in chosen]


class RemoveInRounds(TrainedStage):
    """Base of stages that remove channels in rounds and train after each. Subclasses say which groups they choose from."""

    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    sparsity: float = Field(default=0.5, gt=0, lt=1, description="fraction of all channels that are gone in the end")
    parameters: float | None = Field(
        default=None, gt=0, lt=1, description="instead of sparsity: fraction of the parameters that are gone in the end"
    )
    macs: float | None = Field(
        default=None, gt=0, lt=1, description="instead: fraction of the multiply-accumulates, counted exactly"
    )
    latency: float | None = Field(
        default=None, gt=0, lt=1, description="instead: fraction of the time of one sample, measured on this machine"
    )
    rule: Literal["apoz"] | None = Field(
        default=None,
        description="instead of an amount: apoz, channels whose share of zeros is over mean + deviation of their layer",
    )
    rounds: int = Field(default=5, ge=1, description="in how many steps; about 10 % a step is gentle")
    score: str = Field(
        default="taylor", description='what makes a channel important; "weights:NAME" sums one of weights'
    )
    layers: tuple[str, ...] = Field(
        default=("*",), description="whose output channels: names, globs, type:Class, !not-this"
    )
    uniform: bool = Field(default=False, description="the same fraction of every layer, instead of a ranking over all")
    keep_at_least: int = Field(default=2, ge=1, description="channels that every layer keeps")
    round_to: int = Field(default=1, ge=1, description="of every layer a multiple of so many channels stays")
    batches: int = Field(default=20, ge=1, description="training batches that the score is averaged over")

    @field_validator("score")
    @classmethod
    def _known_score(cls, value: str) -> str:
        return check_score(value, f"{cls.where()}: score")

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        given = [name for name in (*AMOUNTS[1:], "rule") if getattr(self, name) is not None]
        given += ["sparsity"] if given and "sparsity" in self.model_fields_set else []
        if len(given) > 1:
            raise SettingError(f"{self.where()}: {' and '.join(given)} say how much goes; give one of them.")
        return self

    @property
    def amount(self) -> tuple[Amount, float]:
        """What is counted or measured, and the fraction of it that goes."""
        for name in AMOUNTS[1:]:
            if (value := getattr(self, name)) is not None:
                return name, float(value)
        return "sparsity", self.sparsity

    def planned_epochs(self) -> int:
        return self.epochs * self.rounds

    @abstractmethod
    def among(self, network: Network, groups: Sequence[Group]) -> list[Group]:
        """Those of the groups of the chosen layers that the stage may choose from."""

    def without_any(self, bench: Workbench, grouping: Grouping) -> None:
        """What is done where there are none. Raises: SettingError, unless a subclass knows better."""
        kept = "; ".join(f"{path}: {reason}" for path, reason in grouping.kept.items())
        raise SettingError(f"{self.label}: none of the chosen layers has channels that can be removed ({kept}).")

    def apply(self, bench: Workbench) -> None:
        grouping = channel_groups(bench.network)
        layers = bench.network.layers()
        layers |= {path: layer for path, layer in grouping.producers.items() if path not in layers}
        chosen = set(select(layers.items(), self.layers, f"{self.label}: layers"))
        before, start = bench.network, sum(g.n_channels for g in self._groups(bench.network, grouping, chosen))
        if not start:
            self.without_any(bench, grouping)
            return
        removed: list[Json] = []
        measured: list[Json] = []
        for turn in range(1, self.rounds + 1):
            grouping = channel_groups(bench.network)
            groups = self._groups(bench.network, grouping, chosen)
            decision = bench.decide(
                f"round-{turn}", _Round(self, bench, grouping, groups, turn, before=before, start=start).choose
            )
            self._remove(bench, grouping, groups, decision, turn)
            bench.train(self.schedule(), self.parts(bench), f"round-{turn}")
            removed.append({name: len(positions) for name, positions in decision["channels"].items()})
            measured.append(decision["left"])
        widths = {g.name: g.n_channels for g in channel_groups(bench.network).groups}
        bench.facts |= {"channels left": widths, "kept whole": grouping.kept, "removed in each round": removed}
        if self.amount[0] != "sparsity":
            bench.facts[f"{self.amount[0]} left after each round"] = measured

    def _groups(self, network: Network, grouping: Grouping, chosen: set[str]) -> list[Group]:
        return self.among(network, [g for g in grouping.groups if chosen & set(g.producers)])

    def _remove(self, bench: Workbench, grouping: Grouping, groups: Sequence[Group], decision: Any, turn: int) -> None:
        """Cut what was decided, and say what could not be reached and which groups were in the way."""
        channels: dict[str, list[int]] = decision["channels"]
        if decision["short"]:
            full = [g.name for g in groups if g.n_channels - len(channels.get(g.name, ())) <= self.keep_at_least]
            where = f" ({', '.join(full)})" if full else ""
            bench.warn(f"round {turn}: only {decision['short']} can go, every layer keeps {self.keep_at_least}{where}")
        removal = grouping.removal(channels)
        if removal.n_channels:
            prove_removal(bench.network, removal)
            bench.network = remove_channels(bench.network, removal)


class PruneChannels(RemoveInRounds):
    """Remove channels in rounds, the same fraction of what is left each time, and train after each."""

    label: ClassVar[str] = "prune-channels"

    def among(self, network: Network, groups: Sequence[Group]) -> list[Group]:
        return list(groups)


class _Round:
    """One round's choice of channels."""

    def __init__(
        self,
        stage: RemoveInRounds,
        bench: Workbench,
        grouping: Grouping,
        groups: Sequence[Group],
        turn: int,
        *,
        before: Network,
        start: int,
    ) -> None:
        self.stage, self.bench, self.grouping, self.groups = stage, bench, grouping, groups
        self.before, self.start = before, start
        self.share_left = (1 - stage.amount[1]) ** (turn / stage.rounds)

    def choose(self) -> Json:
        """By group the positions that go; what is left of the amount; what is short of it, in words."""
        if self.stage.rule == "apoz":
            return self._often_zero()
        evidence = evidence_of(self.stage, self.bench, self.stage.batches)
        scores = channel_scores(self.stage.score, self.bench.network, self.groups, evidence)
        kind, _ = self.stage.amount
        if kind == "sparsity":
            return self._share_of_channels(scores)
        order = self._order(scores)
        if kind == "latency":
            return self._share_of_time(order)
        cost = COUNTED[kind]
        whole, limit = cost(self.before), cost(self.before) * self.share_left
        n = fewest(len(order), lambda k: cost(self._without(order, k)) <= limit)
        reached = cost(self._without(order, n))
        short = (
            "" if reached <= limit else f"{1 - reached / whole:.1%} of the {kind} instead of {1 - self.share_left:.1%}"
        )
        return {"channels": self._first(order, n), "left": round(reached / whole, 6), "short": short}

    def _share_of_channels(self, scores: Sequence[Tensor]) -> Json:
        n_now, left = sum(g.n_channels for g in self.groups), round(self.start * self.share_left)
        n_remove, keep = n_now - left, self.stage.keep_at_least
        if self.stage.uniform:
            each = [
                choose_channels([g], [s], round(n_remove / n_now * g.n_channels), keep_at_least=keep)[0]
                for g, s in zip(self.groups, scores, strict=True)
            ]
        else:
            each = choose_channels(self.groups, scores, n_remove, keep_at_least=keep, at_most=0.5)
        order = [(g, c) for g, own in enumerate(each) for _, c in sorted((float(scores[g][c]), c) for c in own)]
        channels = self._first(order, len(order))
        gone = sum(map(len, channels.values()))
        short = f"{gone} of {n_remove} channels" if len(order) < n_remove else ""
        return {"channels": channels, "left": round((n_now - gone) / self.start, 6), "short": short}

    def _share_of_time(self, order: list[tuple[int, int]]) -> Json:
        with Stopwatch(self.before) as watch:
            tried: dict[int, float] = {}

            def enough(k: int) -> bool:
                tried[k] = watch.share(self._without(order, k))
                return tried[k] <= self.share_left

            n = search(len(order), enough, steps=_LATENCY_STEPS)
            reached = tried[n] if n in tried else watch.share(self._without(order, n))
        asked = f"{1 - self.share_left:.1%}"
        short = "" if reached <= self.share_left else f"{1 - reached:.1%} of the latency instead of {asked}"
        return {"channels": self._first(order, n), "left": round(reached, 4), "short": short}

    def _often_zero(self) -> Json:
        network = self.bench.network.to(self.bench.accelerator.device)
        shares = average_zeros(network, self.groups, samples_of(self.bench, self.stage.batches))
        channels: dict[str, list[int]] = {}
        for group, share in zip(self.groups, shares, strict=True):
            worst = sorted((-float(share[c]), c) for c in often_zero(share))
            going = [(0, c) for _, c in worst[: max(0, group.n_channels - self.stage.keep_at_least)]]
            channels |= first_of([group], going, len(going), round_to=self.stage.round_to)
        left = sum(g.n_channels for g in self.groups) - sum(map(len, channels.values()))
        return {"channels": channels, "left": round(left / self.start, 6), "short": ""}

    def _order(self, scores: Sequence[Tensor]) -> list[tuple[int, int]]:
        return in_order(self.groups, scores, keep_at_least=self.stage.keep_at_least, uniform=self.stage.uniform)

    def _first(self, order: list[tuple[int, int]], n: int) -> dict[str, list[int]]:
        return first_of(self.groups, order, n, round_to=self.stage.round_to)

    def _without(self, order: list[tuple[int, int]], n: int) -> Network:
        return remove_channels(self.bench.network, self.grouping.removal(self._first(order, n)))

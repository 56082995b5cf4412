"""Channel pruning: whole channels are removed, from every layer they run through, a few at a time.

score -> ranking -> removal -> fine-tuning, and again. What is removed is gone from the weights, the file and the clock.
Sources: Li et al. 2017, arXiv:1608.08710 (filters); Molchanov et al. 2017, arXiv:1611.06440 (rounds with fine-tuning, ranking
over all layers with scores divided by their norm in each layer).
"""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Group, channel_groups, prove_removal, remove_channels, select
from penjing.pruning.magnitude import magnitude_scores
from penjing.pruning.taylor import taylor_scores
from penjing.shapes import Json
from penjing.training import Batch, TrainedStage, Workbench, over_exits


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
    room = [max(0, min(g.n_channels - keep_at_least, math.floor(at_most * g.n_channels))) for g in groups]
    ranked = sorted(
        ((float(value), g, c) for g, found in enumerate(scores) for c, value in enumerate(found)), key=lambda item: item
    )
    chosen: list[list[int]] = [[] for _ in groups]
    for _, g, c in ranked:
        if n_remove and len(chosen[g]) < room[g]:
            chosen[g].append(c)
            n_remove -= 1
    return [sorted(positions) for positions in chosen]


class PruneChannels(TrainedStage):
    """Remove channels in rounds, the same fraction of what is left each time, and train after each."""

    label: ClassVar[str] = "prune-channels"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    sparsity: float = Field(default=0.5, gt=0, lt=1, description="fraction of all channels that are gone in the end")
    rounds: int = Field(default=5, ge=1, description="in how many steps; about 10 % a step is gentle")
    score: Literal["taylor", "magnitude"] = Field(default="taylor", description="what makes a channel important")
    layers: tuple[str, ...] = Field(
        default=("*",), description="whose output channels: names, globs, type:Class, !not-this"
    )
    uniform: bool = Field(default=False, description="the same fraction of every layer, instead of a ranking over all")
    keep_at_least: int = Field(default=2, ge=1, description="channels that every layer keeps")
    batches: int = Field(default=20, ge=1, description="training batches that the score is averaged over")

    def planned_epochs(self) -> int:
        return self.epochs * self.rounds

    def apply(self, bench: Workbench) -> None:
        grouping = channel_groups(bench.network)
        patterns = f"{self.label}: layers"
        layers = bench.network.layers()
        layers |= {path: layer for path, layer in grouping.producers.items() if path not in layers}
        chosen = set(select(layers.items(), self.layers, patterns))
        start = sum(g.n_channels for g in grouping.groups if chosen & set(g.producers))
        if not start:
            kept = "; ".join(f"{path}: {reason}" for path, reason in grouping.kept.items())
            raise SettingError(f"{self.label}: none of the chosen layers has channels that can be removed ({kept}).")
        removed: list[Json] = []
        for turn in range(1, self.rounds + 1):
            left = round(start * (1 - self.sparsity) ** (turn / self.rounds))
            removed.append(self._one_round(bench, turn, chosen, left))
        widths = {g.name: g.n_channels for g in channel_groups(bench.network).groups}
        bench.facts |= {"channels left": widths, "kept whole": grouping.kept, "removed in each round": removed}

    def _one_round(self, bench: Workbench, turn: int, chosen: set[str], left: int) -> Json:
        grouping = channel_groups(bench.network)
        groups = [g for g in grouping.groups if chosen & set(g.producers)]
        n_remove = sum(g.n_channels for g in groups) - left

        def choose() -> Json:
            scores = self._scores(bench, groups)
            if self.uniform:
                share = n_remove / sum(g.n_channels for g in groups)
                each = [
                    choose_channels([g], [s], round(share * g.n_channels), keep_at_least=self.keep_at_least)[0]
                    for g, s in zip(groups, scores, strict=True)
                ]
            else:
                each = choose_channels(groups, scores, n_remove, keep_at_least=self.keep_at_least, at_most=0.5)
            return {g.name: positions for g, positions in zip(groups, each, strict=True) if positions}

        decision: dict[str, list[int]] = bench.decide(f"round-{turn}", choose)
        removal = grouping.removal(decision)
        if removal.n_channels < n_remove:
            bench.warn(
                f"round {turn}: only {removal.n_channels} of {n_remove} channels can go, every layer keeps {self.keep_at_least}"
            )
        if removal.n_channels:
            prove_removal(bench.network, removal)
            bench.network = remove_channels(bench.network, removal)
        bench.train(self.schedule(), self.parts(bench), f"round-{turn}")
        return {name: len(positions) for name, positions in decision.items()}

    def _scores(self, bench: Workbench, groups: Sequence[Group]) -> list[Tensor]:
        """Per group, divided by their norm so that layers can be compared."""
        if self.score == "magnitude":
            found = [magnitude_scores(bench.network, group) for group in groups]
        else:
            network = bench.network.to(bench.accelerator.device)
            teacher = bench.teacher(self.teacher, self.where()).to(bench.accelerator.device) if self.teacher else None

            def loss(batch: Batch) -> Tensor:
                answers = network.all_answers(*batch.args, **batch.kwargs)
                if batch.labels is None and teacher is not None:
                    target = teacher(*batch.args, **batch.kwargs).detach().softmax(-1)
                    return over_exits(answers, lambda a: torch.nn.functional.cross_entropy(a, target))
                return over_exits(answers, lambda a: bench.task.loss(a, batch.labels))

            loader = bench.task.batches(bench.task.train, bench.accelerator.device)
            found = taylor_scores(network, groups, loss, itertools.islice(loader, self.batches))
        return [score / score.norm().clamp_min(1e-12) for score in found]

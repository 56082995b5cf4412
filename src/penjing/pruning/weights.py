"""Weight pruning: single weights become 0 and stay so, under a mask.

score -> masks -> fine-tuning, and again. The layers keep their shapes; the file holds only what is kept.
Sources: Han et al. 2015, arXiv:1506.02626 (rounds); Zhu and Gupta 2018, arXiv:1710.01878 (within one training).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from penjing.errors import SettingError, nearest
from penjing.graph import select
from penjing.pruning.evidence import evidence_of, samples_of
from penjing.pruning.gradual import PruneGradually, masks_from_json, masks_to_json
from penjing.pruning.masks import (
    Chosen,
    Masks,
    apply_masks_,
    check_maskable,
    choose_masks,
    density_by_layer,
    masks_of,
    sparsity_of,
)
from penjing.pruning.scan import SensitivityScan, sensitivity_scan
from penjing.pruning.structures import read_structure
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.sensitivity import Evidence, SynapticIntelligence, Weights, weighted_layers
from penjing.shapes import Json
from penjing.training import Part, TrainedStage, Workbench
from penjing.training.seeding import derive_seed, seed_everything, seed_loader

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class PruneWeights(TrainedStage):
    """Set the least important weights to 0, in rounds or little by little, and train the others."""

    label: ClassVar[str] = "prune-weights"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    sparsity: float = Field(
        default=0.8, gt=0, lt=1, description="fraction of the chosen layers' weights gone in the end"
    )
    score: str = Field(default="magnitude", description="what makes a weight important: " + ", ".join(WEIGHT_SCORES))
    scope: Literal["global", "layer", "row"] = Field(
        default="global", description="who is compared: all weights, those of a layer, those of an output"
    )
    structure: str = Field(
        default="weights", description='what goes together: "weights", "2:4", "4x1" (rows x columns), "filter-shapes"'
    )
    pace: Literal["one-shot", "iterative", "gradual"] = Field(
        default="iterative",
        description="all at once, in rounds with training after each, or little by little while training",
    )
    rounds: int = Field(
        default=5, ge=1, description="for iterative: in how many rounds, the same fraction of the rest each"
    )
    every: int = Field(default=100, ge=1, description="for gradual: steps between two choices of masks")
    until: float = Field(
        default=0.75, gt=0, le=1, description="for gradual: fraction of the steps after which masks no longer change"
    )
    regrow: bool = Field(default=True, description="for gradual: whether removed weights can come back")
    layers: tuple[str, ...] = Field(default=("*",), description="which layers: names, globs, type:Class, !not-this")
    sparsities: dict[str, float] = Field(
        default={}, description="other fractions for some layers, by pattern, ranked each by itself; the last counts"
    )
    from_scan: float | None = Field(
        default=None,
        gt=0,
        description="each layer as sparse as loses at most this much of the metric by itself, instead of sparsity",
    )
    batches: int = Field(default=20, ge=1, description="training batches that the score looks at, where it does")

    @field_validator("score")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in WEIGHT_SCORES:
            raise ValueError(f'there is no score "{value}"; {nearest(value, WEIGHT_SCORES)}')
        return value

    @field_validator("sparsities")
    @classmethod
    def _fractions(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= fraction < 1 for fraction in value.values()):
            raise ValueError("each fraction must be at least 0 and less than 1")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        form = read_structure(self.structure, f"{self.label}: structure")
        if form.kind == "n:m":
            share = 1 - form.first / form.second
            if abs(self.sparsity - share) > 1e-6 or self.sparsities or self.from_scan is not None:
                raise SettingError(
                    f"{self.label}: structure {form} removes {share:.4g} of every layer; write sparsity: {share:.4g}, "
                    "and neither sparsities nor from_scan."
                )
            if self.pace == "gradual" or (self.pace == "iterative" and self.rounds > 1):
                raise SettingError(f"{self.label}: structure {form} has nothing in between; write pace: one-shot.")
        if self.scope == "row" and (form.kind == "filter-shapes" or (form.kind == "blocks" and form.first > 1)):
            raise SettingError(f"{self.label}: units of {form} run through several rows; use scope: layer or global.")
        if self.pace == "gradual" and not self.epochs:
            raise SettingError(f"{self.label}: pace: gradual prunes while training; give epochs, at least 1.")
        if WEIGHT_SCORES[self.score].path and (self.pace == "gradual" or not self.epochs):
            raise SettingError(
                f"{self.label}: {self.score} is accumulated in a training before each choice; give epochs, at least 1, and "
                "pace: one-shot or iterative."
            )
        return self

    @property
    def n_rounds(self) -> int:
        """How often weights are removed and the others trained."""
        return self.rounds if self.pace == "iterative" else 1

    def planned_epochs(self) -> int:
        return self.epochs * (self.n_rounds + WEIGHT_SCORES[self.score].path)

    def apply(self, bench: Workbench) -> None:
        names = self._chosen(bench)
        amounts = self._amounts(bench, names)
        if self.pace == "gradual":
            self._gradually(bench, names, amounts)
        else:
            self._in_rounds(bench, names, amounts)
        bench.facts |= {
            "sparsity of all layers": round(sparsity_of(bench.network), 6),
            "density by layer": {path: round(d, 6) for path, d in density_by_layer(bench.network).items()},
        }
        bench.warn("masks make the file smaller, not the network faster: the layers keep their shapes")

    def _chosen(self, bench: Workbench) -> list[str]:
        """The full names of the weights to prune. Raises: SettingError: none. SurgeryError: masks cannot go on them."""
        found = weighted_layers(bench.network)
        by_path = {name.rpartition(".")[0]: layer for name, layer in found.items()}
        paths = set(select(by_path.items(), self.layers, f"{self.label}: layers"))
        names = []
        for name, layer in found.items():
            if name.rpartition(".")[0] not in paths:
                continue
            if isinstance(layer, _TRANSPOSED) and (self.structure != "weights" or self.scope == "row"):
                bench.warn(f"{name} is left as it is: the rows of a transposed convolution are its inputs")
            else:
                names.append(name)
        if not names:
            raise SettingError(f"{self.label}: there is nothing to prune in the chosen layers.")
        check_maskable(bench.network, names)
        return names

    def _amounts(self, bench: Workbench, names: list[str]) -> dict[str, float | None]:
        """For each weight its own sparsity; None: it is ranked with the others."""
        amounts: dict[str, float | None] = dict.fromkeys(names)
        if self.from_scan is not None:
            data = bench.decide("scan", lambda: self._scan(bench).to_json())
            scan = SensitivityScan.from_json(data)
            amounts |= {name: s for name, s in scan.amounts(self.from_scan).items() if name in amounts}
            bench.facts["sensitivity scan"] = data
        by_path = {name.rpartition(".")[0]: weighted_layers(bench.network)[name] for name in names}
        for pattern, own in self.sparsities.items():
            for path in select(by_path.items(), (pattern,), f"{self.label}: sparsities"):
                amounts[f"{path}.weight"] = own
        return amounts

    def _scan(self, bench: Workbench) -> SensitivityScan:
        return sensitivity_scan(
            bench.network,
            bench.task,
            score=self.score,
            structure=self.structure,
            layers=self.layers,
            evidence=self._evidence(bench, "scan", {}),
        )

    def _evidence(self, bench: Workbench, place: object, path: Weights) -> Evidence:
        generator = torch.Generator().manual_seed(derive_seed(bench.seed, bench.key, place))
        return replace(evidence_of(self, bench, self.batches), generator=generator, path=path or None)

    def _choose(
        self,
        scores: Weights,
        amounts: Mapping[str, float | None],
        now: Callable[[float], float],
        already: Mapping[str, Tensor],
    ) -> Chosen:
        """Masks at a sparsity on the way, `now` of the final one."""
        alone = "row" if self.scope == "row" else "layer"
        together = {name: scores[name] for name, own in amounts.items() if own is None}
        masks: Masks = {}
        notes: list[str] = []
        if together:
            found = choose_masks(
                together, now(self.sparsity), scope=self.scope, already=already, structure=self.structure
            )
            masks, notes = dict(found.masks), list(found.notes)
        for name, own in amounts.items():
            if own is not None:
                found = choose_masks(
                    {name: scores[name]},
                    now(own),
                    scope=alone,  # type: ignore[arg-type]
                    already=already,
                    structure=self.structure,
                )
                masks |= found.masks
                notes += found.notes
        return Chosen(masks, notes)

    def _in_rounds(self, bench: Workbench, names: list[str], amounts: Mapping[str, float | None]) -> None:
        score = WEIGHT_SCORES[self.score]
        removed: list[float] = []
        path = self._train(bench, "path") if score.path else {}
        for turn in range(1, self.n_rounds + 1):

            def choose(turn: int = turn, path: Weights = path) -> Json:
                scores = score(bench.network, self._evidence(bench, f"round-{turn}", path))
                now = turn / self.n_rounds
                found = self._choose(scores, amounts, lambda s: 1 - (1 - s) ** now, masks_of(bench.network))
                return {"masks": masks_to_json(found.masks), "notes": found.notes}

            decision = bench.decide(f"round-{turn}", choose)
            shapes = {name: layer.weight.shape for name, layer in weighted_layers(bench.network).items()}
            masks = masks_from_json(decision["masks"], shapes)  # type: ignore[arg-type]
            apply_masks_(bench.network, masks)
            for note in decision["notes"]:
                bench.warn(f"round {turn}: {note}")
            n_kept, n_all = (
                sum(f(masks[name]) for name in names) for f in (lambda m: int(m.sum()), torch.Tensor.numel)
            )
            removed.append(round(1 - n_kept / n_all, 6))
            path = self._train(bench, f"round-{turn}", measure=score.path and turn < self.n_rounds)
        bench.facts["sparsity after each round"] = removed

    def _train(self, bench: Workbench, name: str, *, measure: bool = True) -> Weights:
        """Train; where it is asked for, with what synaptic intelligence accumulates meanwhile."""
        parts: list[Part] = self.parts(bench)
        if not measure:
            bench.train(self.schedule(), parts, name)
            return {}
        kept = bench.journal.training(f"{bench.key}-{name}-importance")
        part = SynapticIntelligence(keep=Path(f"{kept}.safetensors") if kept else None)
        bench.train(self.schedule(), [*parts, part], name)
        return part.importance()

    def _gradually(self, bench: Workbench, names: list[str], amounts: Mapping[str, float | None]) -> None:
        score = WEIGHT_SCORES[self.score]
        evidence = self._evidence(bench, "gradual", {})
        earlier = {name: mask.clone() for name, mask in masks_of(bench.network).items()}
        seed = derive_seed(bench.seed, bench.key, "gradual")
        seed_everything(seed)
        seed_loader(bench.task.train, seed)
        batches = list(samples_of(bench, self.batches)) if score.samples else []
        layers = weighted_layers(bench.network)
        whole = {n: torch.ones_like(layers[n].weight, dtype=torch.bool) for n in names}  # type: ignore[arg-type]
        apply_masks_(bench.network, whole)

        def choose(step: int, way: float) -> Masks:
            generator = torch.Generator().manual_seed(derive_seed(bench.seed, bench.key, step))
            scores = score(bench.network, replace(evidence, batches=lambda: batches, generator=generator))
            already = earlier if self.regrow else masks_of(bench.network)
            found = self._choose(scores, amounts, lambda s: way * s, already)
            return found.masks

        pruning = PruneGradually(choose, names, every=self.every, until=self.until, regrow=self.regrow)
        bench.train(self.schedule(), [*self.parts(bench), pruning])
        masks = masks_of(bench.network)
        n_all = sum(masks[name].numel() for name in names)
        asked = (
            sum((self.sparsity if own is None else own) * masks[name].numel() for name, own in amounts.items()) / n_all
        )
        reached = 1 - sum(int(masks[name].sum()) for name in names) / n_all
        if reached < asked - 1e-3:
            bench.warn(
                f"only {reached:.4f} of the weights went where {asked:.4f} were asked for: every layer keeps its best"
            )

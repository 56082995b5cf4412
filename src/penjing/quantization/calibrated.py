"""Calibrated coding: a trained network and a few hundred inputs without labels give a file several times smaller.

    batch norms folded ── inputs' second moments, Fisher information ── a step for each layer ── rounding with error feedback
    ── every layer checked on other inputs ── biases corrected ── grids, written by the context coder

The step of a layer is s = noise / sqrt(f v): f the mean Fisher information of its weights (for answers that are no classes, how
much these move), v the geometric mean of what its inputs do not explain of each other, in units of their mean square. So a bit
saved costs every layer the same divergence, which is the best there is at high rates.
Source: Frantar et al. 2023 (GPTQ), arXiv:2210.17323, for the feedback; Shoham and Gersho 1988 for equal slopes. Deviates:
conditional variances in the steps; the divergence of the answers is measured, and sets the noise.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from penjing.artifact import encode
from penjing.errors import SettingError
from penjing.graph import Network, fold_batch_norms
from penjing.measurement.divergence import divergence, final_answers
from penjing.quantization.bias_correction import correct_biases_
from penjing.quantization.error_feedback import conditional_factor, rounded_with_feedback, squared_change
from penjing.quantization.quantize import quantize_vectors_
from penjing.representation import Grid, Mask, Ties, plain, represent_, representations
from penjing.representation.steps import exponents_of, steps_of
from penjing.sensitivity import (
    Evidence,
    answer_information,
    fisher_information,
    input_covariances,
    weighted_layers,
)
from penjing.training import Batch, Stage, Workbench

_LARGEST = (1 << 15) - 1
_MOST_TRIES = 8
_HELD_OUT = 4
"""One batch of so many checks what the others chose."""


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration measures of one layer.

    Attributes:
        information: the mean over its weights of the Fisher information.
        factors: (groups, n, n), see `conditional_factor`; None: there are no second moments, it is rounded without feedback.
        unexplained: v, see above; 1 without second moments.
        checked: (groups, n, n), the second moments of the inputs on samples held out.
    """

    information: float
    factors: Tensor | None = None
    unexplained: float = 1.0
    checked: Tensor | None = None


def layer_statistics(
    network: Network, batches: list[Batch], *, classes: bool, generator: torch.Generator
) -> dict[str, LayerStatistics]:
    """By weight. One batch in four is only for checking; of a single batch half.

    Args:
        classes: whether the answers are scores of classes.
    """
    if len(batches) == 1:
        batches = _halves(batches[0])
    n_checked = max(len(batches) // _HELD_OUT, 1)
    seen, held_out = batches[:-n_checked], batches[-n_checked:]
    evidence = Evidence(batches=lambda: seen, generator=generator)
    information = (fisher_information if classes else answer_information)(network, evidence)
    covariances, checked = input_covariances(network, seen), input_covariances(network, held_out)
    found: dict[str, LayerStatistics] = {}
    for name, own in information.items():
        mean = float(own.double().mean())
        covariance = covariances.get(name)
        if covariance is None or not bool(covariance.diagonal(dim1=1, dim2=2).any()):
            found[name] = LayerStatistics(mean)
            continue
        factors = torch.stack([conditional_factor(group) for group in covariance])
        variances = factors.diagonal(dim1=1, dim2=2).square().reciprocal()
        unexplained = float(variances.log().mean().exp() / covariance.diagonal(dim1=1, dim2=2).mean())
        found[name] = LayerStatistics(mean, factors, unexplained, checked.get(name))
    return found


@dataclass(frozen=True)
class CodedLayer:
    """A weight on its grid, and how it fared against plain rounding.

    Attributes:
        grid: the codes.
        change, rounded_change: the squared change of the layer's answers on samples held out, with feedback and with plain
            rounding on the same grid; None where there are no second moments.
        repaired: whether feedback did worse, so that plain rounding was taken.
    """

    grid: Grid
    change: float | None = None
    rounded_change: float | None = None
    repaired: bool = False


def code_layer(weight: Tensor, statistics: LayerStatistics, noise: float, keep: Tensor | None = None) -> CodedLayer:
    """Put a weight on a grid.

    Args:
        weight: (outputs, ...), as the layer uses it.
        noise: the square root of the divergence that a step of its size costs, the same for all layers.
        keep: bool, where a mask lets weights stay.
    """
    rows = weight.detach().double().reshape(len(weight), -1)
    exact = noise / math.sqrt(max(statistics.information, 1e-20) * statistics.unexplained)
    step = float(steps_of(exponents_of(torch.tensor(exact))))
    steps = torch.full((1,) * weight.dim(), step)
    plainly = torch.round(rows / step).clamp(-_LARGEST, _LARGEST).long()
    if statistics.factors is None or statistics.checked is None:
        return CodedLayer(Grid(plainly.reshape(weight.shape), steps))
    groups = len(statistics.factors)
    kept = [None] * groups if keep is None else list(keep.reshape(len(weight), -1).chunk(groups))
    parts = zip(rows.chunk(groups), statistics.factors, kept, strict=True)
    fed = torch.cat([rounded_with_feedback(part, torch.tensor(step), factor, own) for part, factor, own in parts])
    change, rounded_change = (
        sum(
            squared_change(part, moments)
            for part, moments in zip((codes * step - rows).chunk(groups), statistics.checked, strict=True)
        )
        for codes in (fed, plainly)
    )
    repaired = change > rounded_change
    codes = plainly if repaired else fed
    return CodedLayer(Grid(codes.reshape(weight.shape), steps), change, rounded_change, repaired)


def code_network(
    network: Network, statistics: Mapping[str, LayerStatistics], noise: float
) -> tuple[Network, dict[str, CodedLayer]]:
    """A copy with all weights on grids. Biases and norms are left alone.

    Raises: SettingError: a weight that has a codebook or a grid already.
    """
    coded = copy.deepcopy(network)
    layers: dict[str, Any] = weighted_layers(coded)
    found: dict[str, CodedLayer] = {}
    ties = Ties(coded)
    for name, own in statistics.items():
        layer = layers[name]
        if ties.repeats(layer, "weight"):
            continue
        stack = representations(layer, "weight")
        others = [part.kind for part in stack if not isinstance(part, Mask)]
        if others:
            raise SettingError(
                f"calibrated-coding: {name} has a {others[-1]} already; calibrate before that, or leave it out."
            )
        keep = stack[0].keep if stack and isinstance(stack[0], Mask) else None
        found[name] = code_layer(layer.weight, own, noise, keep)
        represent_(layer, "weight", found[name].grid.to(layer.weight.device))
    ties.share_()
    return coded, found


class CalibratedCoding(Stage):
    """Round the weights so that the network's answers hardly change, and write them as short as can be. Nothing is trained."""

    label: ClassVar[str] = "calibrated-coding"
    divergence: float | None = Field(
        default=None,
        gt=0,
        description="how far the answers may go from those before, on the validation set; if nothing is said, 0.05",
    )
    max_bytes: int | None = Field(default=None, gt=0, description="size of the file instead")
    noise: float | None = Field(
        default=None, gt=0, description="how coarse the grids are instead; nothing is searched then"
    )
    samples: int = Field(default=1024, ge=2, description="training samples to calibrate on; labels are not looked at")
    vector_bits: int = Field(default=10, ge=2, le=15, description="bits of biases and norms, one step for each vector")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("divergence", "max_bytes", "noise") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingError(f"calibrated-coding: {' and '.join(given)} are given; only one can decide.")
        return self

    def apply(self, bench: Workbench) -> None:
        before, stayed = fold_batch_norms(bench.network)
        before.to(bench.accelerator.device).eval()
        for name in stayed:
            bench.warn(
                f"the batch norm {name} does not follow a layer of its own; its statistics stay float32 in the file"
            )
        batches = bench.samples("calibration", self.samples)
        generator = torch.Generator().manual_seed(bench.seed)
        statistics = layer_statistics(before, batches, classes=bench.task.is_classification, generator=generator)
        search = _Search(self, bench, before, batches, statistics)
        noise = self.noise if self.noise is not None else float(bench.decide("noise", search.found))
        bench.network, coded, named = search.coded(noise)
        for name in named:
            bench.warn(f"{name} belongs to no layer of torch.nn; it stays float32 in the file")
        for name, layer in coded.items():
            if layer.repaired:
                bench.warn(
                    f"{name}: feedback did worse than plain rounding on samples held out, so it is rounded plainly"
                )
        bench.facts["noise"] = noise
        bench.facts["change of each layer against plain rounding"] = {
            name: layer.change / max(layer.rounded_change, 1e-30)
            for name, layer in coded.items()
            if layer.change is not None and layer.rounded_change is not None
        }


class _Search:
    """Tries noises until what was asked for holds."""

    def __init__(
        self,
        stage: CalibratedCoding,
        bench: Workbench,
        before: Network,
        batches: list[Batch],
        statistics: dict[str, LayerStatistics],
    ) -> None:
        self.stage, self.bench, self.before, self.batches, self.statistics = stage, bench, before, batches, statistics
        self.plain = plain(before).eval()
        self.n_weights = sum(layer.weight.numel() for layer in _weights(before))

    def coded(self, noise: float) -> tuple[Network, dict[str, CodedLayer], list[str]]:
        """The network as it will be saved, its layers, and what stays float32."""
        network, layers = code_network(self.before, self.statistics, noise)
        correct_biases_(self.plain, network, self.batches)
        return network, layers, quantize_vectors_(network, self.stage.vector_bits)

    def found(self) -> float:
        """The noise that comes nearest to the limit without passing it. Raises: SettingError: none that was tried keeps it."""
        limit = self.stage.max_bytes or self.stage.divergence or 0.05
        in_bytes = self.stage.max_bytes is not None
        measured = self._size if in_bytes else self._divergence
        # a grid of step s costs information * s^2 / 24 a weight; feedback makes it less
        noise = math.sqrt(24 * 0.05 / self.n_weights) if in_bytes else math.sqrt(24 * limit / self.n_weights)
        best: tuple[float, float] | None = None
        with self.bench.reporter.bar(f"{self.stage.label}: search", _MOST_TRIES) as bar:
            for _ in range(_MOST_TRIES):
                value = measured(noise)
                bar.advance(1, f"{value:,.0f} bytes" if in_bytes else f"divergence {value:.4f}")
                if value <= limit and (best is None or value > best[1]):
                    best = (noise, value)
                if 0.985 * limit <= value <= limit:
                    break
                if in_bytes:
                    noise *= 2 ** (8 * (value - 0.995 * limit) / self.n_weights)
                else:
                    noise *= math.sqrt(0.99 * limit / max(value, limit / 64))
        if best is None:
            raise SettingError(
                f"calibrated-coding: {'the file takes' if in_bytes else 'the divergence is'} {value:.6g}, more than the "
                f"{limit:g} asked for, after {_MOST_TRIES} tries. Ask for more."
            )
        return best[0]

    def _size(self, noise: float) -> float:
        return float(len(encode(self.coded(noise)[0])))

    def _divergence(self, noise: float) -> float:
        return divergence(self.bench.task, self.reference, self._valid_answers(self.coded(noise)[0]))

    @cached_property
    def reference(self) -> Tensor:
        """The answers before, on the validation set."""
        return self._valid_answers(self.plain)

    def _valid_answers(self, network: Network) -> Tensor:
        task = self.bench.task
        return final_answers(network, task.batches(task.valid, self.bench.accelerator.device))


def _weights(network: Network) -> list[Any]:
    return list(weighted_layers(network).values())


def _halves(batch: Batch) -> list[Batch]:
    middle = max(batch.size // 2, 1)
    return [
        Batch(
            tuple(x[part] for x in batch.args),
            {name: x[part] for name, x in batch.kwargs.items()},
            None,
        )
        for part in (slice(0, middle), slice(middle, None))
    ]

"""Calibrated coding: a trained network and a few hundred inputs without labels give a file several times smaller.

    batch norms folded ── second moments of inputs and gradients ── steps for rows and columns ── rounding with error feedback
    through the states of dependent quantization ── every layer checked on other inputs ── biases corrected ── the context coder

The answers change by f_r d M d^T when row r of a layer changes by d: f_r the Fisher information of a weight of it (for
answers that are no classes, how much these move), M the mean of two second moments, each with a mean diagonal of 1: of the
layer's inputs, and of its rows' gradients. The step of the weight in row r and column c is

    s_rc = noise / sqrt(f_r v_c),

v_c the part of input c that later inputs do not explain, a mean over a filter's places. A bit saved then costs the same
everywhere, which is the best there is at high rates.
Source: Frantar et al. 2023 (GPTQ), arXiv:2210.17323, for the feedback; Shoham and Gersho 1988 for equal slopes;
`error_feedback` for the rest. Deviates: two kinds of second moments; the divergence of the answers is measured, and
sets the noise.

Without any inputs one noise serves all rows of all layers, and batch norms are not folded, since a folded norm makes rows of
very different weight alike. Smooth noise takes the place of the samples: where every norm brings it to the mean and variance
that the norm's own shift and scale say, what layers take is like what they take of true inputs (`moments_of_noise`). In a
network without batch norms nothing is known of what goes through it, and weights are rounded without feedback.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from penjing.artifact import encode
from penjing.errors import SettingError
from penjing.graph import Network, fold_batch_norms, settled_batch_norms
from penjing.measurement.divergence import divergence, final_answers
from penjing.quantization.bias_correction import correct_biases_
from penjing.quantization.error_feedback import conditional_factor, rounded_with_feedback, squared_change
from penjing.quantization.quantize import quantize_vectors_
from penjing.quantization.refresh_norms import refresh_norms_
from penjing.quantization.roundable import check_roundable
from penjing.representation import Grid, Mask, Ties, plain, represent_, representations
from penjing.representation.steps import exponents_of, steps_of
from penjing.sensitivity import gradient_moments, input_covariances, layer_weights, noise_inputs, weighted_layers
from penjing.training import Batch, Stage, Workbench

_LARGEST = (1 << 15) - 1
_MOST_TRIES = 8
_HELD_OUT = 4
"""One batch of so many checks what the others chose."""
_LEAST_INFORMATION = 0.05
"""Of a row, as a part of the layer's mean: one that no sample spoke of must not be rounded to nothing."""
_COARSE = 4
"""Steps of rows and columns differ by whole quarters of an octave; finer ones would cost more than they save."""
_NOISE_SAMPLES = 256
_FINER = 0.55
"""A step of dependent quantization has about the error of a plain one of this part of it."""


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration measures of one layer.

    Attributes:
        information: (rows,), see above; above 0.
        factors: (groups, n, n), see `conditional_factor`, of M; None: there is no M, and no feedback.
        checked: (groups, n, n), the second moments of the inputs on samples held out.
    """

    information: Tensor
    factors: Tensor | None = None
    checked: Tensor | None = None


def layer_statistics(
    network: Network, batches: list[Batch], *, classes: bool, generator: torch.Generator, most_gradients: int = 1024
) -> dict[str, LayerStatistics]:
    """By weight. One batch in four is only for checking; of a single batch half.

    Args:
        classes: whether the answers are scores of classes.
        most_gradients: samples whose gradients are taken, which takes long in large networks; inputs of all are.
    """
    if len(batches) == 1:
        batches = _halves(batches[0])
    n_checked = max(len(batches) // _HELD_OUT, 1)
    seen, held_out = batches[:-n_checked], batches[-n_checked:]
    differentiated = _first(seen, most_gradients)
    gradients = gradient_moments(network, differentiated, classes=classes, generator=generator)
    covariances, checked = input_covariances(network, seen), input_covariances(network, held_out)
    layers: dict[str, Any] = weighted_layers(network)
    embeddings = {name for name in gradients if isinstance(layers[name], (nn.Embedding, nn.EmbeddingBag))}
    others = (
        gradient_moments(network, _first(held_out, most_gradients // 3), classes=classes, generator=generator)
        if embeddings
        else {}
    )
    found: dict[str, LayerStatistics] = {}
    for name, own in gradients.items():
        mean = float(own.rows.mean())
        rows = with_unseen(own.rows, others[name].rows) if name in embeddings else own.rows
        information = rows.clamp_min(max(_LEAST_INFORMATION * mean, 1e-20))
        inputs = covariances.get(name)
        if inputs is None or own.columns is None or not bool(inputs.diagonal(dim1=1, dim2=2).any()):
            found[name] = LayerStatistics(information)
            continue
        together = zip(inputs, own.columns, strict=True)
        factors = torch.stack([conditional_factor((_of_mean_1(a) + _of_mean_1(b)) / 2) for a, b in together])
        found[name] = LayerStatistics(information, factors, checked.get(name))
    return found


def with_unseen(rows: Tensor, held_out: Tensor) -> Tensor:
    """What rows of a table mean to samples in general, from what they mean to those that were seen.

    Words that no sample has are the most of a vocabulary, and new sentences have some of them. Of the information in samples
    held out let the share m lie in rows that the seen ones never used; then these get m of the whole, evenly, and no row
    gets less than they: (1 - m) f_r where f_r > 0, m sum f / |unseen| elsewhere. The share of the unseen is measured here as
    Good and Turing estimate it.

    Args:
        rows, held_out: (rows,), at least 0, of the seen samples and of those held out.
    Source: Good 1953, Biometrika 40, for the idea.
    """
    unseen = rows <= 0
    if not bool(unseen.any()) or not bool(rows.any()):
        return rows
    share = float(held_out[unseen].sum() / held_out.sum().clamp_min(1e-30))
    floor = share * float(rows.sum()) / int(unseen.sum())
    return ((1 - share) * rows).clamp_min(floor)


def moments_of_noise(
    network: Network, *, classes: bool, generator: torch.Generator
) -> dict[str, LayerStatistics] | None:
    """`layer_statistics` of smooth noise in a network whose batch norms have that noise's own statistics.

    A norm then gives each channel the mean beta and the deviation |gamma|, as it does for the inputs it was trained with.
    Returns: by weight; None where there are no such norms, or inputs are whole numbers.
    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2, for what norms know of their inputs. Deviates: they use it for
    biases, by formula; noise sent through the network gives the moments that feedback needs.
    """
    batches = noise_inputs(network, _NOISE_SAMPLES, generator)
    if batches is None or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        return None
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    batches = [batch.to(device) for batch in batches]
    adapted = copy.deepcopy(network).eval()
    refresh_norms_(adapted, batches)
    return layer_statistics(adapted, batches, classes=classes, generator=generator)


def statistics_without_inputs(
    network: Network, moments: Mapping[str, LayerStatistics] | None = None
) -> dict[str, LayerStatistics]:
    """By weight: the same information everywhere, so that noise is a step in units of the root mean square of all weights.

    Args:
        moments: where factors are taken from, by weight; None: there are none.
    Returns: by weight's full name.
    """
    weights = layer_weights(network)
    squares = sum(float(w.double().square().sum()) for w in weights.values())
    mean = squares / max(sum(w.numel() for w in weights.values()), 1)
    same = {name: torch.full((len(w),), 1 / max(mean, 1e-20), dtype=torch.float64) for name, w in weights.items()}
    if moments is None:
        return {name: LayerStatistics(own) for name, own in same.items()}
    return {name: replace(moments[name], information=own) for name, own in same.items()}


@dataclass(frozen=True)
class CodedLayer:
    """A weight on its grid, and how it fared against the same grid without feedback.

    Attributes:
        grid: the codes.
        change, rounded_change: the squared change of the layer's answers on samples held out, with feedback and without; None
            where there are no second moments.
        repaired: whether feedback did worse, so that it was left out.
    """

    grid: Grid
    change: float | None = None
    rounded_change: float | None = None
    repaired: bool = False


def layer_steps(shape: torch.Size, statistics: LayerStatistics, noise: float) -> tuple[Tensor, Tensor | None]:
    """s_rc as two factors, each in `shape`'s dimensions: (rows, 1, ...), and (1, inputs, 1, ...) or None for no differences.

    The first is one number where rows do not differ. Both are powers of two to the 16th part.
    """
    logs = -0.5 * torch.log2(statistics.information.double())
    ones = (1,) * (len(shape) - 1)
    if statistics.factors is None:
        return _octaves(logs, math.log2(noise)).view(-1, *ones), None
    # (groups, n) -> (inputs of a group,)
    by_input = statistics.factors.diagonal(dim1=1, dim2=2).log2().unflatten(1, (shape[1], -1)).mean((0, 2))
    middle = float(by_input.mean())
    columns = _octaves(by_input - middle, 0.0)
    rows = _octaves(logs, math.log2(noise) + middle).view(-1, *ones)
    return rows, columns.view(1, -1, *ones[1:]) if len(columns) > 1 else None


def code_layer(
    weight: Tensor,
    statistics: LayerStatistics,
    noise: float,
    keep: Tensor | None = None,
    *,
    dependent: bool = True,
    price: float = 0.0,
) -> CodedLayer:
    """Put a weight on a grid.

    Args:
        weight: (rows, ...), as the layer uses it.
        noise: the square root of the divergence that a step of its size costs, the same for all layers.
        keep: bool, where a mask lets weights stay.
        dependent: see `entropy.trellis`.
        price: of a bit, in squared steps.
    """
    rows = weight.detach().double().cpu().reshape(len(weight), -1)
    own_noise = noise * _FINER if dependent else noise
    steps, columns = layer_steps(weight.shape, statistics, own_noise)
    each = steps.double() if columns is None else steps.double() * columns.double()
    each = each.expand(weight.shape).reshape(rows.shape)
    kept = torch.ones(rows.shape, dtype=torch.bool) if keep is None else keep.cpu().reshape(rows.shape)
    prices = price * own_noise**2 / statistics.information
    groups = 1 if statistics.factors is None else len(statistics.factors)

    def rounded(factors: Tensor) -> Tensor:
        parts = zip(*(x.chunk(groups) for x in (rows, each, kept, prices)), factors, strict=True)
        found = [
            rounded_with_feedback(row, step, factor, own, dependent=dependent, price=cost)
            for row, step, own, cost, factor in parts
        ]
        return torch.cat(found)

    def coded(codes: Tensor) -> Grid:
        return Grid(codes.reshape(weight.shape), steps.float(), columns=columns)

    n = rows.shape[1]
    alone = torch.eye(n, dtype=torch.float64).expand(groups, n, n)
    if statistics.factors is None or statistics.checked is None:
        return CodedLayer(coded(rounded(alone)))
    alone = alone * statistics.factors.diagonal(dim1=1, dim2=2)[:, None]
    fed, plainly = rounded(statistics.factors), rounded(alone)
    change, rounded_change = (
        sum(
            squared_change(part, moments)
            for part, moments in zip((codes * each - rows).chunk(groups), statistics.checked, strict=True)
        )
        for codes in (fed, plainly)
    )
    repaired = change > rounded_change
    return CodedLayer(coded(plainly if repaired else fed), change, rounded_change, repaired)


def code_network(
    network: Network,
    statistics: Mapping[str, LayerStatistics],
    noise: float,
    *,
    dependent: bool = True,
    price: float = 0.0,
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
        found[name] = code_layer(layer.weight, own, noise, keep, dependent=dependent, price=price)
        represent_(layer, "weight", found[name].grid.to(layer.weight.device))
    ties.share_()
    return coded, found


def _octaves(logs: Tensor, middle: float) -> Tensor:
    """2^(logs + middle), the differences from their mean rounded to quarters, one number where they are all alike."""
    mean = float(logs.mean())
    unit = _COARSE / 16
    rounded = torch.round((logs - mean) / unit) * unit
    base = float(exponents_of(torch.tensor(2.0 ** (mean + middle)))) / 16
    if not bool((rounded - rounded[:1]).any()):
        rounded = rounded[:1]
    return steps_of(torch.round((rounded + base) * 16))


def _of_mean_1(moments: Tensor) -> Tensor:
    return moments / moments.diagonal().mean().clamp_min(1e-30)


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
    samples: int = Field(
        default=1024,
        ge=0,
        description="training samples to calibrate on; labels are not looked at; 0: none, noise where batch norms allow it",
    )
    gradients: int = Field(
        default=1024,
        ge=1,
        description="of those samples, how many are differentiated; fewer are faster in large networks",
    )
    dependent: bool | None = Field(
        default=None,
        description="dependent (trellis-coded) quantization: smaller, slower to write and read; if unsaid, in all files "
        "but fast ones",
    )
    price: float = Field(
        default=0.0,
        ge=0,
        description="of a bit, in squared steps, where roundings are chosen by rate and distortion; 0.05 is much",
    )
    vector_bits: int | None = Field(
        default=None,
        ge=2,
        le=15,
        description="bits of biases and norms, one step for each vector; if nothing is said, 10, and 12 without samples",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("divergence", "max_bytes", "noise") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingError(f"calibrated-coding: {' and '.join(given)} are given; only one can decide.")
        if self.samples == 1:
            raise SettingError(
                "calibrated-coding: samples must be 0, for none, or at least 2: some check what others chose."
            )
        return self

    def apply(self, bench: Workbench) -> None:
        device, classes = bench.accelerator.device, bench.task.is_classification
        generator = torch.Generator().manual_seed(bench.seed)
        if self.samples:
            before, stayed = fold_batch_norms(bench.network)
            before.to(device).eval()
            check_roundable(before, self.label)
            for name in stayed:
                bench.warn(
                    f"the batch norm {name} does not follow a layer of its own; its statistics stay float32 in the file"
                )
            batches = bench.samples("calibration", self.samples)
            statistics = layer_statistics(
                before, batches, classes=classes, generator=generator, most_gradients=self.gradients
            )
        else:
            bench.network.to(device)
            check_roundable(bench.network, self.label)
            moments = moments_of_noise(bench.network, classes=classes, generator=generator)
            bench.warn(
                "no samples: weights are rounded without feedback, biases are not corrected"
                if moments is None
                else "no samples: feedback goes by noise that batch norms make like their inputs; biases are not corrected"
            )
            before, settled = settled_batch_norms(bench.network)
            before.eval()
            if settled:
                bench.warn("batch norms became scales and shifts; a training after this stage would begin far off")
            batches, statistics = [], statistics_without_inputs(before, moments)
        search = _Search(self, bench, before, batches, statistics)
        noise = self.noise if self.noise is not None else float(bench.decide("noise", search.found))
        bench.network, coded, named = search.coded(noise)
        for name in named:
            bench.warn(f"{name} belongs to no layer of torch.nn; it stays float32 in the file")
        for name, layer in coded.items():
            if layer.repaired:
                bench.warn(f"{name}: feedback did worse than none on samples held out, so it is rounded without")
        bench.facts["noise"] = noise
        bench.facts["change of each layer against no feedback"] = {
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
        self.dependent = bench.speed == "small" if stage.dependent is None else stage.dependent
        self.n_weights = sum(layer.weight.numel() for layer in _weights(before))

    def coded(self, noise: float) -> tuple[Network, dict[str, CodedLayer], list[str]]:
        """The network as it will be saved, its layers, and what stays float32."""
        network, layers = code_network(
            self.before, self.statistics, noise, dependent=self.dependent, price=self.stage.price
        )
        if self.batches:
            correct_biases_(self.plain, network, self.batches)
        bits = self.stage.vector_bits or (10 if self.batches else 12)
        return network, layers, quantize_vectors_(network, bits)

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
        return float(len(encode(self.coded(noise)[0], speed=self.bench.speed)))

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


def _first(batches: list[Batch], n: int) -> list[Batch]:
    """As few of them as have `n` samples, at least one."""
    found, total = [], 0
    for batch in batches:
        found.append(batch)
        total += batch.size
        if total >= n:
            break
    return found


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

"""The stage that gives weights fewer bits: after training, or while training goes on."""

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from penjing.artifact import encode
from penjing.entropy import context_coder
from penjing.errors import SettingError
from penjing.graph import Network, fold_batch_norms, select, settled_batch_norms
from penjing.measurement.divergence import divergence, final_answers
from penjing.objective import code_lengths, expected_code_length
from penjing.quantization.activations import integer_biases, quantize_activations, round_biases_
from penjing.quantization.bias_correction import correct_biases_
from penjing.quantization.bit_allocation import Choice, allocate
from penjing.quantization.rated_steps import steps_at_rate
from penjing.quantization.roundable import check_roundable
from penjing.quantization.uniform import Per, Range, Scheme, quantize_, quantized, steps_shape
from penjing.representation import Grid, Ties, named_weights, plain, representations
from penjing.shapes import Json
from penjing.training import Batch, Fit, Part, TrainedStage, Workbench
from penjing.training.part import Answers

Norms = Literal["fold", "keep"]
_TRIED_BITS = (8, 7, 6, 5, 4, 3, 2)
_AS_IT_IS = 16
_MOST_ATTEMPTS = 8
_PRICE_RATE = 0.01
_LARGEST_PRICE = 100.0


def quantize_network(network: Network, scheme: Scheme, bits: Mapping[str, int], vector_bits: int) -> list[str]:
    """Put the parameters of all layers on grids, in place.

    Args:
        scheme: for matrices and filters.
        bits: of their weights, by layer; those of other layers stay as they are.
        vector_bits: for biases and norms, one step for each vector.
    Returns: the parameters that belong to no layer, by name; they stay as they are.
    """
    quantize_matrices_(network, scheme, bits)
    return quantize_vectors_(network, vector_bits)


def quantize_matrices_(network: Network, scheme: Scheme, bits: Mapping[str, int]) -> None:
    """Put matrices and filters on grids of so many bits, by layer, in place."""
    ties = Ties(network)
    for full_name, layer, name in list(named_weights(network)):
        own = bits.get(full_name.rpartition(".")[0])
        if own is not None and getattr(layer, name).dim() > 1 and not ties.repeats(layer, name):
            quantize_(layer, name, replace(scheme, bits=own))
    ties.share_()


def quantize_vectors_(network: Network, bits: int, skip: Collection[str] = ()) -> list[str]:
    """Put biases and norms on a grid each, in place. Returns: parameters that belong to no layer; they stay.

    Args:
        skip: full names of those that are left as they are.
    """
    layers, stayed, ties = network.layers(), [], Ties(network)
    for full_name, layer, name in list(named_weights(network)):
        if full_name.rpartition(".")[0] not in layers:
            stayed.append(full_name)
        elif (
            full_name not in skip
            and getattr(layer, name).dim() < 2
            and not representations(layer, name)
            and not ties.repeats(layer, name)
        ):
            quantize_(layer, name, Scheme(bits, per="tensor", range="min-max"))
    ties.share_()
    return stayed


def follow_grids_(network: Network) -> None:
    """Let the originals under all grids be trained too; codes are then computed from them in every pass."""
    for _, grid, original, _ in on_grids(network):
        grid.follow = True
        original.requires_grad_(True)


def on_grids(network: Network) -> Iterator[tuple[str, Grid, Tensor, Tensor]]:
    """Every weight on a grid: full name, grid, original, and what the grid rounds, masked where there is a mask."""
    for full_name, owner, name in named_weights(network):
        stack = representations(owner, name)
        if stack and isinstance(stack[-1], Grid):
            original: Tensor = owner.parametrizations[name].original  # type: ignore[index, union-attr]
            rounded = original
            for part in stack[:-1]:
                rounded = part(rounded)
            yield full_name, stack[-1], original, rounded


def settle_grids_(network: Network) -> None:
    """The inverse: fix the codes as they now are."""
    for _, grid, original, rounded in on_grids(network):
        if grid.follow:
            grid.settle_(rounded.detach())
            original.requires_grad_(False)


class FollowGrids(Part):
    """Straight-through training: the codes are fixed when it is over.

    With a rate the loss has a term more: price * the bits a weight that `expected_code_length` foresees, over matrices and
    filters, with the code lengths of the codes as they now are in each layer. The price follows what is wanted: after each step
    price <- price * exp(0.01 (bits / rate - 1)), bits those of the codes as they are rounded.
    Source: of the idea, Wiedemann, Marban, Müller and Samek 2019, arXiv:1812.07520 (entropy-constrained training). Deviates:
    straight through, steps are trained too, the price is found while training.

    Args:
        rate: bits a weight; None: as many as it takes.
    Attributes:
        price: of a bit a weight, in units of the loss.
    """

    def __init__(self, rate: float | None = None, price: float = 0.3) -> None:
        self.rate, self.price = rate, price
        self._bits = 0.0

    def state(self) -> dict[str, object]:
        return {"price": self.price}

    def load_state(self, state: dict[str, object]) -> None:
        self.price = float(state["price"])  # type: ignore[arg-type]

    def after_step(self, fit: Fit) -> None:
        if self.rate is not None:
            self.price = min(self.price * math.exp(_PRICE_RATE * (self._bits / self.rate - 1)), _LARGEST_PRICE)

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        if self.rate is None:
            return None
        expected, rounded, n = [], 0.0, 0
        for _, grid, _, original in on_grids(fit.network):
            if grid.follow and original.dim() > 1:
                positions = grid.positions(original).float()
                with torch.no_grad():
                    codes = torch.round(positions.clamp(grid.low, grid.high))
                    lengths = code_lengths(codes, grid.low, grid.high)
                    rounded += float(lengths[(codes - grid.low).long()].sum())
                expected.append(expected_code_length(positions, lengths, grid.low))
                n += original.numel()
        if not expected:
            return None
        self._bits = rounded / n
        return self.price * torch.stack(expected).sum() / n

    def finish(self, fit: Fit) -> None:
        settle_grids_(fit.network)


class Quantize(TrainedStage):
    """Give weights fewer bits, biases and norms included; with epochs, train through the rounding, steps too."""

    label: ClassVar[str] = "quantize"
    epochs: int = Field(
        default=0, ge=0, description="passes over the training set, through the rounding; 0: no training"
    )
    lr: float = Field(default=1e-4, gt=0, description="largest learning rate")
    bits: int = Field(default=8, ge=1, le=8, description="bits of a weight")
    layers: dict[str, int] = Field(
        default={}, description="other numbers for some layers, by pattern; 16: left as they are"
    )
    per: Per = Field(
        default="channel", description="what has its own step: the tensor, each channel, each group of inputs"
    )
    group_size: int = Field(default=64, ge=1, description="inputs in a group")
    symmetric: bool = Field(
        default=True, description="0 is the middle of the grid; else it reaches from the least to the largest"
    )
    range: Range = Field(
        default="mse", description="what the grid spans: all values, a percentile, or what gives least squared error"
    )
    percentile: float = Field(default=99.9, gt=0, le=100, description="of the magnitudes, for that range")
    correct_biases: bool = Field(default=True, description="take what rounding adds to the means off the biases")
    samples: int = Field(default=512, ge=1, description="training samples to measure on; labels are not looked at")
    max_bytes: int | None = Field(
        default=None,
        gt=0,
        description="size of the file; the bits of each layer are then chosen, 2 to 8, by what they do",
    )
    vector_bits: int = Field(default=10, ge=2, le=15, description="bits of biases and norms, one step for each vector")
    activations: Literal[8] | None = Field(
        default=None,
        description="bits of what layers take and convolutions give, as integer arithmetic needs them; ranges as for weights",
    )
    rate: float | None = Field(
        default=None,
        gt=0,
        description="bits a weight that codes take in the end, such as 1.2; training makes them short, `bits` only bounds them",
    )
    norms: Norms = Field(
        default="fold",
        description="batch norms are folded into the layers before them, or kept as layers while training, and then written as "
        "scales and shifts",
    )

    @field_validator("layers")
    @classmethod
    def _possible(cls, value: dict[str, int]) -> dict[str, int]:
        if any(not (1 <= bits <= 8 or bits == 16) for bits in value.values()):
            raise ValueError("each number must be 1 to 8, or 16")
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        least = min([self.bits, *self.layers.values()])
        if self.symmetric and least < 2:
            raise SettingError(
                "quantize: a symmetric grid of 1 bit holds nothing but 0; use symmetric: false, or bits: 2."
            )
        if self.rate is not None and not (self.epochs and self.per == "tensor" and self.symmetric):
            raise SettingError(
                "quantize: rate needs epochs to reach it in, per: tensor and symmetric: true; got "
                f"epochs: {self.epochs}, per: {self.per}, symmetric: {str(self.symmetric).lower()}."
            )
        if self.activations is not None and self.norms == "keep":
            raise SettingError(
                "quantize: activations in integers need norms: fold; a norm between layers computes in floats."
            )
        if self.rate is not None and self.max_bytes is not None:
            raise SettingError("quantize: rate and max_bytes are given; only one can decide.")
        return self

    def scheme(self) -> Scheme:
        """For matrices and filters."""
        return Scheme(self.bits, self.per, self.group_size, self.symmetric, self.range, self.percentile)

    def apply(self, bench: Workbench) -> None:
        kept = self.norms == "keep"
        network, stayed = (copy.deepcopy(bench.network), []) if kept else fold_batch_norms(bench.network)
        network.to(bench.accelerator.device)
        check_roundable(network, self.label)
        for name in stayed:
            bench.warn(
                f"the batch norm {name} does not follow a layer of its own; its statistics stay float32 in the file"
            )
        before, scheme = plain(network).eval(), self.scheme()
        bits = self._bits(network)
        if self.max_bytes is not None:
            bits = self._allocated(bench, network, before, bits)
        quantize_matrices_(network, scheme, bits)
        if self.rate is not None:
            self._begin_at_rate_(network, self.rate)
        if self.correct_biases and not (kept and self.epochs):
            correct_biases_(before, network, bench.samples("biases", self.samples))
        if self.activations is not None:
            batches = bench.samples("activations", self.samples)
            network = quantize_activations(network, bits, batches, range=self.range, percentile=self.percentile)
            bench.warn("integers are simulated in PyTorch, which is slow; export to ONNX for their speed")
        others = [] if kept else quantize_vectors_(network, self.vector_bits, skip=integer_biases(network))
        bench.network = network
        bench.facts["bits"] = dict(bits)
        if self.epochs:
            follow_grids_(network)
            bench.train(self.schedule(), [*self.parts(bench), FollowGrids(self.rate)])
            settle_grids_(network)  # also where a finished training was only read
            round_biases_(network)
        if kept:
            bench.network, _ = settled_batch_norms(network)
            others = quantize_vectors_(bench.network, self.vector_bits)
        for name in others:
            bench.warn(f"{name} belongs to no layer of torch.nn; it stays float32 in the file")

    def _begin_at_rate_(self, network: Network, rate: float) -> None:
        """Steps with which the codes take so many bits from the start."""
        grids = {name: (grid, rounded.detach()) for name, grid, _, rounded in on_grids(network) if rounded.dim() > 1}
        weights = {name: rounded for name, (_, rounded) in grids.items()}
        ends = {name: (grid.low, grid.high) for name, (grid, _) in grids.items()}
        for name, step in steps_at_rate(weights, rate, ends).items():
            grid, rounded = grids[name]
            with torch.no_grad():
                grid.steps.fill_(float(step))
            grid.settle_(rounded)

    def _bits(self, network: Network) -> dict[str, int]:
        """By layer with a matrix; those that are left alone, or hold what an earlier one holds, are not in it."""
        ties = Ties(network)
        matrices = {
            name.rpartition(".")[0]
            for name, layer, key in named_weights(network)
            if getattr(layer, key).dim() > 1 and not ties.repeats(layer, key)
        }
        layers = {path: layer for path, layer in network.layers().items() if path in matrices}
        found = dict.fromkeys(layers, self.bits)
        for pattern, bits in self.layers.items():
            found |= dict.fromkeys(select(layers.items(), (pattern,), f"{self.label}: layers"), bits)
        return {path: bits for path, bits in found.items() if bits != _AS_IT_IS}

    def _allocated(self, bench: Workbench, network: Network, before: Network, bits: dict[str, int]) -> dict[str, int]:
        """The bits of each layer under the limit; those that `layers` names keep theirs."""
        assert self.max_bytes is not None
        free = [path for path in bits if not self._is_named(network, path)]
        choices = {
            path: [Choice(int(b), float(size), float(d)) for b, size, d in rows]
            for path, rows in bench.decide("choices", lambda: self._choices(bench, network, before, free)).items()
        }
        spare = 0.0
        for _ in range(_MOST_ATTEMPTS):
            chosen = allocate(choices, self.max_bytes - spare)
            bits = bits | {path: choice.bits for path, choice in chosen.items()}
            trial = settled_batch_norms(network)[0] if self.norms == "keep" else copy.deepcopy(network)
            quantize_network(trial, self.scheme(), bits, self.vector_bits)
            size = len(encode(trial, speed=bench.speed))
            if size <= self.max_bytes:
                break
            spare += size - self.max_bytes
        else:
            raise SettingError(
                f"quantize: the file takes {size} bytes where max_bytes is {self.max_bytes}, and no choice of bits was smaller."
            )
        bench.facts["expected divergence"] = sum(choice.divergence for choice in chosen.values())
        return bits

    def _is_named(self, network: Network, path: str) -> bool:
        layers = network.layers().items()
        return any(path in select(layers, (pattern,), f"{self.label}: layers") for pattern in self.layers)

    def _choices(self, bench: Workbench, network: Network, before: Network, paths: list[str]) -> Json:
        """By layer: bits, bytes of the codes, and the divergence with only this layer on such a grid."""
        batches = bench.samples("choices", self.samples)
        reference = final_answers(before, batches)
        tried = [bits for bits in _TRIED_BITS if bits >= (2 if self.symmetric else 1)]
        found: dict[str, Json] = {}
        with bench.reporter.bar(f"{self.label}: bits", len(paths) * len(tried)) as bar:
            for path in paths:
                layer, rows = before.get_submodule(path), []
                weights = {name: weight for name, weight in layer.named_parameters(recurse=False) if weight.dim() > 1}
                whole = {name: weight.detach().clone() for name, weight in weights.items()}
                for bits in tried:
                    scheme, size = replace(self.scheme(), bits=bits), 0
                    for name, weight in weights.items():
                        grid = quantized(whole[name], steps_shape(layer, tuple(weight.shape), scheme), scheme)
                        codes = grid.codes.cpu().numpy().astype("int32")
                        size += len(context_coder.encode(codes.reshape(len(codes), -1)))
                        with torch.no_grad():
                            weight.copy_(grid(whole[name]))
                    rows.append([bits, size, divergence(bench.task, reference, final_answers(before, batches))])
                    bar.advance(1, f"{path} {bits} bits")
                with torch.no_grad():
                    for name, weight in weights.items():
                        weight.copy_(whole[name])
                found[path] = rows
        return found

"""Binary and ternary weights: a bit a weight, or log2 3, and networks that compute with signs.

    BinaryConnect        values: binary, scale: none                      w in {-1, 1}
    binarized networks   values: binary, scale: none, activations: true   and the inputs of layers too
    XNOR-Net             values: binary, scale: filter                    w in {-s, s} for each filter (activations: both)
    ternary weights      values: ternary, scale: tensor                   w in {-s, 0, s}

Batch norms stay layers of their own: folded into a layer they would give every channel another scale and turn signs.

Source: Courbariaux et al. 2015, arXiv:1511.00363; Hubara et al. 2016, arXiv:1602.02830; Rastegari et al. 2016,
arXiv:1603.05279; Li, Zhang and Liu 2016, arXiv:1605.04711.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, select
from penjing.graph.modules import kind_of
from penjing.graph.network import MODULE
from penjing.quantization.refresh_norms import refresh_norms_
from penjing.quantization.roundable import check_roundable
from penjing.quantization.sign_inputs import (
    MATRICES,
    ends,
    with_sign_inputs,
    without_norm_before,
    without_norm_behind,
)
from penjing.representation import Signs, Ties, named_weights, represent_, representations
from penjing.training import Batch, Fit, Part, TrainedStage, Workbench

Values = Literal["binary", "ternary"]
Scale = Literal["none", "tensor", "filter"]
Rounding = Literal["deterministic", "stochastic"]
End = Literal["first", "last"]
_NORM_SAMPLES = 10_000
_TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


def binarize_(layer: nn.Module, name: str, values: Values = "binary", scale: Scale = "filter") -> Signs:
    """Give a layer's parameter two or three values, in place; what a mask removed stays exactly 0.

    Codes and scales are those of `Signs`. Without a scale the original is first divided by sqrt(3) times its root mean
    square, so that it spreads as BinaryConnect's initial weights do, uniform in [-1, 1]; signs do not change.

    Raises: SettingError: it has codes already, is not float32, is not finite, or is under a mask and shall be binary.
    """
    stack, owner = representations(layer, name), f"{kind_of(layer) or type(layer).__name__}.{name}"
    others = [part.kind for part in stack if part.kind != "mask"]
    if others:
        raise SettingError(f"binarize: {owner} has a {others[-1]} already.")
    if stack and values == "binary":
        raise SettingError(f"binarize: {owner} is under a mask, and a binary weight is never 0; use values: ternary.")
    value: Tensor = getattr(layer, name).detach()
    if value.dtype != torch.float32:
        raise SettingError(f"binarize: {owner} is {value.dtype}; signs stand for float32. Call .float() before.")
    if not bool(torch.isfinite(value).all()):
        raise SettingError(f"binarize: {owner} holds values that are not finite; train with a smaller lr.")
    if scale == "none":
        original: Tensor = layer.parametrizations[name].original if stack else getattr(layer, name)  # type: ignore[index, union-attr]
        kept = value[value != 0]
        if len(kept):
            original.detach().div_(math.sqrt(3) * kept.square().mean().sqrt())
    sizes = [1] * value.dim()
    if scale == "filter":
        outputs = int(kind_of(layer) in _TRANSPOSED)
        sizes[outputs] = value.shape[outputs]
    scales = None if scale == "none" else torch.ones(sizes, device=value.device)
    signs = Signs(torch.ones_like(value), scales, ternary=values == "ternary")
    signs.settle_(getattr(layer, name).detach())
    represent_(layer, name, signs)
    return signs


def binarize_network(
    network: Network, paths: Sequence[str], values: Values = "binary", scale: Scale = "filter"
) -> None:
    """Binarize the weights of these layers, in place; one that other layers hold too stays one, and is binary there too."""
    ties, layers = Ties(network), network.layers()
    chosen = {id(layers[path]) for path in paths}
    held = {id(layers[path]._parameters.get("weight")) for path in paths} - {id(None)}
    for _, owner, name in list(named_weights(network)):
        is_chosen = (id(owner) in chosen and name == "weight") or id(owner._parameters.get(name)) in held
        if is_chosen and not ties.repeats(owner, name):
            binarize_(owner, name, values, scale)
    ties.share_()


def follow_signs_(network: Network, *, stochastic: bool = False) -> None:
    """Let the originals under all signs be trained; codes and scales are then computed from them in every pass."""
    for signs, stack in _signs(network):
        signs.follow_(stochastic=stochastic)
        stack.original.requires_grad_(True)


def settle_signs_(network: Network) -> None:
    """The inverse: fix codes and scales as they now are, without chance."""
    for signs, stack in _signs(network):
        if signs.follow:
            below: Tensor = stack.original
            for part in list(stack)[:-1]:
                below = part(below)
            signs.settle_(below.detach())
            stack.original.requires_grad_(False)


def _signs(network: Network) -> Iterator[tuple[Signs, Any]]:
    """Every representation by signs, with the list that it is in and that holds the original."""
    for _, owner, name in named_weights(network):
        parts = representations(owner, name)
        if parts and isinstance(parts[-1], Signs):
            yield parts[-1], owner.parametrizations[name]  # type: ignore[index]


class FollowSigns(Part):
    """Straight-through training: originals are clipped to [-1, 1] after each step, codes are fixed when it is over.

    Originals under a scale learn at the schedule's rate, as they would without signs. Those without one, which spread over
    [-1, 1], learn at the rate divided by the coefficient sqrt(1.5 / (inputs + outputs)) that they would have begun with.
    Source: Courbariaux et al. 2015 (BinaryConnect), arXiv:1511.00363, sections 2.4 and 2.5 and algorithm 1; the coefficient
    as in its published code.
    """

    def __init__(self) -> None:
        self._originals: list[Tensor] = []

    def start(self, fit: Fit) -> None:
        rates: dict[int, float] = {}
        for signs, stack in _signs(fit.network):
            if signs.follow:
                self._originals.append(stack.original)
                rates[id(stack.original)] = 1.0 if signs.scales is not None else 1 / glorot(stack.original.shape)
        for group in fit.optimizer.param_groups:
            group["scale"] = rates.get(id(group["params"][0]), group["scale"])
        self.after_step(fit)

    @torch.no_grad()
    def after_step(self, fit: Fit) -> None:
        for original in self._originals:
            original.clamp_(-1, 1)

    def finish(self, fit: Fit) -> None:
        settle_signs_(fit.network)


def glorot(shape: Sequence[int]) -> float:
    """sqrt(1.5 / (inputs + outputs)) of a matrix or of filters, (out, in, *kernel) or (in, out, *kernel).

    Source: Glorot and Bengio 2010, equation 16, the deviation of weights times sqrt(3) / 2.
    """
    return math.sqrt(1.5 / max((shape[0] + shape[1]) * math.prod(shape[2:]), 1))


class Binarize(TrainedStage):
    """Give weights two or three values, with `activations` the inputs of their layers too, and train through the signs."""

    label: ClassVar[str] = "binarize"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    values: Values = Field(default="binary", description="binary: -1 and 1, a bit; ternary: 0 too, log2 3 bits")
    scale: Scale = Field(
        default="filter", description="what multiplies the signs: nothing, a number for the tensor or for each filter"
    )
    rounding: Rounding = Field(
        default="deterministic",
        description="the sign of the weight, or while training one drawn by how large it is (binary, scale none)",
    )
    activations: bool = Field(
        default=False, description="the inputs of these layers become signs too; the first layer's stay numbers"
    )
    layers: tuple[str, ...] = Field(default=(), description="which layers, by pattern; all unless told")
    skip: tuple[End, ...] = Field(
        default=("first", "last"),
        description="of those, what stays as it is: layers that no other comes before, layers that none comes after",
    )
    norm_samples: int | None = Field(
        default=None,
        ge=0,
        description="training samples that give batch norms new statistics when the codes are fixed; "
        "10,000 with stochastic rounding unless told, else 0: those of training",
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.rounding == "stochastic" and (self.values, self.scale) != ("binary", "none"):
            raise SettingError(
                "binarize: rounding: stochastic needs values: binary and scale: none, where weights lie in [-1, 1]; got "
                f"values: {self.values}, scale: {self.scale}."
            )
        return self

    def apply(self, bench: Workbench) -> None:
        network = bench.network
        check_roundable(network, self.label)
        paths = self.chosen(network)
        signed = [path for path in paths if path not in ends(network)[0]] if self.activations else []
        if signed:
            bench.network = network = with_sign_inputs(network, signed)
        network.to(bench.accelerator.device)
        binarize_network(network, paths, self.values, self.scale)
        self._warn(bench, paths, signed)
        if self.epochs:
            follow_signs_(network, stochastic=self.rounding == "stochastic")
            bench.train(self.schedule(), [*self.parts(bench), FollowSigns()])
            settle_signs_(network)  # also where a finished training was only read
        default = _NORM_SAMPLES if self.epochs and self.rounding == "stochastic" else 0
        n_samples = default if self.norm_samples is None else self.norm_samples
        if n_samples:
            refresh_norms_(network, bench.samples("norms", n_samples))
        bench.facts["binarized"] = paths

    def chosen(self, network: Network) -> list[str]:
        """The layers to binarize, by path, in order.

        Raises: SettingError: there is none, or a pattern matches nothing.
        """
        layers = {path: layer for path, layer in network.layers().items() if kind_of(layer) in MATRICES}
        found = select(layers.items(), self.layers, "binarize: layers") if self.layers else list(layers)
        first, last = ends(network)
        skipped = (first if "first" in self.skip else set()) | (last if "last" in self.skip else set())
        left = [path for path in found if path not in skipped]
        if not left:
            raise SettingError(
                f"binarize: no layer is left; of {', '.join(found) or 'no linear or convolutional layer'} "
                f"skip: {list(self.skip)} leaves none. Give skip: [], or other layers."
            )
        return left

    def _warn(self, bench: Workbench, paths: list[str], signed: list[str]) -> None:
        network = bench.network
        for path in without_norm_behind(network, paths):
            bench.warn(
                f"{path} computes with signs and no norm follows; nothing brings its sums back to size, and learning may be "
                "slow or stop"
            )
        for path in without_norm_before(network, signed):
            bench.warn(f"{path} takes signs of what comes from no norm; values far from 0 get no gradient")
        if signed:
            for path in _constant_inputs(network, signed, bench.samples("signs", 64)[0]):
                bench.warn(
                    f"{path} takes signs that are the same for all samples; what comes before it tells it nothing"
                )


@torch.no_grad()
def _constant_inputs(network: Network, paths: Sequence[str], batch: Batch) -> list[str]:
    """Those of the layers that take one value only, at all places of all samples."""
    found: list[str] = []

    def look(path: str, value: Tensor) -> Tensor:
        if bool((value == value.flatten()[0]).all()):
            found.append(path)
        return value

    edges = {
        (node.name, 0): partial(look, node.path) for node in network.nodes if node.op == MODULE and node.path in paths
    }
    was_training = network.training
    with network.eval().watched(edges):
        network.all_answers(*batch.args, **batch.kwargs)
    network.train(was_training)
    return found

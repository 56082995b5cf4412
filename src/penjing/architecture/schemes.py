"""Five ways to write a layer as several smaller ones, each with its factors, its layers and its costs in closed form.

    svd       n -> R ── R -> m                                                  linear layers, 1 x 1 convolutions
    channel   k x k, I -> R ── 1 x 1, R -> O                                    convolutions
    tucker    1 x 1, I -> R_in ── k x k, R_in -> R_out ── 1 x 1, R_out -> O     convolutions larger than 1 x 1
    spatial   k x 1, I -> R ── 1 x k, R -> O                                    two-dimensional ones
    cp        1 x 1, I -> R ── k x 1, each ── 1 x k, each ── 1 x 1, R -> O      two-dimensional ones

Stride, padding and dilation are those of the layers with places, the vertical ones on columns and the horizontal ones on rows;
the bias is the last layer's. Between the factors is nothing, so together they are one convolution, whose weight is `product`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from penjing.architecture.cp import cp_factors
from penjing.architecture.factors import (
    check_rank,
    in_metric,
    moments_of_modes,
    relative_error,
    root_of,
    spatial_factors,
    spatial_matrix,
    svd_factors,
    weighted,
)
from penjing.architecture.tucker import kept_by_ranks, tucker2
from penjing.architecture.vbmf import evidence_rank
from penjing.errors import SettingError, nearest
from penjing.graph.modules import kind_of

FACTORABLE = ("Linear", "Conv1d", "Conv2d", "Conv3d")
_CP_RANKS, _CP_SWEEPS = 12, 60
"""Ranks at which the error of a CP decomposition is looked at, and how long each is iterated for that."""

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class LayerShape:
    """What the costs of a layer and of its factors depend on.

    Attributes:
        out, inputs: channels or features.
        kernel: () for a linear layer.
        bias: whether there is one.
        before, after: places of its input and its output; for a linear layer the positions at which it is used, (positions,).
    """

    out: int
    inputs: int
    kernel: tuple[int, ...]
    bias: bool
    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, layer: Any, input_shape: Sequence[int], output_shape: Sequence[int]) -> "LayerShape":
        """Of a layer used once on one sample; shapes with the batch dimension."""
        out, inputs, *kernel = layer.weight.shape
        bias = layer.bias is not None
        if not kernel:
            positions = (math.prod(output_shape) // out,)
            return cls(out, inputs, (), bias, positions, positions)
        return cls(out, inputs, tuple(kernel), bias, tuple(input_shape[2:]), tuple(output_shape[2:]))

    @property
    def n_parameters(self) -> int:
        """Of the layer as it is."""
        return self.out * self.inputs * math.prod(self.kernel) + self.bias * self.out

    @property
    def n_macs(self) -> int:
        """Multiply-accumulates of one sample in the layer as it is."""
        return self.out * self.inputs * math.prod(self.kernel) * math.prod(self.after)


@dataclass(frozen=True)
class Options:
    """Ranks that may be chosen, and how far off each is.

    Attributes:
        ranks: (n, d), int64.
        error: (n,), float64, ||W - W'||^2 / ||W||^2 in the metric that counts.
    """

    ranks: Tensor
    error: Tensor


class Scheme(ABC):
    """One way to write a layer as several. Subclasses are final.

    Attributes:
        n_ranks: how many ranks there are to choose.
    """

    n_ranks: ClassVar[int] = 1

    @abstractmethod
    def against(self, layer: Any) -> str | None:
        """Why it is not for a layer; None where it is."""

    @abstractmethod
    def largest(self, shape: LayerShape) -> Ranks:
        """The ranks with which every weight can be written exactly."""

    @abstractmethod
    def options(self, weight: Tensor, shape: LayerShape, moment: Tensor | None, generator: torch.Generator) -> Options:
        """What ranks there are and what each is off."""

    @abstractmethod
    def evidence(self, weight: Tensor) -> Ranks:
        """The ranks that the evidence supports, see `vbmf`."""

    @abstractmethod
    def factors(
        self, weight: Tensor, ranks: Ranks, moment: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """The factors, in the order in which they are applied."""

    @abstractmethod
    def factor_shapes(self, shape: LayerShape, ranks: Ranks) -> list[tuple[int, ...]]:
        """The shapes of the factors, as layers have them."""

    @abstractmethod
    def product(self, factors: Sequence[Tensor]) -> Tensor:
        """The weight that the factors stand for, float64: (O, I, *kernel)."""

    @abstractmethod
    def layers(self, layer: Any, factors: Sequence[Tensor]) -> dict[str, nn.Module]:
        """The layers that take a layer's place, by name, in order."""

    @abstractmethod
    def costs(self, shape: LayerShape, ranks: Sequence[Any]) -> tuple[Any, Any]:
        """Parameters, and multiply-accumulates of one sample; of numbers, or of tensors of ranks."""

    def checked(self, shape: LayerShape, ranks: int | Sequence[int]) -> Ranks:
        """One number stands for all ranks. Raises: SettingError: another number of ranks, or one out of range."""
        given = (ranks,) * self.n_ranks if isinstance(ranks, int) else tuple(ranks)
        check_rank(len(given), self.n_ranks, "the number of ranks")
        names = ("rank",) if self.n_ranks == 1 else ("the rank of the outputs", "the rank of the inputs")
        if len(given) < self.n_ranks:
            given = given * self.n_ranks
        for name, rank, most in zip(names, given, self.largest(shape), strict=True):
            check_rank(rank, most, name)
        return given


def _of_singular_values(matrix: Tensor) -> Options:
    """Each rank, and the share of the squared norm in the singular values behind it."""
    squares = torch.linalg.svdvals(matrix).square()
    tails = squares.flip(0).cumsum(0).flip(0)
    whole = tails[0].clamp_min(1e-300)
    error = torch.cat([tails[1:], tails.new_zeros(1)]) / whole
    return Options(torch.arange(1, len(squares) + 1)[:, None], error)


class _TwoMatrices(Scheme):
    """The weight as a matrix with a row for each output. Stride, padding and dilation are the first layer's."""

    def largest(self, shape: LayerShape) -> Ranks:
        return (min(shape.out, shape.inputs * math.prod(shape.kernel)),)

    def options(self, weight: Tensor, shape: LayerShape, moment: Tensor | None, generator: torch.Generator) -> Options:
        return _of_singular_values(weighted(_values(weight).flatten(1), moment))

    def evidence(self, weight: Tensor) -> Ranks:
        return (evidence_rank(weight.flatten(1)),)

    def factors(
        self, weight: Tensor, ranks: Ranks, moment: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        first, second = svd_factors(weight.flatten(1), ranks[0], moment)
        ones = (1,) * (weight.dim() - 2)
        return first.reshape(-1, *weight.shape[1:]), second.reshape(*second.shape, *ones)

    def factor_shapes(self, shape: LayerShape, ranks: Ranks) -> list[tuple[int, ...]]:
        ones = (1,) * len(shape.kernel)
        return [(ranks[0], shape.inputs, *shape.kernel), (shape.out, ranks[0], *ones)]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, second = map(_values, factors)
        return (second.flatten(1) @ first.flatten(1)).reshape(len(second), *first.shape[1:])

    def layers(self, layer: Any, factors: Sequence[Tensor]) -> dict[str, nn.Module]:
        first, second = factors
        if isinstance(layer, nn.Linear):
            return {"reduce": _linear(first), "expand": _linear(second, layer.bias)}
        return {"reduce": _conv(layer, first, **_places(layer)), "expand": _conv(layer, second, bias=layer.bias)}

    def costs(self, shape: LayerShape, ranks: Sequence[Any]) -> tuple[Any, Any]:
        weights = ranks[0] * (shape.inputs * math.prod(shape.kernel) + shape.out)
        return weights + shape.bias * shape.out, weights * math.prod(shape.after)


class Svd(_TwoMatrices):
    """Fewer features between two thin matrices."""

    def against(self, layer: Any) -> str | None:
        if max(layer.weight.shape[2:], default=1) > 1:
            return f"its kernel is {_sizes(layer)}: svd is for linear layers and 1 x 1 convolutions"
        return None


class Channel(_TwoMatrices):
    """Fewer filters of the same size, and mixtures of them. Source: Zhang et al. 2016, arXiv:1505.06798, linear case."""

    def against(self, layer: Any) -> str | None:
        return "a linear layer: channel is for convolutions" if layer.weight.dim() == 2 else None


class Tucker(Scheme):
    """Fewer channels on both sides of the filters; ranks are (rank_out, rank_in)."""

    n_ranks = 2

    def against(self, layer: Any) -> str | None:
        if max(layer.weight.shape[2:], default=1) == 1:
            return "it has no kernel larger than 1 x 1: tucker is for such convolutions"
        return None

    def largest(self, shape: LayerShape) -> Ranks:
        return shape.out, shape.inputs

    def options(self, weight: Tensor, shape: LayerShape, moment: Tensor | None, generator: torch.Generator) -> Options:
        filters = _values(weight).flatten(2)
        if moment is not None:
            roots = [root_of(part) for part in moments_of_modes(moment, filters.shape[1:])]
            filters = in_metric(filters, roots)
        kept = kept_by_ranks(filters)
        rank_out, rank_in = torch.meshgrid(
            torch.arange(1, shape.out + 1), torch.arange(1, shape.inputs + 1), indexing="ij"
        )
        error = (1 - kept / kept[-1, -1].clamp_min(1e-300)).clamp_min(0.0)
        return Options(torch.stack([rank_out, rank_in], -1).flatten(0, 1), error.flatten())

    def evidence(self, weight: Tensor) -> Ranks:
        filters = weight.flatten(2)
        return evidence_rank(filters.flatten(1)), evidence_rank(filters.transpose(0, 1).flatten(1))

    def factors(
        self, weight: Tensor, ranks: Ranks, moment: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        first, core, last = tucker2(weight, ranks[0], ranks[1], moment)
        ones = (1,) * (weight.dim() - 2)
        return first.reshape(*first.shape, *ones), core, last.reshape(*last.shape, *ones)

    def factor_shapes(self, shape: LayerShape, ranks: Ranks) -> list[tuple[int, ...]]:
        rank_out, rank_in = ranks
        ones = (1,) * len(shape.kernel)
        return [(rank_in, shape.inputs, *ones), (rank_out, rank_in, *shape.kernel), (shape.out, rank_out, *ones)]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, core, last = map(_values, factors)
        found = torch.einsum("op,pqk,qi->oik", last.flatten(1), core.flatten(2), first.flatten(1))
        return found.reshape(*found.shape[:2], *core.shape[2:])

    def layers(self, layer: Any, factors: Sequence[Tensor]) -> dict[str, nn.Module]:
        first, core, last = factors
        return {
            "reduce": _conv(layer, first),
            "core": _conv(layer, core, **_places(layer)),
            "expand": _conv(layer, last, bias=layer.bias),
        }

    def costs(self, shape: LayerShape, ranks: Sequence[Any]) -> tuple[Any, Any]:
        rank_out, rank_in = ranks
        first, core, last = shape.inputs * rank_in, rank_in * rank_out * math.prod(shape.kernel), rank_out * shape.out
        macs = first * math.prod(shape.before) + (core + last) * math.prod(shape.after)
        return first + core + last + shape.bias * shape.out, macs


class Spatial(Scheme):
    """Columns, then rows."""

    def against(self, layer: Any) -> str | None:
        if layer.weight.dim() != 4 or max(layer.weight.shape[2:]) == 1:
            return "spatial is for two-dimensional convolutions larger than 1 x 1"
        return None

    def largest(self, shape: LayerShape) -> Ranks:
        height, width = shape.kernel
        return (min(shape.out * width, shape.inputs * height),)

    def options(self, weight: Tensor, shape: LayerShape, moment: Tensor | None, generator: torch.Generator) -> Options:
        columns = (
            None if moment is None else moments_of_modes(moment, (math.prod(weight.shape[1:3]), weight.shape[3]))[0]
        )
        return _of_singular_values(weighted(spatial_matrix(_values(weight)), columns))

    def evidence(self, weight: Tensor) -> Ranks:
        return (evidence_rank(spatial_matrix(weight)),)

    def factors(
        self, weight: Tensor, ranks: Ranks, moment: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        return spatial_factors(weight, ranks[0], moment)

    def factor_shapes(self, shape: LayerShape, ranks: Ranks) -> list[tuple[int, ...]]:
        height, width = shape.kernel
        return [(ranks[0], shape.inputs, height, 1), (shape.out, ranks[0], 1, width)]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        vertical, horizontal = map(_values, factors)
        return torch.einsum("orx,riy->oiyx", horizontal.squeeze(2), vertical.squeeze(3))

    def layers(self, layer: Any, factors: Sequence[Tensor]) -> dict[str, nn.Module]:
        vertical, horizontal = factors
        return {
            "vertical": _conv(layer, vertical, **_places(layer, 0)),
            "horizontal": _conv(layer, horizontal, bias=layer.bias, **_places(layer, 1)),
        }

    def costs(self, shape: LayerShape, ranks: Sequence[Any]) -> tuple[Any, Any]:
        (height, width), (rank,) = shape.kernel, ranks
        columns, rows = shape.inputs * height * rank, rank * width * shape.out
        macs = columns * shape.after[0] * shape.before[1] + rows * math.prod(shape.after)
        return columns + rows + shape.bias * shape.out, macs


class Cp(Scheme):
    """Channels mixed, each filtered by columns and by rows, and mixed again."""

    def against(self, layer: Any) -> str | None:
        if layer.weight.dim() != 4 or max(layer.weight.shape[2:]) == 1:
            return "cp is for two-dimensional convolutions larger than 1 x 1"
        return None

    def largest(self, shape: LayerShape) -> Ranks:
        sizes = (shape.out, shape.inputs, *shape.kernel)
        return (math.prod(sizes) // max(sizes),)

    def options(self, weight: Tensor, shape: LayerShape, moment: Tensor | None, generator: torch.Generator) -> Options:
        dense = shape.n_parameters - shape.bias * shape.out
        most = max(min(dense // (shape.out + shape.inputs + sum(shape.kernel)), self.largest(shape)[0]), 1)
        ranks = sorted({max(1, round(most ** (k / (_CP_RANKS - 1)))) for k in range(_CP_RANKS)})
        errors = []
        for rank in ranks:
            product = self.product(self._split(cp_factors(weight, rank, generator, moment, sweeps=_CP_SWEEPS)))
            errors.append(relative_error(weight, product, moment) ** 2)
        return Options(torch.tensor(ranks)[:, None], torch.tensor(errors, dtype=torch.float64))

    def evidence(self, weight: Tensor) -> Ranks:
        """The rank of a tensor is at least that of each of its unfoldings."""
        filters = weight.flatten(2)
        return (max(evidence_rank(filters.flatten(1)), evidence_rank(filters.transpose(0, 1).flatten(1))),)

    def factors(
        self, weight: Tensor, ranks: Ranks, moment: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        return self._split(cp_factors(weight, ranks[0], generator, moment))

    @staticmethod
    def _split(factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        first, vertical, horizontal, last = factors
        return first[:, :, None, None], vertical[:, None, :, None], horizontal[:, None, None, :], last[:, :, None, None]

    def factor_shapes(self, shape: LayerShape, ranks: Ranks) -> list[tuple[int, ...]]:
        (height, width), (rank,) = shape.kernel, ranks
        return [(rank, shape.inputs, 1, 1), (rank, 1, height, 1), (rank, 1, 1, width), (shape.out, rank, 1, 1)]

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, vertical, horizontal, last = map(_values, factors)
        columns = first[:, :, 0, 0, None] * vertical[:, 0, None, :, 0]  # (R, I, kh)
        windows = columns[:, :, :, None] * horizontal[:, 0, 0, None, None, :]  # (R, I, kh, kw)
        return (last[:, :, 0, 0] @ windows.flatten(1)).reshape(len(last), *windows.shape[1:])

    def layers(self, layer: Any, factors: Sequence[Tensor]) -> dict[str, nn.Module]:
        first, vertical, horizontal, last = factors
        return {
            "reduce": _conv(layer, first),
            "vertical": _conv(layer, vertical, groups=len(vertical), **_places(layer, 0)),
            "horizontal": _conv(layer, horizontal, groups=len(horizontal), **_places(layer, 1)),
            "expand": _conv(layer, last, bias=layer.bias),
        }

    def costs(self, shape: LayerShape, ranks: Sequence[Any]) -> tuple[Any, Any]:
        (height, width), (rank,) = shape.kernel, ranks
        weights = rank * (shape.inputs + height + width + shape.out) + shape.bias * shape.out
        macs = shape.inputs * math.prod(shape.before) + height * shape.after[0] * shape.before[1]
        return weights, rank * (macs + (width + shape.out) * math.prod(shape.after))


SCHEMES: Mapping[str, Scheme] = {
    "svd": Svd(),
    "channel": Channel(),
    "tucker": Tucker(),
    "cp": Cp(),
    "spatial": Spatial(),
}


def scheme_name(method: str, layer: Any) -> str:
    """What "auto" stands for: svd where the kernel has one place, else tucker.

    Raises: SettingError: there is no such method.
    """
    if method not in ("auto", *SCHEMES):
        raise SettingError(f'low-rank: there is no method "{method}"; {nearest(method, ("auto", *SCHEMES))}.')
    if method != "auto":
        return method
    return "svd" if math.prod(layer.weight.shape[2:]) == 1 else "tucker"


def is_factorable(layer: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution of `torch.nn`."""
    return kind_of(layer) in FACTORABLE


def _values(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    out, inputs = weight.shape
    return _filled(
        nn.Linear(inputs, out, bias=bias is not None, device=weight.device, dtype=weight.dtype), weight, bias
    )


def _conv(
    old: Any,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    groups: int = 1,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Any:
    """A convolution of the old one's kind with this weight."""
    out, inputs, *kernel = weight.shape
    new = type(old)(
        inputs * groups,
        out,
        tuple(kernel),
        stride,
        padding,
        dilation,
        groups,
        bias is not None,
        old.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    return _filled(new, weight, bias)


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _places(layer: Any, dim: int | None = None) -> dict[str, Any]:
    """Stride, padding and dilation: all of them, or those along one of two dimensions."""
    found: dict[str, Any] = {}
    for name, rest in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(layer, name)
        if dim is not None and not isinstance(value, str):
            value = tuple(value[dim] if d == dim else rest for d in range(2))
        found[name] = value
    return found


def _sizes(layer: Any) -> str:
    return " x ".join(map(str, layer.kernel_size))

"""Weights are whole multiples of a step: b-bit uniform quantization, and what calibrated coding writes."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.representation.representation import Representation
from penjing.representation.steps import exponents_of, steps_of

MAX_CODE = (1 << 15) - 1


class Grid(Representation):
    """weight = (code - zero) * step, with steps that can be trained.

    The steps are one tensor of as many dimensions as the weight, in which each entry serves a block of it: size 1 in all
    dimensions is one step for the tensor, (out, 1, 1, 1) one for each filter, (out, in / 64) one for each 64 inputs of each
    output. They are kept as powers of two to the 16th part (`steps`), with the gradient of the identity. With `columns` a step
    is the product of two: (out, 1) and (1, in) are steps for rows and columns without a number for each pair.

    With `follow` the original is trained too and the codes are computed from it in every pass:
        code = round(clip(original / step + zero, low, high)),
    the gradient passes rounding as if it were the identity, is 0 for originals that are clipped, and reaches a step as
    dw/ds = code - zero - original / s inside the range, and code - zero where it is clipped. Masked zeros stay zeros.

    Args:
        codes: integers, shape of the weight, magnitude up to 32767.
        steps: float32, > 0, see above.
        zero: integers, shape of `steps`: the code of 0.0; None: 0 (symmetric).
        columns: float32, > 0, laid out as `steps`, and not trained; None: 1.
        low, high: the smallest and the largest code there may be; None: of what there are.
        follow: see above.
    Raises: SettingError: codes out of range, or steps that do not fit the weight.
    Source: Jacob et al. 2018, arXiv:1712.05877, equation 1; Esser et al. 2020 (LSQ), arXiv:1902.08153, equations 1 to 3.
    """

    kind: ClassVar[str] = "grid"
    codes: Tensor
    zero: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        steps: Tensor,
        *,
        zero: Tensor | None = None,
        columns: Tensor | None = None,
        low: int | None = None,
        high: int | None = None,
        follow: bool = False,
    ) -> None:
        super().__init__()
        _check_steps(codes, steps)
        if columns is not None:
            _check_steps(codes, columns)
        smallest, largest = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
        self.low = smallest if low is None else low
        self.high = largest if high is None else high
        if not -MAX_CODE <= self.low <= smallest or not largest <= self.high <= MAX_CODE:
            raise SettingError(
                f"grid: codes must be in [{self.low}, {self.high}] and that within +-{MAX_CODE}, got {smallest} to {largest}."
            )
        narrow = self.low >= -128 and self.high < 128
        self.register_buffer("codes", codes.to(torch.int8 if narrow else torch.int16).clone())
        self.register_buffer("zero", None if zero is None else zero.to(torch.int16).clone())
        self.register_buffer("columns", None if columns is None else steps_of(exponents_of(columns)))
        self.steps = nn.Parameter(steps.detach().float().clone())
        self.follow = follow

    @property
    def reads_original(self) -> bool:
        """Whether the original is still trained."""
        return self.follow

    def forward(self, original: Tensor) -> Tensor:
        step, zero = self._spread()
        if not self.follow:
            return (self.codes.to(step.dtype) - zero) * step
        inside = (original / step + zero).clamp(self.low, self.high)
        codes = inside + (torch.round(inside) - inside).detach()
        return (codes - zero) * step

    def positions(self, original: Tensor) -> Tensor:
        """original / step + zero: where originals lie, in units of codes and not clipped; gradients reach both."""
        step, zero = self._spread()
        return original / step + zero

    @torch.no_grad()
    def values(self) -> Tensor:
        """The weight that the codes stand for: what `forward` gives, in a tensor's memory and no more."""
        step, zero = self._spread()
        value = self.codes.to(step.dtype)
        if self.zero is not None:
            value.sub_(zero)
        return value.mul_(step)

    def stored_steps(self) -> Tensor:
        """The steps as a file has them, shape of `steps`; the gradient reaches the trained ones unchanged."""
        stored = steps_of(exponents_of(self.steps))
        return stored + (self.steps - self.steps.detach())

    @torch.no_grad()
    def settle_(self, original: Tensor) -> None:
        """Fix the codes that the original now has, and stop following it."""
        step, zero = self._spread()
        self.codes.copy_(torch.round((original / step + zero).clamp(self.low, self.high)))
        self.follow = False

    def sliced(self, dim: int, keep: Tensor) -> Self:
        def kept(values: Tensor | None) -> Tensor | None:
            """After a cut, blocks need not be of one size: each index gets its own step."""
            if values is None or values.shape[dim] == 1:
                return values
            return _repeated(values, dim, self.codes.shape[dim]).index_select(dim, keep.to(values.device))

        codes = self.codes.index_select(dim, keep.to(self.codes.device))
        steps, zero, columns = kept(self.steps.detach()), kept(self.zero), kept(self.columns)
        assert steps is not None
        ends = {"low": self.low, "high": self.high}
        return type(self)(codes, steps, zero=zero, columns=columns, follow=self.follow, **ends)

    @property
    def bits_per_weight(self) -> float:
        return math.log2(self.high - self.low + 1)

    def _spread(self) -> tuple[Tensor, Tensor | float]:
        """The step and the code of 0.0 of every weight, or what broadcasts to that."""
        steps = spread(self.stored_steps(), self.codes.shape)
        if self.columns is not None:
            steps = steps * spread(self.columns, self.codes.shape)
        return steps, 0.0 if self.zero is None else spread(self.zero.to(steps.dtype), self.codes.shape)


def _check_steps(codes: Tensor, steps: Tensor) -> None:
    if codes.dim() != steps.dim() or any(
        not (n == 0 or 1 <= s <= n) for n, s in zip(codes.shape, steps.shape, strict=False)
    ):
        raise SettingError(
            f"grid: steps must have the weight's dimensions, each of size 1 up to the weight's; the weight is "
            f"{tuple(codes.shape)}, the steps are {tuple(steps.shape)}."
        )
    if not (bool(torch.isfinite(steps).all()) and bool((steps > 0).all())):
        raise SettingError("grid: steps must be finite and above 0.")


def spread(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Values that serve a block each, for every entry: a view that broadcasts to `shape` where blocks are whole dimensions."""
    for dim, size in enumerate(shape):
        if values.shape[dim] not in (1, size):
            values = _repeated(values, dim, size)
    return values


def _repeated(values: Tensor, dim: int, size: int) -> Tensor:
    """Each entry ceil(size / entries) times, the last one as often as it takes."""
    each = -(-size // values.shape[dim])
    return values.repeat_interleave(each, dim).narrow(dim, 0, size)

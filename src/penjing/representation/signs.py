"""Weights of two or three values: signs, with a scale or without one."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.representation.representation import Representation
from penjing.representation.steps import exponents_of, steps_of

THRESHOLD = 0.7
"""In units of the mean magnitude: what is smaller becomes 0 in a ternary weight."""


def signs_of(values: Tensor) -> Tensor:
    """+1 where v >= 0, else -1; sign(0) = sign(-0) = +1. Same shape and type, no gradient."""
    return (values.detach() >= 0).to(values.dtype).mul_(2).sub_(1)


def hard_sigmoid(values: Tensor) -> Tensor:
    """clip((v + 1) / 2, 0, 1). Source: Courbariaux et al. 2015 (BinaryConnect), arXiv:1511.00363, equation 3."""
    return ((values + 1) / 2).clamp(0, 1)


def drawn_signs(values: Tensor) -> Tensor:
    """+1 with probability hard_sigmoid(v), else -1, from torch's generator; the mean is clip(v, -1, 1).

    Source: Courbariaux et al. 2015 (BinaryConnect), arXiv:1511.00363, equation 2.
    """
    values = values.detach()
    return (torch.rand_like(values) < hard_sigmoid(values)).to(values.dtype).mul_(2).sub_(1)


def mean_magnitude(values: Tensor, sizes: Sequence[int], kept: Tensor | None = None) -> Tensor:
    """The mean of |v| over what shares a scale, 0 where there is nothing.

    Args:
        sizes: of the result, one a dimension of `values`: 1, or the size there.
        kept: bool, shape of `values`; None: all of them.
    """
    dims = [dim for dim, size in enumerate(sizes) if size == 1]
    magnitudes = values.detach().abs()
    if kept is None:
        n = max(values.numel() // math.prod(sizes), 1) if values.numel() else 1
        return magnitudes.sum(dims, keepdim=True) / n
    return (magnitudes * kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True).clamp_min(1)


def ternary_codes(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """sign(v) where |v| > 0.7 mean |v|, else 0; same shape and type, no gradient.

    The mean is over what shares a scale, without values that are exactly 0: a mask removed them, and they stay 0.
    Args:
        sizes: as in `mean_magnitude`.
    Source: Li, Zhang and Liu 2016 (Ternary Weight Networks), arXiv:1605.04711, equations 3 and 6.
    """
    values = values.detach()
    threshold = THRESHOLD * mean_magnitude(values, sizes, values != 0)
    return torch.where(values.abs() > threshold, torch.sign(values), torch.zeros_like(values))


class Signs(Representation):
    """weight = scale * code, with codes in {-1, 1} (binary) or {-1, 0, 1} (ternary).

    The scale is 1, one number for the tensor, or one for each index of a dimension (a filter). Scales are kept as files have
    them, powers of two to the 16th part (`representation.steps`): a scale is then off by at most 2.2 %, which adds at most
    0.05 % of the weight's energy to the error, and takes a third of the bytes of a float16.

    With `follow` the original w is trained, and codes and scales are computed from it in every pass:

        binary    code = sign(w), sign(0) = +1;  `stochastic`, while training: +1 with probability clip((w + 1) / 2, 0, 1)
                  scale = mean |w| over the n weights that share it
        ternary   code = sign(w) where |w| > 0.7 mean |w|, else 0;  scale = mean |w| over those that are not 0

    The gradient reaches the original straight through, as each paper has it:

        binary, scale 1    dL/dw = dL/dweight
        binary, scaled     dL/dw = dL/dweight (1 / n + scale 1[|w| <= 1])
        ternary            dL/dw = dL/dweight

    Without it codes are fixed, and scales are trained with the gradient of the identity through their rounding.

    Args:
        codes: shape of the weight.
        scales: > 0, as many dimensions as the weight, each of size 1 but at most one, which has the weight's; None: 1.
        ternary: whether 0 is a code.
        follow, stochastic: see above.
    Raises: SettingError: other codes, or scales that do not fit the weight.
    Source: Courbariaux, Bengio and David 2015 (BinaryConnect), arXiv:1511.00363, equations 1 to 3 and algorithm 1;
        Rastegari et al. 2016 (XNOR-Net), arXiv:1603.05279, section 3.1; Li, Zhang and Liu 2016 (Ternary Weight Networks),
        arXiv:1605.04711, equations 3 to 6. Deviates: XNOR-Net prints the derivative of the sign as w 1[|w| <= 1]; its published
        code has the indicator alone, and so have we. The stored scales.
    """

    kind: ClassVar[str] = "signs"
    codes: Tensor

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor | None = None,
        *,
        ternary: bool = False,
        follow: bool = False,
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        whole = codes.to(torch.int8)
        allowed = whole.abs() <= 1 if ternary else whole.abs() == 1
        if not bool((allowed & (whole == codes)).all()):
            raise SettingError(f"signs: codes must be {'-1, 0 or 1' if ternary else '-1 or 1'}.")
        self.register_buffer("codes", whole.clone())
        self.ternary, self.follow, self.stochastic = ternary, follow, stochastic
        self.scales: nn.Parameter | None = None
        if scales is not None:
            sizes = tuple(scales.shape)
            fits = len(sizes) == codes.dim() and all(s in (1, n) for s, n in zip(sizes, codes.shape, strict=True))
            if not fits or sum(s != 1 for s in sizes) > 1:
                raise SettingError(
                    f"signs: scales must have the weight's dimensions, all of size 1 but at most one; the weight is "
                    f"{tuple(codes.shape)}, the scales are {sizes}."
                )
            if not (bool(torch.isfinite(scales).all()) and bool((scales > 0).all())):
                raise SettingError("signs: scales must be finite and above 0.")
            self.scales = nn.Parameter(scales.detach().float().clone(), requires_grad=not follow)

    @property
    def reads_original(self) -> bool:
        """Whether the original is still trained."""
        return self.follow

    def forward(self, original: Tensor) -> Tensor:
        if not self.follow:
            settled = self.stored_scales()
            return self.codes.to(original.dtype) if settled is None else self.codes.to(settled.dtype) * settled
        drawn = self.stochastic and self.training and not self.ternary
        codes = drawn_signs(original) if drawn else self._codes_of(original)
        passed = original - original.detach()  # exactly 0, with the gradient of the identity
        scales = self._scales_of(original, codes)
        if scales is None:
            return codes + passed
        stored = steps_of(exponents_of(scales)).to(original.dtype)
        if self.ternary:
            return codes * stored + passed
        share = scales.numel() / max(original.numel(), 1)
        return codes * stored + passed * (share + stored * (original.detach().abs() <= 1))

    def stored_scales(self) -> Tensor | None:
        """The scales as a file has them, None: 1; the gradient reaches the trained ones unchanged."""
        if self.scales is None:
            return None
        return steps_of(exponents_of(self.scales)) + (self.scales - self.scales.detach())

    @torch.no_grad()
    def follow_(self, *, stochastic: bool = False) -> None:
        """From now on compute codes and scales from the original."""
        self.follow, self.stochastic = True, stochastic
        if self.scales is not None:
            self.scales.requires_grad_(False)

    @torch.no_grad()
    def settle_(self, original: Tensor) -> None:
        """Fix the signs and scales that the original now has, without chance, and stop following it."""
        codes = self._codes_of(original)
        self.codes.copy_(codes)
        if self.scales is not None:
            scales = self._scales_of(original, codes)
            assert scales is not None
            self.scales.copy_(steps_of(exponents_of(scales)))
            self.scales.requires_grad_(True)
        self.follow = self.stochastic = False

    def sliced(self, dim: int, keep: Tensor) -> Self:
        codes = self.codes.index_select(dim, keep.to(self.codes.device))
        scales = None if self.scales is None else self.scales.detach()
        if scales is not None and scales.shape[dim] > 1:
            scales = scales.index_select(dim, keep.to(scales.device))
        return type(self)(codes, scales, ternary=self.ternary, follow=self.follow, stochastic=self.stochastic)

    @property
    def bits_per_weight(self) -> float:
        return math.log2(3) if self.ternary else 1.0

    def _codes_of(self, original: Tensor) -> Tensor:
        return ternary_codes(original, self._sizes()) if self.ternary else signs_of(original)

    def _scales_of(self, original: Tensor, codes: Tensor) -> Tensor | None:
        if self.scales is None:
            return None
        return mean_magnitude(original, self._sizes(), codes != 0 if self.ternary else None)

    def _sizes(self) -> tuple[int, ...]:
        return (1,) * self.codes.dim() if self.scales is None else tuple(self.scales.shape)

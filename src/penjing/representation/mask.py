"""Some weights are exactly zero and stay so."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from penjing.representation.representation import Representation

_WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _AndBits(torch.autograd.Function):
    """value where the bits are ones, +0 where they are zeros; so is the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, bits: Tensor) -> Tensor:
        return (value.view(bits.dtype) & bits).view(value.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.bits = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _AndBits.apply(gradient, ctx.bits), None


class Mask(Representation):
    """weight = original where kept, else 0. The gradient of a removed weight is zero.

    Computed on the bits of the numbers: removed ones are ANDed with zeros. A product would give -1 * 0 = -0 and inf * 0 = NaN;
    filling under a mask takes torch ten times as long, as long as a small linear layer itself.

    Args:
        keep: bool, shape of the weight; True where the weight stays.
    """

    kind: ClassVar[str] = "mask"
    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep.bool().clone())
        self._bits: tuple[Tensor, int, Tensor] | None = None
        self._enforced: tuple[Tensor, int, Tensor, int] | None = None

    def forward(self, original: Tensor) -> Tensor:
        if self._enforced is not None and self._is_enforced_on(original):
            return original
        masked: Tensor = _AndBits.apply(original, self._bits_like(original))
        return masked

    @torch.no_grad()
    def apply_(self, tensor: Tensor) -> None:
        """Make the removed entries of a tensor +0, in place: of the original, of its gradient."""
        bits = self._bits_like(tensor)
        tensor.view(bits.dtype).bitwise_and_(bits)

    def enforce_(self, original: Tensor) -> None:
        """Make the removed weights of the original 0 now, so that `forward` has nothing to do until either changes.

        Its gradient is then not masked; see `masks_in_place`. `release` ends that.
        """
        self.apply_(original)
        self._enforced = (original, original._version, self.keep, self.keep._version)

    def release(self) -> None:
        """Forget that the mask is enforced on its original: every pass masks the weight and its gradient again."""
        self._enforced = None

    def _is_enforced_on(self, original: Tensor) -> bool:
        assert self._enforced is not None
        tensor, version, keep, keep_version = self._enforced
        return tensor is original and keep is self.keep and tensor._version == version and keep._version == keep_version

    def _bits_like(self, original: Tensor) -> Tensor:
        """All ones where kept, all zeros elsewhere: whole numbers as wide as the original's. Kept until the mask changes."""
        keep, dtype = self.keep, _WHOLE_NUMBERS[original.element_size()]
        if keep.is_inference():
            return -keep.to(dtype)  # such a tensor does not count its changes
        if (
            self._bits is None
            or self._bits[0] is not keep
            or self._bits[1] != keep._version
            or self._bits[2].dtype != dtype
        ):
            bits = torch.empty_like(original, dtype=dtype, requires_grad=False)  # in the original's memory layout
            self._bits = (keep, keep._version, bits.copy_(keep).neg_())
        return self._bits[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bits": None, "_enforced": None}  # a copy of the mask counts its changes anew

    def sliced(self, dim: int, keep: Tensor) -> Self:
        return type(self)(self.keep.index_select(dim, keep.to(self.keep.device)))

    @property
    def bits_per_weight(self) -> float:
        return 32 * self.density + 1

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return float(self.keep.double().mean())

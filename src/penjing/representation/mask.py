"""Some weights are exactly zero and stay so."""

from typing import ClassVar, Self

from torch import Tensor

from penjing.representation.representation import Representation


class Mask(Representation):
    """weight = original where kept, else 0. The gradient of a removed weight is zero.

    Args:
        keep: bool, shape of the weight; True where the weight stays.
    """

    kind: ClassVar[str] = "mask"
    keep: Tensor

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep.bool().clone())

    def forward(self, original: Tensor) -> Tensor:
        return original.masked_fill(~self.keep, 0.0)  # not a product: -1 * 0 is -0, and inf * 0 is NaN

    def sliced(self, dim: int, keep: Tensor) -> Self:
        return type(self)(self.keep.index_select(dim, keep.to(self.keep.device)))

    @property
    def bits_per_weight(self) -> float:
        return 32 * self.density + 1

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return float(self.keep.double().mean())

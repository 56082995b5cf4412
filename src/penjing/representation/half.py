"""Weights of two bytes: float16 or bfloat16."""

from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from penjing.representation.representation import Representation

Format = Literal["float16", "bfloat16"]
FORMATS: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Half(Representation):
    """weight = the number of two bytes nearest to the original, as float32; the gradient is that of the identity.

    float16 has 11 bits of precision up to 65,504, bfloat16 has 8 over the range of float32. Layers still compute in float32.

    Args:
        format: "float16" or "bfloat16".
    """

    kind: ClassVar[str] = "half"

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format

    def forward(self, original: Tensor) -> Tensor:
        stored = original.detach().to(FORMATS[self.format]).to(original.dtype)
        return stored + (original - original.detach())  # the second term is exactly 0

    def sliced(self, dim: int, keep: Tensor) -> Self:
        return type(self)(self.format)

    @property
    def bits_per_weight(self) -> float:
        return 16.0

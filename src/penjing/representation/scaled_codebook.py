"""One table for all outputs of a layer, and a scale for each: clusters of every row at the price of one small number a row."""

from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.representation.codebook import Codebook
from penjing.representation.representation import Representation
from penjing.representation.steps import exponents_of, steps_of


class ScaledCodebook(Representation):
    """weight[o, i] = scale[o] * table[codes[o, i]], with a table and scales that can be trained.

    A table for each output would be the general form, and is dear: 16 entries are 16 bytes a row, where a pruned row may have
    60 weights of 3 bits. A scale is a power of two to the 16th part, as `Grid`'s steps are, and takes 4 to 6 bits in a file.

    The gradient of a scale is dL/ds_o = sum_i dL/dw_oi * table[codes_oi]; it is stored rounded, and trained through that.

    Args:
        codebook: of the weight divided by its scales; see there for masked zeros and `follow`.
        scales: float32, > 0, (outputs,): one for each index of the weight's first dimension.
    Raises: SettingError: scales that do not fit the codes, or are not positive.
    """

    kind: ClassVar[str] = "scaled-codebook"

    def __init__(self, codebook: Codebook, scales: Tensor) -> None:
        super().__init__()
        if codebook.codes.dim() == 0 or scales.shape != codebook.codes.shape[:1]:
            raise SettingError(
                f"scaled codebook: there must be a scale for each output; the weight is {tuple(codebook.codes.shape)}, "
                f"the scales are {tuple(scales.shape)}."
            )
        if not (bool(torch.isfinite(scales).all()) and bool((scales > 0).all())):
            raise SettingError("scaled codebook: scales must be finite and above 0.")
        self.codebook = codebook
        self.scales = nn.Parameter(scales.detach().float().clone())

    @property
    def follow(self) -> bool:
        """Whether the original is still trained."""
        return self.codebook.follow

    @follow.setter
    def follow(self, value: bool) -> None:
        self.codebook.follow = value

    @property
    def reads_original(self) -> bool:
        """The same, for `represent_`."""
        return self.codebook.follow

    def forward(self, original: Tensor) -> Tensor:
        scales = self._spread()
        value: Tensor = self.codebook(original / scales.detach() if self.follow else original)
        return value * scales

    @torch.no_grad()
    def reassign_(self, original: Tensor) -> None:
        """Give every weight the code nearest to its original; removed weights keep theirs."""
        self.codebook.reassign_(original / self._spread())

    def stored_scales(self) -> Tensor:
        """The scales as a file has them, (outputs,); the gradient reaches the trained ones unchanged."""
        return steps_of(exponents_of(self.scales)) + (self.scales - self.scales.detach())

    def sliced(self, dim: int, keep: Tensor) -> Self:
        scales = self.scales.detach()
        return type(self)(
            self.codebook.sliced(dim, keep), scales.index_select(0, keep.to(scales.device)) if dim == 0 else scales
        )

    @property
    def bits_per_weight(self) -> float:
        return self.codebook.bits_per_weight

    def _spread(self) -> Tensor:
        return self.stored_scales().view(-1, *[1] * (self.codebook.codes.dim() - 1))

"""Weights share a few values: each weight is a code, a table turns codes into values."""

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.representation.representation import Representation

LEVELS = 127
"""Table entries are whole multiples, -127 to 127, of the table's step."""


class Codebook(Representation):
    """weight[i] = table[codes[i]], with a table that can be trained.

    The gradient of a table entry is the sum over the weights that use it, dL/dc_k = sum_i dL/dw_i 1[codes_i = k].

    A table is small but not free. It is kept as 8-bit multiples of one step in float16: table = step * round(c / step),
    step = max |c| / 127, rounded up to float16, with the gradient of the identity. What is trained is what is stored.

    Args:
        codes: integers, shape of the weight, 0 <= code < number of centroids, at most 256 of them.
        centroids: float32, (k,). Codebooks may share one: pass the same Parameter.
        zero: the first entry is exactly 0 and stays so; used for weights that a mask removed.
        follow: the original is trained too, by the gradient of the weight as if nothing were between them, so that
            `reassign_` can give a weight another code; else the codes are fixed.

    Raises: SettingError: codes out of range, or more than 256 centroids.
    Source: Han, Mao and Dally 2016 (Deep Compression), arXiv:1510.00149, section 3. Deviates: the table in
    8 bits. Training the originals beside the table is the straight-through
    estimator, Bengio, Leonard and Courville 2013, arXiv:1308.3432.
    """

    kind: ClassVar[str] = "codebook"
    codes: Tensor

    def __init__(self, codes: Tensor, centroids: Tensor, *, zero: bool = False, follow: bool = False) -> None:
        super().__init__()
        k = len(centroids)
        if not 1 <= k <= 256:
            raise SettingError(f"codebook: it must have 1 to 256 centroids, got {k}.")
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < k):
            raise SettingError(f"codebook: codes must be in [0, {k}), got {int(codes.min())} to {int(codes.max())}.")
        self.register_buffer("codes", codes.to(torch.uint8).clone())
        self.centroids = centroids if isinstance(centroids, nn.Parameter) else nn.Parameter(centroids.float().clone())
        self.zero = zero
        self.follow = follow

    @property
    def reads_original(self) -> bool:
        """Whether the original is still trained."""
        return self.follow

    def forward(self, original: Tensor) -> Tensor:
        value = self.table().index_select(0, self.codes.flatten().int()).view(self.codes.shape)
        return value + (original - original.detach()) if self.follow else value  # the second term is exactly 0

    @torch.no_grad()
    def reassign_(self, original: Tensor) -> None:
        """Give every weight the code of the table entry nearest to its original; removed weights keep theirs."""
        table, order = self.table().detach().sort()
        borders = (table[1:] + table[:-1]) / 2
        if not self.zero:
            self.codes.copy_(order[torch.bucketize(original.detach().contiguous(), borders)])
            return
        flat = self.codes.reshape(-1)  # a copy where filters lie channels last
        kept = flat.nonzero().squeeze(1)  # few under a mask
        codes = order[torch.bucketize(original.detach().reshape(-1)[kept], borders)]
        self.codes.copy_(flat.index_copy(0, kept, codes.to(torch.uint8)).view(self.codes.shape))

    def table(self) -> Tensor:
        """The values, (k,), as stored; the gradient reaches the centroids unchanged."""
        steps, step = self.steps()
        stored = steps.to(self.centroids.dtype) * step
        trained = self.centroids - self.centroids.detach()  # exactly 0, with the gradient of the identity
        if self.zero:
            trained = torch.cat([torch.zeros_like(trained[:1]), trained[1:]])
        return stored + trained

    @torch.no_grad()
    def steps(self) -> tuple[Tensor, Tensor]:
        """The table as stored: whole multiples, (k,), int, -127 to 127, and the step, a float16 number.

        table = multiples * step, exactly, in float32. A table that is stored already is given back as it is.
        """
        centroids = self.centroids.detach().float()
        if self.zero:
            centroids = torch.cat([torch.zeros_like(centroids[:1]), centroids[1:]])
        largest = centroids.abs().max()
        step = (largest / LEVELS).half()
        if step.float() * LEVELS < largest:
            # Among the smallest float16 numbers the next one is far off; the one below, cut off at 127, may be nearer.
            above = _next_half(step)
            if step.float() * LEVELS < torch.round(largest / above.float()) * above.float():
                step = above
        step = step.float().clamp_min(2.0**-24)
        return torch.round(centroids / step).clamp(-LEVELS, LEVELS).int(), step

    def sliced(self, dim: int, keep: Tensor) -> Self:
        return type(self)(
            self.codes.index_select(dim, keep.to(self.codes.device)), self.centroids, zero=self.zero, follow=self.follow
        )

    @property
    def bits_per_weight(self) -> float:
        return math.ceil(math.log2(len(self.centroids))) if len(self.centroids) > 1 else 0.0


def _next_half(value: Tensor) -> Tensor:
    """The next larger float16 number, for a finite value >= 0."""
    return (value.view(torch.int16) + 1).view(torch.float16)

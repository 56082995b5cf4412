"""Which weights go together: single weights, N of M in a row, blocks, the same place in all filters.

A weight (out, in, ...) is looked at as the matrix (out, in * window), one row an output.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from penjing.errors import SettingError

Kind = Literal["weights", "n:m", "blocks", "filter-shapes"]


@dataclass(frozen=True)
class Structure:
    """What is removed as a whole.

    Attributes:
        kind: see `read_structure`.
        first, second: N and M, or a block's rows and columns; 1 and 1 for the others.
    """

    kind: Kind
    first: int = 1
    second: int = 1

    def __str__(self) -> str:
        return {"n:m": f"{self.first}:{self.second}", "blocks": f"{self.first}x{self.second}"}.get(self.kind, self.kind)


def read_structure(text: str, where: str = "structure") -> Structure:
    """A structure by its name.

    "weights"        each weight by itself
    "2:4"            of 4 neighbours along the input dimension 2 stay, for the same place of the window; any N:M with 0 < N < M
    "4x1"            blocks of 4 rows and 1 column of the matrix; those at the border may be smaller
    "filter-shapes"  a column: the same channel, row and column of the window in all filters

    Raises: SettingError: anything else.
    Source: N:M, Mishra et al. 2021, arXiv:2104.08378, section 2; filter shapes, Wen et al. 2016, arXiv:1608.03665, section 3.1.
    """
    if text in ("weights", "filter-shapes"):
        return Structure("weights" if text == "weights" else "filter-shapes")
    found = re.fullmatch(r"(\d+)([:x])(\d+)", text)
    if found:
        first, second = int(found[1]), int(found[3])
        if found[2] == ":" and 0 < first < second:
            return Structure("n:m", first, second)
        if found[2] == "x" and first > 0 and second > 0:
            return Structure("blocks", first, second)
    raise SettingError(
        f'{where}: it must be "weights", N:M with 0 < N < M such as "2:4", ROWSxCOLUMNS such as "4x1", or "filter-shapes", '
        f'got "{text}".'
    )


def units(shape: torch.Size, structure: Structure) -> Tensor:
    """For each weight the number of the unit that it goes with, in the weight's shape, int64, from 0 on without gaps.

    Units are numbered in the order of their first row, then column. Not for N:M, which has no units: see `n_of_m`.
    """
    n_rows = shape[0]
    n_columns = shape.numel() // max(n_rows, 1)
    row = torch.arange(n_rows)[:, None].expand(n_rows, n_columns)
    column = torch.arange(n_columns).expand(n_rows, n_columns)
    if structure.kind == "filter-shapes":
        found = column
    elif structure.kind == "blocks":
        across = -(-n_columns // structure.second)
        found = row // structure.first * across + column // structure.second
    else:
        found = row * n_columns + column
    return found.reshape(shape)


def n_of_m(scores: Tensor, n: int, m: int, kept: Tensor | None = None) -> Tensor | None:
    """The mask that keeps the N best of every M neighbours along the input dimension (dimension 1).

    For a convolution the M are of the same place of the window, in neighbouring input channels. Of equal ones the later stay.

    Args:
        scores: (out, in, ...).
        kept: what is still there; only this can stay, so groups with fewer than N keep fewer.
    Returns: bool, shape of the scores; None where M does not divide the number of inputs.
    Source: Mishra et al. 2021, arXiv:2104.08378, section 2.
    """
    if scores.shape[1] % m:
        return None
    grouped = scores.movedim(1, -1).unflatten(-1, (-1, m))  # (out, ..., groups, m)
    if kept is not None:
        grouped = grouped.masked_fill(~kept.movedim(1, -1).unflatten(-1, (-1, m)), -torch.inf)
    best = grouped.sort(dim=-1, stable=True).indices[..., m - n :]
    mask = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True)
    mask &= grouped > -torch.inf
    return mask.flatten(-2).movedim(-1, 1).contiguous()

"""How the clusters of a layer's weights are looked for: settings, and from tensors to codes and a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from penjing.quantization.kmeans import Init, Numbers, entropy_constrained, kmeans_1d
from penjing.representation.steps import exponents_of, steps_of
from penjing.training.seeding import derive_seed

Per = Literal["layer", "channel"]


@dataclass(frozen=True)
class Search:
    """How clusters are found.

    Attributes:
        init: the optimum, or Lloyd's iteration from a guess, see `kmeans.first_guess`.
        per: a table for a layer, or beside it a scale for each output, see `ScaledCodebook`.
        price: of a bit, in mean squared values: `kmeans.entropy_constrained`; None: k-means.
        seed: for random guesses.
    """

    init: Init = "exact"
    per: Per = "layer"
    price: float | None = None
    seed: int = 0

    def clusters(
        self, values: Numbers, k: int, weights: Numbers | None = None, name: str = ""
    ) -> tuple[np.ndarray, Numbers]:
        """Codes and centroids, ascending, at most k; none for no values.

        Args:
            weights: what an error counts; None: all 1, and needed so where there is a price.
            name: random guesses depend on the seed and on this.
        """
        if not len(values):
            return np.zeros(0, np.int64), np.zeros(0)
        generator = np.random.default_rng(derive_seed(self.seed, name))
        if self.price is None:
            return kmeans_1d(values, k, weights=weights, init=self.init, generator=generator)
        price = self.price * float(np.mean(values**2))
        return entropy_constrained(values, k, price, init=self.init, generator=generator)


def share_values(
    tensors: Sequence[Tensor],
    k: int,
    *,
    kept: Sequence[Tensor] | None = None,
    weights: Sequence[Tensor] | None = None,
    search: Search,
    name: str = "",
) -> tuple[list[Tensor], Tensor]:
    """Codes of tensors that share a table.

    Args:
        k: entries of the table at most, with the one for zeros.
        kept: where tensors are not removed, bool: what is removed has code 0, whose value is 0; None: nothing is, and code 0
            is like any other.
        weights: what an error counts, of the tensors' shapes.
    Returns: codes, int64, of the tensors' shapes, and the table, float32.
    """
    values = _flat(tensors).astype(np.float64)
    at = np.ones(len(values), bool) if kept is None else _flat(kept)
    zero = kept is not None
    codes = np.zeros(len(values), np.int64)
    counted = None if weights is None else _flat(weights).astype(np.float64)[at]
    codes[at], centroids = search.clusters(values[at], k - zero, counted, name)
    if zero:
        codes[at] += 1
        centroids = np.concatenate([[0.0], centroids])
    device = tensors[0].device
    parts = torch.from_numpy(codes).to(device).split([t.numel() for t in tensors])
    table = torch.from_numpy(centroids).float().to(device)
    return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)], table


def output_scales(value: Tensor, kept: Tensor | None = None) -> Tensor:
    """The root mean square of each output's kept weights, as a file holds it, (outputs,); 1 where nothing is kept."""
    squares = value.detach().float().flatten(1).square()
    n = squares.new_full((len(squares),), squares.shape[1]) if kept is None else kept.flatten(1).sum(1)
    size = (squares.sum(1) / n.clamp_min(1)).sqrt()
    return steps_of(exponents_of(torch.where(size > 0, size, torch.ones_like(size))))


def _flat(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([t.detach().cpu().numpy().ravel() for t in tensors])

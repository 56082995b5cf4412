"""Weight clustering: the weights of a layer share a few values, which are then trained.

Source: Han, Mao and Dally 2016 (Deep Compression), arXiv:1510.00149, section 3. Deviates: the clusters are the exact optimum
in one dimension instead of Lloyd's iteration from an initial guess.
"""

from collections.abc import Sequence
from typing import ClassVar

import kmeans1d
import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, fold_batch_norms, push_biases, select
from penjing.quantization.roundable import check_roundable
from penjing.representation import Codebook, Mask, Ties, named_weights, represent_, representations
from penjing.training import Fit, Part, TrainedStage, Workbench

_EXACT_UP_TO = 1 << 18


def kmeans_1d(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The clustering with the least sum of squared distances.

    minimise sum_i (v_i - c[code_i])^2 over k centroids c and codes. Exact (dynamic programming) up to 2^18 values; above that
    the centroids are exact for 2^18 evenly spaced quantiles, and the codes are the nearest centroids.

    Args:
        values: (n,), finite.
        k: at least 1; fewer clusters come out where there are fewer different values.
    Returns: codes (n,), int64, and centroids ascending (at most k,), float64.
    Source: Grønlund et al. 2017, arXiv:1701.07204.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    sample = values
    if len(values) > _EXACT_UP_TO:
        sample = np.sort(values)[np.linspace(0, len(values) - 1, _EXACT_UP_TO).astype(np.int64)]
    k = min(k, len(np.unique(sample)))
    _, found = kmeans1d.cluster(sample, k)
    centroids = np.unique(np.asarray(found, dtype=np.float64))
    borders = (centroids[1:] + centroids[:-1]) / 2
    return np.searchsorted(borders, values, side="left"), centroids


def cluster_(layer: nn.Module, name: str, k: int) -> Codebook:
    """Give a layer's parameter a codebook of k values, in place. What a mask removed stays exactly 0 and takes one of them.

    Raises: SettingError: the parameter has a codebook already, is not float32, or holds values that are not finite.
    """
    codes, centroids, zero = _cluster_values([_checked(layer, name)], k, _masked(layer, name))
    codebook = Codebook(codes[0], centroids, zero=zero)
    represent_(layer, name, codebook)
    return codebook


def cluster_together_(parameters: Sequence[tuple[nn.Module, str]], k: int) -> None:
    """Give several parameters one codebook, in place: one table, trained by all of them."""
    if not parameters:
        return
    codes, centroids, zero = _cluster_values([_checked(layer, name) for layer, name in parameters], k, False)
    shared = nn.Parameter(centroids)
    for (layer, name), own in zip(parameters, codes, strict=True):
        represent_(layer, name, Codebook(own, shared, zero=zero))


def follow_originals_(network: Network) -> None:
    """Let the originals under all codebooks be trained too, see `Codebook`."""
    for _, owner, name in named_weights(network):
        stack = representations(owner, name)
        if stack and isinstance(stack[-1], Codebook):
            stack[-1].follow = True
            owner.parametrizations[name].original.requires_grad_(True)  # type: ignore[index, union-attr]


def _checked(layer: nn.Module, name: str) -> Tensor:
    codes = [part.kind for part in representations(layer, name) if not isinstance(part, Mask)]
    if codes:
        raise SettingError(f"cluster: {type(layer).__name__}.{name} has a {codes[-1]} already.")
    value: Tensor = getattr(layer, name).detach()
    if value.dtype != torch.float32:
        raise SettingError(
            f"cluster: {type(layer).__name__}.{name} is {value.dtype}; codebooks hold float32. Call .float() before."
        )
    if not torch.isfinite(value).all():
        raise SettingError(
            f"cluster: {type(layer).__name__}.{name} holds values that are not finite; train with a smaller lr."
        )
    return value


def _masked(layer: nn.Module, name: str) -> bool:
    return any(isinstance(part, Mask) for part in representations(layer, name))


def _cluster_values(tensors: Sequence[Tensor], k: int, zero: bool) -> tuple[list[Tensor], Tensor, bool]:
    values = np.concatenate([t.cpu().double().numpy().ravel() for t in tensors])
    keep = values != 0 if zero else np.ones(len(values), bool)
    codes = np.zeros(len(values), np.int64)
    centroids = np.zeros(0)
    if keep.any():
        codes[keep], centroids = kmeans_1d(values[keep], k - zero)
    if zero:
        codes[keep] += 1
        centroids = np.concatenate([[0.0], centroids])
    device = tensors[0].device
    parts = torch.from_numpy(codes).to(device).split([t.numel() for t in tensors])
    table = torch.from_numpy(centroids).float().to(device)
    return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)], table, zero


def cluster_network(
    network: Network, codes: int, layers: dict[str, int] | None = None, bias_codes: int = 32
) -> tuple[Network, list[str]]:
    """Cluster every weight of a network: matrices and filters a codebook each, all vectors (biases, norms) one together.

    Batch norms are folded into their layers first, and biases moved on into a pointwise layer behind where that is exact.
    Args:
        codes: values a weight may have, for each layer.
        layers: other numbers for some layers, by pattern; the last that matches counts.
    Returns: the network, and what stays as it is: the batch norms that could not be folded, by path, and the parameters that
        belong to no layer (of weight norm, of a module's own formula), by name.
    """
    network, stayed = fold_batch_norms(network)
    check_roundable(network, "cluster")
    network, _ = push_biases(network)
    counts = dict.fromkeys(network.layers(), codes)
    for pattern, k in (layers or {}).items():
        counts |= dict.fromkeys(select(network.layers().items(), (pattern,), "cluster: layers"), k)
    vectors: list[tuple[nn.Module, str]] = []
    ties = Ties(network)
    for full_name, layer, name in list(named_weights(network)):
        path = full_name.rpartition(".")[0]
        if path not in counts:
            stayed.append(full_name)
        elif ties.repeats(layer, name):
            continue
        elif getattr(layer, name).dim() > 1:
            cluster_(layer, name, counts[path])
        else:
            vectors.append((layer, name))
    cluster_together_(vectors, bias_codes)
    ties.share_()
    return network, stayed


def keep_codes_(network: Network) -> None:
    """The inverse: from now on no weight changes its code, and the originals are not trained."""
    for _, owner, name in named_weights(network):
        stack = representations(owner, name)
        if stack and isinstance(stack[-1], Codebook):
            stack[-1].follow = False
            owner.parametrizations[name].original.requires_grad_(False)  # type: ignore[index, union-attr]


class ReassignCodes(Part):
    """After each step every weight that follows its original takes the table entry now nearest to it."""

    def after_step(self, fit: Fit) -> None:
        for _, owner, name in named_weights(fit.network):
            stack = representations(owner, name)
            if stack and isinstance(stack[-1], Codebook) and stack[-1].follow:
                stack[-1].reassign_(owner.parametrizations[name].original)  # type: ignore[index, union-attr]

    def finish(self, fit: Fit) -> None:
        keep_codes_(fit.network)


class Cluster(TrainedStage):
    """Let all weights share a few values, biases and heads included, and train these values."""

    label: ClassVar[str] = "cluster"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    bits: int = Field(default=4, ge=1, le=8, description="the weights of a layer share 2^bits values")
    codes: int | None = Field(
        default=None, ge=2, le=256, description="how many values instead, need not be a power of two"
    )
    layers: dict[str, int] = Field(default={}, description="other numbers for some layers, by pattern")
    bias_codes: int = Field(default=32, ge=2, le=256, description="values that all biases and norms together share")

    reassign: bool = Field(
        default=True, description="weights may change their value while training; else only the values train"
    )

    @field_validator("layers")
    @classmethod
    def _possible(cls, value: dict[str, int]) -> dict[str, int]:
        if any(not 2 <= k <= 256 for k in value.values()):
            raise ValueError("each number must be 2 to 256")
        return value

    def apply(self, bench: Workbench) -> None:
        codes = self.codes or 2**self.bits
        bench.network, stayed = cluster_network(bench.network, codes, self.layers, self.bias_codes)
        layers = bench.network.layers()
        for name in stayed:
            bench.warn(
                f"the batch norm {name} does not follow a layer of its own; its statistics stay float32 in the file"
                if name in layers
                else f"{name} belongs to no layer of torch.nn; it stays float32 in the file"
            )
        if self.epochs:
            reassigning: list[Part] = []
            if self.reassign:
                follow_originals_(bench.network)
                reassigning.append(ReassignCodes())
            bench.train(self.schedule(), [*self.parts(bench), *reassigning])
            keep_codes_(bench.network)  # also where a finished training was only read

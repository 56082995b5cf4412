"""Weight clustering: the weights of a layer share a few values, which are then trained.

| file         | what it has                                                                              |
| ------------ | ---------------------------------------------------------------------------------------- |
| kmeans.py    | clusters of numbers: the optimum, Lloyd's iteration, clusters whose codes cost bits      |
| search.py    | which of these, and from tensors to codes and a table                                    |
| following.py | training: weights that change their code, a pull to the clusters, clusters found anew    |
| cluster.py   | codebooks on layers, on a whole network, and the stage                                   |

Source: Han, Mao and Dally 2016 (Deep Compression), arXiv:1510.00149, section 3. Deviates: the clusters are the exact optimum
in one dimension instead of Lloyd's iteration from an initial guess, unless asked for.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, fold_batch_norms, push_biases, select
from penjing.quantization.following import (
    ClusterAnew,
    PullToClusters,
    ReassignCodes,
    follow_originals_,
    keep_codes_,
)
from penjing.quantization.kmeans import Init
from penjing.quantization.roundable import check_roundable
from penjing.quantization.search import Per, Search, output_scales, share_values
from penjing.representation import (
    Codebook,
    Mask,
    ScaledCodebook,
    Ties,
    named_weights,
    represent_,
    representations,
)
from penjing.training import Part, TrainedStage, Workbench


def cluster_(
    layer: nn.Module, name: str, k: int, search: Search | None = None, *, label: str = ""
) -> Codebook | ScaledCodebook:
    """Give a layer's parameter a codebook of k values, in place. What a mask removed stays exactly 0 and takes one of them.

    Args:
        search: how the clusters are found; None: the optimum, one table. Vectors have no scales for outputs.
        label: random guesses depend on it.
    Raises: SettingError: the parameter has a codebook already, is not float32, or holds values that are not finite.
    """
    search = search or Search()
    value = _checked(layer, name)
    kept = value != 0 if _masked(layer, name) else None
    shared: Codebook | ScaledCodebook
    if search.per == "channel" and value.dim() > 1:
        scales = output_scales(value, kept)
        spread = scales.view(-1, *[1] * (value.dim() - 1))
        codes, table = share_values(
            [value / spread],
            k,
            kept=None if kept is None else [kept],
            weights=[(spread**2).expand_as(value)],
            search=search,
            name=label,
        )
        shared = ScaledCodebook(Codebook(codes[0], table, zero=kept is not None), scales)
    else:
        codes, table = share_values([value], k, kept=None if kept is None else [kept], search=search, name=label)
        shared = Codebook(codes[0], table, zero=kept is not None)
    represent_(layer, name, shared)
    return shared


def cluster_together_(parameters: Sequence[tuple[nn.Module, str]], k: int) -> None:
    """Give several parameters one codebook, in place: one table, the best there is, trained by all of them."""
    if not parameters:
        return
    codes, table = share_values([_checked(layer, name) for layer, name in parameters], k, search=Search())
    centroids = nn.Parameter(table)
    for (layer, name), own in zip(parameters, codes, strict=True):
        represent_(layer, name, Codebook(own, centroids))


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


def cluster_network(
    network: Network,
    codes: int,
    layers: dict[str, int] | None = None,
    bias_codes: int = 32,
    search: Search | None = None,
) -> tuple[Network, list[str]]:
    """Cluster every weight of a network: matrices and filters a codebook each, all vectors (biases, norms) one together.

    Batch norms are folded into their layers first, and biases moved on into a pointwise layer behind where that is exact.
    Args:
        codes: values a weight may have, for each layer.
        layers: other numbers for some layers, by pattern; the last that matches counts.
        search: how the clusters of matrices and filters are found; None: the optimum, one table a layer.
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
            cluster_(layer, name, counts[path], search, label=full_name)
        else:
            vectors.append((layer, name))
    cluster_together_(vectors, bias_codes)
    ties.share_()
    return network, stayed


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
    per: Per = Field(
        default="layer", description="values are of a layer, or of each output: those of the layer times its scale"
    )
    init: Init = Field(
        default="exact",
        description="the best clusters, or Lloyd's iteration from even steps, quantiles, or weights drawn at random",
    )
    price: float | None = Field(
        default=None,
        gt=0,
        description="what a bit of a weight may cost, in squared error relative to the layer's: only as many values as that "
        "is worth, at most `codes`, and short codes preferred",
    )
    reassign: bool = Field(
        default=True, description="weights may change their value while training; else only the values train"
    )
    recluster: bool = Field(default=False, description="find the clusters anew before every epoch but the first")
    pull: float = Field(
        default=0.0, ge=0, description="strength, rising from 0, of a loss that pulls weights towards their values"
    )

    @field_validator("layers")
    @classmethod
    def _possible(cls, value: dict[str, int]) -> dict[str, int]:
        if any(not 2 <= k <= 256 for k in value.values()):
            raise ValueError("each number must be 2 to 256")
        return value

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.recluster or self.pull) and not self.reassign:
            what = "recluster: true" if self.recluster else f"pull: {self.pull:g}"
            raise SettingError(
                f"{self.label}: {what} needs weights that change their value while training; write reassign: true."
            )
        if self.price is not None and self.per == "channel":
            raise SettingError(
                f"{self.label}: price weighs bits against errors of one table; write per: layer, or leave price out."
            )
        return self

    def search(self, seed: int) -> Search:
        """How clusters are found."""
        return Search(init=self.init, per=self.per, price=self.price, seed=seed)

    def apply(self, bench: Workbench) -> None:
        codes = self.codes or 2**self.bits
        search = self.search(bench.seed)
        bench.network, stayed = cluster_network(bench.network, codes, self.layers, self.bias_codes, search)
        layers = bench.network.layers()
        for name in stayed:
            bench.warn(
                f"the batch norm {name} does not follow a layer of its own; its statistics stay float32 in the file"
                if name in layers
                else f"{name} belongs to no layer of torch.nn; it stays float32 in the file"
            )
        if self.epochs:
            parts = self.parts(bench)
            if self.reassign:
                follow_originals_(bench.network)
                parts += self._following(search)
            bench.train(self.schedule(), parts)
            keep_codes_(bench.network)  # also where a finished training was only read

    def _following(self, search: Search) -> list[Part]:
        found: list[Part] = [ReassignCodes()]
        if self.recluster:
            found.append(ClusterAnew(search))
        if self.pull:
            found.append(PullToClusters(self.pull))
        return found

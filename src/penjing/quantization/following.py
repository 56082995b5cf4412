"""Weights that follow their originals: while a table is trained the weights under it are too, and may change their code."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from penjing.graph import Network
from penjing.objective import cluster_pull
from penjing.quantization.search import Search, share_values
from penjing.representation import Codebook, ScaledCodebook, named_weights, representations
from penjing.training import Batch, Fit, Part
from penjing.training.part import Answers

Shared = Codebook | ScaledCodebook


def shared_weights(network: Network) -> Iterator[tuple[str, nn.Module, str, Shared]]:
    """The weights that share values: full name, owner, name in the owner, and by what."""
    for full_name, owner, name in named_weights(network):
        stack = representations(owner, name)
        if stack and isinstance(stack[-1], Shared):
            yield full_name, owner, name, stack[-1]


def follow_originals_(network: Network) -> None:
    """Let the originals under all codebooks be trained too, see `Codebook`."""
    for _, owner, name, shared in shared_weights(network):
        shared.follow = True
        owner.parametrizations[name].original.requires_grad_(True)  # type: ignore[index, union-attr]


def keep_codes_(network: Network) -> None:
    """The inverse: from now on no weight changes its code, and the originals are not trained."""
    for _, owner, name, shared in shared_weights(network):
        shared.follow = False
        owner.parametrizations[name].original.requires_grad_(False)  # type: ignore[index, union-attr]


@torch.no_grad()
def recluster_(network: Network, search: Search, name: str = "") -> None:
    """Find the clusters of all weights that follow their originals anew, on the originals; scales of outputs stay.

    Weights with the code of removed ones keep it. Tables keep their length; entries that are not needed repeat the last one.
    """
    tables: dict[int, list[tuple[str, Codebook, Tensor, Tensor | None]]] = {}
    for full_name, owner, key, shared in shared_weights(network):
        if shared.follow:
            original, weights = _below(owner, key), None
            codebook = shared if isinstance(shared, Codebook) else shared.codebook
            if isinstance(shared, ScaledCodebook):
                scales = shared.stored_scales().view(-1, *[1] * (original.dim() - 1))
                original, weights = original / scales, (scales**2).expand_as(original)
            tables.setdefault(id(codebook.centroids), []).append((full_name, codebook, original, weights))
    for sharing in tables.values():
        first = sharing[0][1]
        weights_of = [weights for *_, weights in sharing if weights is not None]
        codes, table = share_values(
            [original for _, _, original, _ in sharing],
            len(first.centroids),
            kept=[codebook.codes != 0 for _, codebook, _, _ in sharing] if first.zero else None,
            weights=weights_of or None,
            search=search,
            name=f"{name} {sharing[0][0]}",
        )
        first.centroids[: len(table)] = table
        first.centroids[len(table) :] = table[-1]
        for (_, codebook, _, _), own in zip(sharing, codes, strict=True):
            codebook.codes.copy_(own)


class ReassignCodes(Part):
    """After each step every weight that follows its original takes the table entry now nearest to it."""

    def after_step(self, fit: Fit) -> None:
        for _, owner, name, shared in shared_weights(fit.network):
            if shared.follow:
                shared.reassign_(owner.parametrizations[name].original)  # type: ignore[index, union-attr]

    def finish(self, fit: Fit) -> None:
        keep_codes_(fit.network)


class ClusterAnew(Part):
    """Before every epoch but the first the clusters are found anew, see `recluster_`."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def epoch_start(self, fit: Fit) -> None:
        if fit.epoch:
            recluster_(fit.network, self.search, f"epoch {fit.epoch}")


class PullToClusters(Part):
    """strength * t * the sum over layers of `cluster_pull`, with t rising from 0 to 1 over the training.

    Originals come to lie on their table entries, so that fewer change their code late, when little time is left to make up for
    it. Vectors (biases) are not pulled.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        terms = [
            cluster_pull(_below(owner, name), getattr(owner, name).detach())
            for _, owner, name, shared in shared_weights(fit.network)
            if shared.follow and getattr(owner, name).dim() > 1
        ]
        return self.strength * fit.step / fit.total_steps * torch.stack(terms).sum() if terms else None


def _below(owner: nn.Module, name: str) -> Tensor:
    """What the last representation of a weight is given: the original, masked where there is a mask."""
    value: Tensor = owner.parametrizations[name].original  # type: ignore[index, union-attr]
    for part in representations(owner, name)[:-1]:
        value = part(value)
    return value

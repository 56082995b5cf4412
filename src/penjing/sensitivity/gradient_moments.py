"""What the gradients of single samples say of a layer: how much each row of a weight matters, and which inputs do together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import DataError
from penjing.graph import ExitOutputs, Network
from penjing.sensitivity.covariance import input_windows
from penjing.sensitivity.layer_weights import weighted_layers
from penjing.sensitivity.per_sample import Direction, Jacobian
from penjing.training import Batch

_ENTRIES = 1 << 25
"""Gradients of so many weights are held at a time."""


@dataclass(frozen=True)
class GradientMoments:
    """Of one weight, seen as rows of n numbers each; g_r is a sample's gradient of row r.

    Attributes:
        rows: (rows,), E |g_r|^2 / n, at least 0.
        columns: (groups, n, n), E mean over the rows of a group of g_r g_r^T; None for layers without `input_covariances`.
    """

    rows: Tensor
    columns: Tensor | None


def gradient_moments(
    network: Network, batches: Iterable[Batch], *, classes: bool, generator: torch.Generator
) -> dict[str, GradientMoments]:
    """For scores of classes, the gradient of log p(y|x) with a label y drawn from the answers for each sample: the
    second moments are blocks of the Fisher information. For anything else, of <F(x), v> with v ~ N(0, I): blocks of the
    Gauss-Newton matrix of |F - F'|^2 / 2.

    Exits add up. No labels of the data are looked at.
    Returns: by the weight's full name; float64.
    Raises: DataError: no samples.
    Source: Martens 2014, arXiv:1412.1193, section 9; Hutchinson 1990 for the draws; factors that rows share as in
    Martens and Grosse 2015 (K-FAC), arXiv:1503.05671.
    """
    jacobian = Jacobian(network)
    groups = {name: input_windows(layer) for name, layer in weighted_layers(network).items()}
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    n = 0
    n_weights = sum(weight.numel() for weight in jacobian.weights.values())
    for given in batches:
        for batch in _parts(given.to(jacobian.device), max(_ENTRIES // max(n_weights, 1), 1)):
            n += batch.size
            answers = jacobian.answers(batch)
            for direction in _drawn(answers, classes, generator):
                for name, gradients in jacobian.gradients(batch, direction).items():
                    flat = gradients.flatten(2)  # (batch, rows, n)
                    own = flat.square().sum((0, 2)).double().cpu() / flat.shape[2]
                    rows[name] = rows[name] + own if name in rows else own
                    if groups[name]:
                        parts = flat.unflatten(1, (groups[name], -1)).movedim(1, 0).flatten(1, 2)
                        moments = (parts.transpose(1, 2) @ parts).double().cpu() / (flat.shape[1] // groups[name])
                        columns[name] = columns[name] + moments if name in columns else moments
    if not n:
        raise DataError("sensitivity: there are no samples; check the loader and the number of batches.")
    return {
        name: GradientMoments(own / n, columns[name] / n if name in columns else None) for name, own in rows.items()
    }


def _drawn(answers: ExitOutputs, classes: bool, generator: torch.Generator) -> Iterator[Direction]:
    if not classes:
        yield tuple(torch.randn(a.shape, generator=generator).to(a.device, a.dtype) for a in answers)
        return
    for k, answer in enumerate(answers):
        probabilities = answer.float().softmax(-1)
        labels = torch.multinomial(probabilities.flatten(0, -2).cpu(), 1, generator=generator).view(answer.shape[:-1])
        score = F.one_hot(labels.to(answer.device), answer.shape[-1]) - probabilities
        yield tuple(score if j == k else torch.zeros_like(a) for j, a in enumerate(answers))


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, batch.size, size):
        part = slice(start, start + size)
        yield Batch(tuple(x[part] for x in batch.args), {name: x[part] for name, x in batch.kwargs.items()})

"""The diagonal of the second derivative of the loss."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from penjing.errors import DataError, SettingError, nearest
from penjing.graph import ExitOutputs, Network
from penjing.sensitivity.evidence import Evidence
from penjing.sensitivity.per_sample import Direction, Jacobian, Loss, loss_of_answers
from penjing.training import Batch

MAX_EXACT = 20_000
"""The exact diagonal takes one backward pass a weight; above so many weights it is refused."""
_ENTRIES = 1 << 22


def cross_entropy_root(answer: Tensor) -> Iterable[Tensor]:
    """The columns of S with S S^T = diag(p) - p p^T, the Hessian of the cross entropy with respect to the logits.

    S[:, c] = sqrt(p_c) (e_c - p), p = softmax(answer) over the last dimension. With several positions, (batch, ..., classes),
    each position has its own columns, which are 0 at the others; that is the Hessian of the sum over positions.

    Yields: classes x positions tensors of the answer's shape.
    """
    p = answer.float().softmax(-1)
    n_places, n_classes = math.prod(answer.shape[1:-1]), answer.shape[-1]
    flat = p.reshape(len(p), n_places, n_classes)
    for place in range(n_places):
        for c in range(n_classes):
            column = torch.zeros_like(flat)
            column[:, place] = -flat[:, place]
            column[:, place, c] += 1
            yield (column * flat[:, place, c].sqrt().view(-1, 1, 1)).view(answer.shape)


def identity_root(answer: Tensor) -> Iterable[Tensor]:
    """The columns of the identity, the Hessian of ||answer - target||^2 / 2 with respect to the answer."""
    n_outputs = math.prod(answer.shape[1:])
    for k in range(n_outputs):
        column = torch.zeros(len(answer), n_outputs, device=answer.device)
        column[:, k] = 1
        yield column.view(answer.shape)


def loss_root(loss: Loss, network: Network, batch: Batch, answers: Sequence[Tensor]) -> Iterable[Direction]:
    """The columns of S with S S^T = d^2 L / d a^2 for each sample, for any loss that is convex in the answers.

    The Hessian with respect to all answers of one sample together, by differentiating twice, (outputs, outputs); its root by
    eigenvectors. Eigenvalues below 0, which only a loss that is not convex has, count as 0.
    """
    sizes = [math.prod(a.shape[1:]) for a in answers]
    flat = torch.cat([a.detach().double().flatten(1) for a in answers], 1).requires_grad_()  # (batch, outputs)

    def shaped(values: Tensor) -> list[Tensor]:
        return [v.reshape(a.shape) for v, a in zip(values.split(sizes, 1), answers, strict=True)]

    with torch.enable_grad():
        total = loss_of_answers(loss, network, batch, [a.to(answers[0].dtype) for a in shaped(flat)])
        (first,) = torch.autograd.grad(total, flat, create_graph=True)
        rows = [
            torch.autograd.grad(first[:, k].sum(), flat, retain_graph=True, allow_unused=True)[0]
            if first.requires_grad
            else None
            for k in range(flat.shape[1])
        ]
    hessian = torch.stack([torch.zeros_like(flat) if row is None else row for row in rows], 1).detach()
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
    root = vectors * values.clamp_min(0).sqrt()[:, None]  # (batch, outputs, columns)
    for k in range(root.shape[2]):
        if bool(root[:, :, k].any()):
            yield tuple(column.to(a.dtype) for column, a in zip(shaped(root[:, :, k]), answers, strict=True))


def diagonal_hessian(
    network: Network,
    evidence: Evidence,
    *,
    method: Literal["gauss-newton", "exact"] = "gauss-newton",
    output: Literal["loss", "cross-entropy", "squared-error"] = "loss",
    most: int = MAX_EXACT,
) -> dict[str, Tensor]:
    """h_ii = d^2 E[L] / d w_i^2 over the samples, for the weights as the layers use them, in evaluation mode.

    "gauss-newton": E[sum_k ((J^T S_k)_i)^2], S S^T the Hessian of the loss with respect to the answers; one pass an output, at
    least 0. It leaves out sum_k dL/da_k d^2 a_k / dw_i^2, which is 0 where the answers are piecewise linear in each single
    weight: in a network of ReLUs and maxima that uses no weight at two depths. With tanh it is not.
    "exact": by differentiating twice, one pass a weight; can be negative.

    Args:
        output: where the Hessian of the answers comes from: the evidence's loss, or its closed form without labels: cross
            entropy, or ||answer - target||^2 / 2; these are sums over positions and exits.
        most: number of weights above which "exact" is refused.
    Raises: SettingError: what is needed is not in the evidence, an unknown name, or too many weights for "exact".
    Source: LeCun, Denker and Solla 1990 (Optimal Brain Damage), section 2.2; the Gauss-Newton form is its "Levenberg-Marquardt
        approximation".
    """
    who = f"{method} hessian"
    if method not in ("gauss-newton", "exact"):
        raise SettingError(f'hessian: there is no method "{method}"; {nearest(method, ("gauss-newton", "exact"))}.')
    outputs = ("loss", "cross-entropy", "squared-error")
    if output not in outputs:
        raise SettingError(f'hessian: there is no output "{output}"; {nearest(output, outputs)}.')
    batches = evidence.samples(who)
    if method == "exact":
        return _exact(network, batches, evidence.loss_of(who), most)
    loss = evidence.loss_of(who) if output == "loss" else None
    jacobian = Jacobian(network)

    def columns(answers: ExitOutputs, batch: Batch) -> Iterable[Direction]:
        if loss is not None:
            yield from loss_root(loss, jacobian.network, batch, answers)
            return
        root = cross_entropy_root if output == "cross-entropy" else identity_root
        for k, answer in enumerate(answers):
            for column in root(answer):
                yield tuple(column if j == k else torch.zeros_like(a) for j, a in enumerate(answers))

    return jacobian.mean(batches, columns, torch.square)


def _exact(network: Network, batches: Iterable[Batch], loss: Loss, most: int) -> dict[str, Tensor]:
    jacobian = Jacobian(network)
    weights = {name: jacobian.network.get_parameter(name) for name in jacobian.names}
    n_weights = sum(w.numel() for w in weights.values())
    if n_weights > most:
        raise SettingError(
            f"hessian: the exact diagonal takes a backward pass for each of the {n_weights:,} weights, at most {most:,} are "
            'allowed. Use method="gauss-newton", the same in ReLU networks, or raise most=.'
        )
    totals = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    n = 0
    for given in batches:
        batch = given.to(jacobian.device)
        n += batch.size
        with torch.enable_grad():
            value = loss(jacobian.network, batch)
            first = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), first, strict=True):
            if gradient is not None and gradient.requires_grad:
                totals[name] += _diagonal(gradient, weight).double() * batch.size
    if not n:
        raise DataError("hessian: there are no samples; check the loader and the number of batches.")
    return {name: (total / n).float() for name, total in totals.items()}


def _diagonal(gradient: Tensor, weight: Tensor) -> Tensor:
    """d gradient_i / d weight_i, by products with chunks of unit vectors."""
    n = weight.numel()
    size = max(1, _ENTRIES // n)
    parts = []
    for start in range(0, n, size):
        index = torch.arange(start, min(n, start + size), device=weight.device)
        units = torch.zeros(len(index), n, device=weight.device, dtype=weight.dtype)
        units[torch.arange(len(index)), index] = 1
        (rows,) = torch.autograd.grad(
            gradient,
            weight,
            units.view(-1, *weight.shape),
            retain_graph=True,
            is_grads_batched=True,
            allow_unused=True,
        )
        parts.append(
            torch.zeros(len(index), device=weight.device)
            if rows is None
            else rows.reshape(len(index), n).gather(1, index[:, None])[:, 0]
        )
    return torch.cat(parts).view(weight.shape)

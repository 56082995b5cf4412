"""Tucker-2: a convolution as three, of which the large one has fewer channels on both sides.

x ── 1 x 1, I -> R_in ── k x k, R_in -> R_out ── 1 x 1, R_out -> O ──

W[o, i, y, x] ~ sum_{p, q} U_out[o, p] G[p, q, y, x] U_in[i, q]
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.architecture.factors import (
    DAMPING,
    as_float64,
    check_rank,
    in_metric,
    like,
    moments_of_modes,
    refitted,
    root_of,
    svd_factors,
)

_MOST_SWEEPS = 25
_TOLERANCE = 1e-6
"""Of the share of the squared norm that is kept: less progress in a sweep ends the iterations."""


def tucker2(
    weight: Tensor, rank_out: int, rank_in: int, moment: Tensor | None = None, *, damping: float = DAMPING
) -> tuple[Tensor, Tensor, Tensor]:
    """The three factors of ranks (rank_out, rank_in).

    Starts at the leading singular vectors of both unfoldings (HOSVD). Then in turn, each the optimum for the other (HOOI):
    U_out <- leading left singular vectors of the unfolding of W x_in U_in^T by outputs, U_in <- those of W x_out U_out^T by
    inputs. The bases are orthonormal, so ||W - W'||^2 = ||W||^2 - ||G||^2 falls with every step.

    With moments, U_in is found in the metric of channels and places, each by itself (C as a Kronecker product), and then G and
    U_out are, for this U_in, the exact optimum of E ||(W - W') x||^2.

    Args:
        weight: (O, I, *kernel).
        rank_out: 1 to O.
        rank_in: 1 to I.
        moment: C of whole windows, (I * places, I * places), in the order of the filters' weights.
    Returns: U_in^T (rank_in, I), G (rank_out, rank_in, *kernel) and U_out (O, rank_out), in the order in which they work.
    Raises: SettingError: a rank out of range, shapes that do not fit.
    Source: Kim et al. 2016, arXiv:1511.06530, section 3.1; De Lathauwer et al. 2000, "On the best rank-1 and rank-(R1, ..., RN)
        approximation of higher-order tensors", algorithm 4.2.
    """
    filters = as_float64(weight, weight.dim()).flatten(2)  # (O, I, places)
    out, inputs, places = filters.shape
    check_rank(rank_out, out, "rank_out")
    check_rank(rank_in, inputs, "rank_in")
    kernel = weight.shape[2:]
    if moment is None:
        u_out, u_in = _bases(filters, rank_out, rank_in)
        core = torch.einsum("oik,op,iq->pqk", filters, u_out, u_in)
        return like(weight, u_in.T), like(weight, core.reshape(rank_out, rank_in, *kernel)), like(weight, u_out)
    roots = [root_of(part, damping) for part in moments_of_modes(moment, (inputs, places))]
    u_in = _bases(in_metric(filters, roots), rank_out, rank_in)[1]
    # columns that give the same space from plain inputs, and are orthonormal again
    first = torch.linalg.qr(torch.linalg.solve_triangular(roots[0].T, u_in, upper=True))[0].T
    basis = torch.einsum("qi,kl->qkil", first, torch.eye(places).double()).reshape(rank_in * places, inputs * places)
    middle = refitted(filters.flatten(1), basis, moment, damping=damping)  # (O, rank_in * places)
    seen = basis @ moment.double().cpu() @ basis.T
    rank = min(rank_out, len(basis))
    core, last = svd_factors(middle, rank, seen, damping=damping)
    more = rank_out - rank  # outputs that the core cannot tell apart
    core = F.pad(core, (0, 0, 0, more)).reshape(rank_out, rank_in, *kernel)
    last = F.pad(last, (0, more))
    return like(weight, first), like(weight, core), like(weight, last)


def kept_by_ranks(weight: Tensor) -> Tensor:
    """For all pairs of ranks at once, the squared norm that truncating the HOSVD keeps; HOOI keeps no less.

    With all singular vectors the core S has W's norm, and the bases of lower ranks are parts of them:
    kept[p, q] = sum of S^2 over the first p + 1 outputs, the first q + 1 inputs and all places.

    Args:
        weight: (O, I, ...), in the metric that counts.
    Returns: (O, I), float64; the last one is ||W||^2.
    Source: De Lathauwer et al. 2000, "A multilinear singular value decomposition", property 10.
    """
    filters = weight.double().flatten(2)
    u_out, u_in = _hosvd(filters)
    core = torch.einsum("oik,op,iq->pqk", filters, u_out, u_in)
    return core.square().sum(2).cumsum(0).cumsum(1)


def _bases(filters: Tensor, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor]:
    """U_out (O, rank_out) and U_in (I, rank_in), orthonormal."""
    u_out, u_in = _hosvd(filters)
    u_out, u_in = u_out[:, :rank_out], u_in[:, :rank_in]
    out, inputs = filters.shape[:2]
    by_output = filters.transpose(1, 2).reshape(-1, inputs)  # (O * places, I)
    by_input = filters.permute(1, 2, 0).reshape(-1, out)  # (I * places, O)
    whole = float(filters.square().sum())
    before = 0.0
    for _ in range(_MOST_SWEEPS):
        u_out = _leading((by_output @ u_in).reshape(out, -1), rank_out)
        projected = (by_input @ u_out).reshape(inputs, -1)
        u_in = _leading(projected, rank_in)
        kept = float((u_in.T @ projected).square().sum())
        if kept - before <= _TOLERANCE * whole:
            break
        before = kept
    return u_out, u_in


def _hosvd(filters: Tensor) -> tuple[Tensor, Tensor]:
    out, inputs = filters.shape[:2]
    return _leading(filters.flatten(1), out), _leading(filters.transpose(0, 1).flatten(1), inputs)


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The left singular vectors of the largest singular values, (rows, rank), by the eigenvectors of the smaller M M^T."""
    return torch.linalg.eigh(matrix @ matrix.T)[1].flip(1)[:, :rank]

"""A matrix as the product of two thin ones, and a filter bank as columns then rows: one singular value decomposition each.

Where the second moments C = E[x x^T] of a layer's inputs are known, what counts is how far its answers move,

    E ||(W - W') x||^2 = ||(W - W') S||^2,   C = S S^T,

so the same decomposition is made of W S. All is computed in float64 on the CPU.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from penjing.errors import SettingError

DAMPING = 1e-3
"""Of the mean second moment of an input, added to all of them: directions that no sample had still count a little."""
_TINY = 1e-150
_SAME = 1e-10
"""Directions that differ by less, relative to the largest, say the same: rounding alone must not tell them apart."""


def svd_factors(
    weight: Tensor, rank: int, moment: Tensor | None = None, *, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """The two factors whose product, of this rank, changes the answers least.

    With W S = U diag(s) V^T, the best B A of rank k is U_k (U_k^T W): nothing has to be inverted, so a singular C does no harm.
    The squared change is s_{k+1}^2 + s_{k+2}^2 + ...; S = I without moments. Norms are shared evenly by both factors.

    Args:
        weight: (m, n).
        rank: 1 to min(m, n).
        moment: C, (n, n), symmetric, not negative.
        damping: see `root_of`.
    Returns: A (rank, n) and B (m, rank), in the order in which they are applied; dtype and device are the weight's.
    Raises: SettingError: a rank out of range, shapes that do not fit.
    Source: Eckart and Young 1936; Denton et al. 2014, arXiv:1404.0736, section 3.1, for the metric of the data.
    """
    matrix = as_float64(weight, 2)
    check_rank(rank, min(matrix.shape), "rank")
    u = torch.linalg.svd(weighted(matrix, moment, damping), full_matrices=False)[0][:, :rank]
    first = u.T @ matrix
    share = first.norm(dim=1).clamp_min(_TINY).sqrt()
    return like(weight, first / share[:, None]), like(weight, u * share)


def spatial_factors(
    weight: Tensor, rank: int, moment: Tensor | None = None, *, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """A filter bank as `rank` column filters over all inputs, then row filters over these.

    W[o, i, y, x] ~ sum_r H[o, r, x] V[r, i, y]: one singular value decomposition of the (O kw, I kh) matrix of W. With moments
    the columns are decomposed in their own metric, the mean over x of their second moments, and the rows are fitted to what
    these give.

    Args:
        weight: (O, I, kh, kw).
        rank: 1 to min(O kw, I kh).
        moment: C of whole windows, (I kh kw, I kh kw), in the order of the filters' weights.
    Returns: V (rank, I, kh, 1) and H (O, rank, 1, kw).
    Raises: SettingError: a rank out of range, shapes that do not fit.
    Source: Jaderberg et al. 2014, arXiv:1405.3866, scheme 2; in closed form, Tai et al. 2016, arXiv:1511.06067, theorem 1.
    """
    filters = as_float64(weight, 4)
    out, inputs, height, width = filters.shape
    columns = None
    if moment is not None:
        columns = moments_of_modes(moment, (inputs * height, width))[0]
    matrix = spatial_matrix(filters)
    check_rank(rank, min(matrix.shape), "rank")
    vertical, horizontal = svd_factors(matrix, rank, columns, damping=damping)
    if moment is not None:  # what the columns give at x places beside one another is what the rows see
        basis = torch.einsum("riy,xz->rxiyz", vertical.reshape(rank, inputs, height), torch.eye(width).double())
        horizontal = refitted(
            filters.flatten(1), basis.reshape(rank * width, inputs * height * width), moment, damping=damping
        )
        rows = horizontal.reshape(out, rank, width)
    else:
        rows = horizontal.reshape(out, width, rank).transpose(1, 2)
    return like(weight, vertical.reshape(rank, inputs, height, 1)), like(weight, rows.unsqueeze(2))


def spatial_matrix(weight: Tensor) -> Tensor:
    """(O, I, kh, kw) as (O kw, I kh)."""
    out, inputs, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(out * width, inputs * height)


def refitted(weight: Tensor, basis: Tensor, moment: Tensor, *, damping: float = DAMPING) -> Tensor:
    """The B for which E ||(W - B P) x||^2 is least: B = W C P^T (P C P^T)^+, by least squares.

    Args:
        weight: W, (m, n).
        basis: P, (q, n).
        moment: C, (n, n).
    Returns: (m, q), float64.
    """
    root = root_of(moment, damping)
    seen = basis.double() @ root
    # rows of one size: what counts as no direction of its own must not depend on how a factor is scaled
    size = seen.norm(dim=1).clamp_min(_TINY)
    target = as_float64(weight, 2) @ root
    # by singular values: pivoted QR (gelsy) takes copies of a direction for new ones in 5 of 100 draws, whatever rcond is
    found = torch.linalg.lstsq((seen / size[:, None]).T, target.T, rcond=_SAME, driver="gelsd")
    return found.solution.T / size


def root_of(moment: Tensor, damping: float = DAMPING) -> Tensor:
    """S with S S^T = C + damping * mean(diag C) I, lower triangular, float64; (n, n).

    Raises: SettingError: moments that are not finite, or have negative eigenvalues beyond rounding.
    """
    moments = moment.detach().double().cpu()
    if not bool(torch.isfinite(moments).all()):
        raise SettingError("low-rank: the second moments of a layer's inputs are not finite; check the samples.")
    mean = max(float(moments.diagonal().mean()), _TINY)
    for more in (1.0, 1e2, 1e4):  # rounding can make a singular matrix a little negative
        shift = max(damping, 1e-12) * more * mean
        root, failed = torch.linalg.cholesky_ex(moments + shift * torch.eye(len(moments), dtype=torch.float64))
        if not int(failed):
            return root
    raise SettingError("low-rank: the second moments of a layer's inputs are not positive; check the samples.")


def moments_of_modes(moment: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Second moments of each mode of windows, means over the others: C is about their Kronecker product.

    C_n = (sum over equal indices of the other modes of C) / (sizes of these); all but the first with a mean diagonal of 1.

    Args:
        moment: C, (n, n), n the product of the sizes.
        sizes: of the modes, such as (channels, kernel height, kernel width).
    Returns: for each mode (size, size), float64.
    """
    check_moment(moment, math.prod(sizes))
    rest = moment.detach().double().cpu()
    found = []
    for position, size in enumerate(sizes):
        before, after = math.prod(sizes[:position]), math.prod(sizes[position + 1 :])
        parts = rest.reshape(before, size, after, before, size, after)
        own = torch.einsum("aibajb->ij", parts) / (before * after)
        found.append(own if position == 0 else own / own.diagonal().mean().clamp_min(_TINY))
    return found


def in_metric(weight: Tensor, roots: Sequence[Tensor]) -> Tensor:
    """W x_1 S_1^T x_2 S_2^T ...: its plain norm is the one that C = (S_1 S_1^T) x (S_2 S_2^T) x ... says.

    Args:
        weight: (O, n_1, n_2, ...), float64.
        roots: for each mode but the first, see `root_of`.
    """
    for dim, root in enumerate(roots, 1):
        weight = (weight.movedim(dim, -1) @ root).movedim(-1, dim)
    return weight


def weighted(matrix: Tensor, moment: Tensor | None, damping: float = DAMPING) -> Tensor:
    """W S, (m, n): a matrix whose plain norm is the one that the moments say; W itself without moments."""
    if moment is None:
        return matrix
    check_moment(moment, matrix.shape[1])
    return matrix @ root_of(moment, damping)


def energy_rank(singular_values: Tensor, energy: float) -> int:
    """The smallest rank that keeps this share of the squared norm: s_1^2 + ... + s_k^2 >= energy * (s_1^2 + s_2^2 + ...).

    Args:
        singular_values: (r,), descending.
        energy: above 0, at most 1.
    Raises: SettingError: an energy out of range.
    """
    if not 0 < energy <= 1:
        raise SettingError(f"low-rank: energy must be above 0 and at most 1, got {energy}. Write 0.9 to keep 90 %.")
    kept = singular_values.double().square().cumsum(0)
    enough = kept >= energy * kept[-1] * (1 - 1e-14)
    return int(enough.double().argmax()) + 1


def relative_error(weight: Tensor, approximation: Tensor, moment: Tensor | None = None) -> float:
    """||W - W'|| / ||W||, in the metric of the moments where they are given: the relative error of the answers.

    Args:
        weight, approximation: (O, ...), the same shape.
        moment: C, (n, n), n the weights of one output.
    """
    before = weight.detach().double().cpu().flatten(1)
    change = before - approximation.detach().double().cpu().flatten(1)
    if moment is None:
        return float(change.norm() / before.norm().clamp_min(_TINY))
    c = moment.double().cpu()
    squared, whole = (float(((rows @ c) * rows).sum()) for rows in (change, before))
    return math.sqrt(max(squared, 0.0) / max(whole, _TINY))


def as_float64(weight: Tensor, dims: int) -> Tensor:
    """The values on the CPU. Raises: SettingError: another number of dimensions, or values that are not finite."""
    if weight.dim() != dims:
        raise SettingError(f"low-rank: the weight must have {dims} dimensions, got the shape {tuple(weight.shape)}.")
    values = weight.detach().double().cpu()
    if not bool(torch.isfinite(values).all()):
        raise SettingError("low-rank: the weight has values that are not finite; nothing can be told from it.")
    return values


def like(weight: Tensor, factor: Tensor) -> Tensor:
    """A factor with the weight's dtype and device."""
    return factor.to(weight.device, weight.dtype)


def check_rank(rank: int, largest: int, name: str) -> None:
    """Raises: SettingError: a rank below 1, or above the largest there is."""
    if not 1 <= rank <= largest:
        raise SettingError(f"low-rank: {name} must be 1 to {largest}, got {rank}.")


def check_moment(moment: Tensor, n: int) -> None:
    """Raises: SettingError: moments of another number of inputs."""
    if tuple(moment.shape) != (n, n):
        raise SettingError(f"low-rank: the second moments must be ({n}, {n}), got {tuple(moment.shape)}.")

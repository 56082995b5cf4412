"""How many bits codes will take, as a loss: weights move to values that many others have."""

import torch
from torch import Tensor


def code_lengths(codes: Tensor, low: int, high: int) -> Tensor:
    """Ideal lengths in bits of the codes low, ..., high in a sequence, (high - low + 1,), float32, no gradient.

    -log2 p_k,  p_k = (n_k + 1/2) / (n + (high - low + 1) / 2),  n_k how often code k occurs among n: Krichevsky and Trofimov's
    estimate, in which no code is impossible.
    """
    n_codes = high - low + 1
    counts = torch.bincount((codes.detach().flatten() - low).long(), minlength=n_codes)
    return -torch.log2((counts + 0.5) / (codes.numel() + 0.5 * n_codes)).float()


def expected_code_length(positions: Tensor, lengths: Tensor, low: int) -> Tensor:
    """Bits that weights take if each is rounded up or down with a chance that keeps its mean, a scalar.

    sum_i (1 - t_i) L(k_i) + t_i L(k_i + 1),   k_i = floor(u_i), t_i = u_i - k_i,   u_i the position clipped to the codes

    It is exact where all positions are whole. Its slope L(k + 1) - L(k) leads to codes that are frequent; clipped positions
    have none.
    Args:
        positions: original / step, any shape: where weights lie in units of codes.
        lengths: (codes,), of low, low + 1, ...; no gradient reaches them.
        low: the smallest code.
    """
    if len(lengths) == 1:
        return positions.sum() * 0 + float(lengths[0]) * positions.numel()
    places = positions.clamp(low, low + len(lengths) - 1) - low
    below = places.detach().floor().clamp(max=len(lengths) - 2).long()
    first, second = lengths.detach()[below], lengths.detach()[below + 1]
    return (first + (second - first) * (places - below)).sum()

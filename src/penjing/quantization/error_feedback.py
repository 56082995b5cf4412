"""Rounding one weight after the other, each time moving those that are left so that the layer's answers change least.

For a row w of a layer with input second moments C, rounding w_j to q_j leaves the error e = w_j - q_j; the change of the
remaining weights F = {j+1, ...} that makes (w - q) C (w - q)^T least is

    w_F <- w_F - e / [C_R^-1]_jj * [C_R^-1]_jF,   R = {j, j+1, ...},

and all of these come from one Cholesky factor: C^-1 = U^T U with U upper triangular has U_jF / U_jj for that ratio.
Source: Hassibi and Stork 1993 (optimal brain surgeon); Frantar et al. 2023 (GPTQ), arXiv:2210.17323, sections 3.2 and 3.3.
"""

import torch
from torch import Tensor

from penjing.errors import SettingError

_BLOCK = 64


def conditional_factor(covariance: Tensor, damping: float = 0.01) -> Tensor:
    """U with (C + damping * mean(diag C) I)^-1 = U^T U, upper triangular; float64.

    1 / U_jj^2 is the variance of input j that later inputs do not explain. Inputs that are always 0 are harmless: damping keeps
    them apart.

    Args:
        covariance: (n, n), symmetric, no negative eigenvalues up to rounding.
    Raises: SettingError: it has values that are not finite, or negative eigenvalues below that.
    """
    moments = covariance.double()
    mean = float(moments.diagonal().mean())
    if not bool(torch.isfinite(moments).all()):
        raise SettingError("error feedback: the layer's inputs are not finite; check the samples.")
    eye = torch.eye(len(moments), dtype=moments.dtype, device=moments.device)
    moments = moments + eye * max(damping * mean, 1e-12)
    factor, failed = torch.linalg.cholesky_ex(moments)
    if int(failed):
        raise SettingError(
            "error feedback: the second moments of the layer's inputs are not positive; check the samples."
        )
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    return upper


def rounded_with_feedback(
    weight: Tensor, steps: Tensor, factor: Tensor, keep: Tensor | None = None, largest: int = (1 << 15) - 1
) -> Tensor:
    """Whole multiples of the steps, in order of the columns, with the error of each fed to those after it.

    Args:
        weight: (rows, n).
        steps: broadcasts to (rows, n), above 0.
        factor: (n, n), see `conditional_factor`.
        keep: bool, (rows, n); others become 0, and their error is fed on too.
        largest: the largest magnitude there may be.
    Returns: (rows, n), int64. Later columns see all errors before them; the result does not depend on how rows are batched.
    """
    left = weight.double().clone()
    spread = steps.double().expand(weight.shape)
    codes = torch.zeros_like(left)
    n = left.shape[1]
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        errors = torch.zeros(len(left), end - start, dtype=left.dtype, device=left.device)
        for j in range(start, end):
            code = torch.round(left[:, j] / spread[:, j]).clamp(-largest, largest)
            if keep is not None:
                code = code * keep[:, j]
            codes[:, j] = code
            error = (left[:, j] - code * spread[:, j]) / factor[j, j]
            left[:, j + 1 : end] -= error[:, None] * factor[j, j + 1 : end]
            errors[:, j - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return codes.long()


def squared_change(difference: Tensor, covariance: Tensor) -> float:
    """sum over rows of d C d^T: how far the layer's answers move, squared and summed over a sample.

    Args:
        difference: (rows, n).
        covariance: (n, n).
    """
    d = difference.double()
    return float(((d @ covariance.double()) * d).sum())

"""Weights are pulled towards the clusters whose values they will take."""

from torch import Tensor

from penjing.errors import SettingError


def cluster_pull(weights: Tensor, values: Tensor) -> Tensor:
    """How far weights are from the values of their clusters, relative to the size of these.

    sum_i (w_i - v_i)^2 / sum_i v_i^2. Its gradient is 2 (w_i - v_i) / sum v^2; none reaches the values. So a strength means the
    same in layers of any size.

    Args:
        weights: any shape.
        values: the table entry of each weight, the same shape.
    Returns: a scalar, at least 0; 0 where all values are 0 and so are the weights.
    Raises: SettingError: shapes that differ.
    """
    if weights.shape != values.shape:
        raise SettingError(
            f"cluster pull: each weight needs its value; got {tuple(weights.shape)} and {tuple(values.shape)}."
        )
    fixed = values.detach()
    return (weights - fixed).square().sum() / fixed.square().sum().clamp_min(1e-20)

"""Importance for several tasks at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.sensitivity.evidence import Weights


def merge_importances(importances: Sequence[Weights]) -> dict[str, Tensor]:
    """Omega_i = sum over tasks of Omega_i^task.

    Raises: SettingError: none are given, or they are not of the same weights in the same shapes.
    Source: Zenke et al. 2017, arXiv:1703.04200, eq. 5: importances of earlier tasks are summed.
    """
    if not importances:
        raise SettingError("merging: there are no importances to add.")
    first = importances[0]
    for other in importances[1:]:
        different = sorted(set(first) ^ set(other)) + sorted(
            name for name in set(first) & set(other) if first[name].shape != other[name].shape
        )
        if different:
            raise SettingError(
                f"merging: importances must be of the same weights in the same shapes; {', '.join(different)} differ. "
                "Measure all tasks on the same network."
            )
    return {name: torch.stack([importance[name] for importance in importances]).sum(0) for name in first}

"""How far a network's answers are from those it gave before: no labels are needed."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.errors import DataError
from penjing.graph import Network
from penjing.training.task import Batch, Task


@torch.no_grad()
def final_answers(network: Network, batches: Iterable[Batch]) -> Tensor:
    """What a network in evaluation mode says at its end, whatever its exits would, (n, ...), float32 on the CPU.

    Args:
        batches: on the network's device, at least one.
    """
    return torch.cat([network.all_answers(*batch.args, **batch.kwargs)[-1].float().cpu() for batch in batches])


def divergence(task: Task, before: Tensor, after: Tensor) -> float:
    """Zero where all answers are the same, and quadratic in small changes.

    Classification: mean over samples of KL(softmax(before) || softmax(after)), in nats. Anything else:
    ||after - before||^2 / ||before - mean of before||^2, over all samples.

    Args:
        before, after: answers, (n, ...), of one shape.
    Raises: DataError: shapes that differ.
    """
    if before.shape != after.shape:
        raise DataError(
            f"divergence: answers of shape {tuple(before.shape)} and {tuple(after.shape)} cannot be compared."
        )
    first, second = before.double(), after.double()
    if task.is_classification:
        return float(F.kl_div(second.log_softmax(-1), first.log_softmax(-1), log_target=True, reduction="batchmean"))
    spread = float((first - first.mean(0)).square().sum())
    return float((second - first).square().sum()) / max(spread, 1e-30)

"""Importance of a channel by how much the loss would change without it, to first order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from penjing.graph import Group, Network
from penjing.training import Batch


def taylor_scores(
    network: Network, groups: Sequence[Group], loss: Callable[[Batch], Tensor], batches: Iterable[Batch]
) -> list[Tensor]:
    """How much the loss changes, to first order, when a channel's values are set to 0 where they are read.

    score[c] = mean over samples of | sum over positions and readers of a_c dL/da_c |,
    with a_c the values of channel c at the inputs of the layers that read it. The network is in evaluation mode.

    Args:
        loss: computes the loss of a batch with `network`, a mean over the batch.
        batches: the samples to average over.
    Returns: per group (channels,), at least 0.
    Source: Molchanov et al. 2017, arXiv:1611.06440, eq. 8, taken at the readers' inputs so that coupled channels add up.
    """
    totals = [torch.zeros(group.n_channels, dtype=torch.float64) for group in groups]
    n = 0
    for size, changes in sample_changes(network, groups, loss, batches):
        n += size
        for total, change in zip(totals, changes, strict=True):
            # the loss is a mean over the batch: its gradient is a sample's own, divided by the batch's size
            total += change.abs().sum(0) * size
    return [(total / max(n, 1)).float() for total in totals]


def sample_changes(
    network: Network, groups: Sequence[Group], loss: Callable[[Batch], Tensor], batches: Iterable[Batch]
) -> Iterator[tuple[int, list[Tensor]]]:
    """For each batch its size, and per group the first-order changes of the batch's loss, (samples, channels).

    changes[s, c] = sum over positions and readers of a_c dL/da_c for sample s, the gradient with respect to a gate that
    multiplies channel c where it is read. L is the mean over the batch: times the size it is that of the sample's own loss.
    The network is in evaluation mode. Results whose first dimension is not the batch's count each entry of it as a sample, and
    then the changes are at least 0.
    """
    seen: dict[tuple[str, int], list[Tensor]] = {(read.node, read.position): [] for g in groups for read in g.reads}

    def note(edge: tuple[str, int]) -> Callable[[Tensor], Tensor]:
        def watch(x: Tensor) -> Tensor:
            if not x.requires_grad:
                return x
            own = x.view_as(x)  # this reader's own: others may read the same tensor, with other gradients
            own.retain_grad()
            seen[edge].append(own)
            return own

        return watch

    training = network.training
    network.eval()
    try:
        with network.watched({edge: note(edge) for edge in seen}):
            for batch in batches:
                for tensors in seen.values():
                    tensors.clear()
                with torch.enable_grad():
                    value = loss(batch)
                    torch.autograd.backward(value, inputs=[t for tensors in seen.values() for t in tensors])
                yield batch.size, [_changes(group, seen, batch.size) for group in groups]
    finally:
        network.train(training)


def _changes(group: Group, seen: Mapping[tuple[str, int], Sequence[Tensor]], n: int) -> Tensor:
    """For each sample and channel, the sum of a dL/da over places and readers, (samples, channels).

    Results whose first dimension is not the batch's, or that times something, count each entry of it as a sample.
    """
    found: list[Tensor] = []
    for read in group.reads:
        for tensor in seen[read.node, read.position]:
            if tensor.grad is None:
                continue
            product = (tensor.detach() * tensor.grad).movedim(read.dim, -1).double().cpu()
            n_rows = n if read.dim > 0 and len(product) % n == 0 else len(product)
            per_channel = product.reshape(n_rows, -1, product.shape[-1]).sum(1)  # (samples, indices)
            change = torch.zeros(n_rows, group.n_channels, dtype=torch.float64)
            found.append(
                change.index_add_(1, torch.as_tensor(read.channels), per_channel[:, torch.as_tensor(read.indices)])
            )
    if not found:
        return torch.zeros(n, group.n_channels, dtype=torch.float64)
    alike = {len(change) for change in found} == {n}
    return torch.stack(found).sum(0) if alike else torch.cat([change.abs() for change in found])

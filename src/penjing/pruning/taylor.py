"""Importance of a channel by how much the loss would change without it, to first order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
    readers = sorted(
        {slot.path for group in groups for channel in group.channels for slot in channel if slot.role == "in"}
    )
    read: dict[str, list[Tensor]] = {path: [] for path in readers}

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not args[0].requires_grad:
                return None
            edge = args[0].view_as(args[0])  # this reader's own: others may read the same tensor, with other gradients
            edge.retain_grad()
            read[path].append(edge)
            return (edge, *args[1:])

        return hook

    index = [_columns(group) for group in groups]
    totals = [torch.zeros(len(group.channels), dtype=torch.float64) for group in groups]
    hooks = [network.get_submodule(path).register_forward_pre_hook(note(path)) for path in readers]
    training, n = network.training, 0
    network.eval()
    try:
        for batch in batches:
            for tensors in read.values():
                tensors.clear()
            with torch.enable_grad():
                value = loss(batch)
                torch.autograd.backward(value, inputs=[t for tensors in read.values() for t in tensors])
            n += batch.size
            for total, columns in zip(totals, index, strict=True):
                change = torch.zeros(batch.size, len(total), dtype=torch.float64)
                for path, (channels, places) in columns.items():
                    for tensor in read[path]:
                        if tensor.grad is not None:
                            product = (
                                (tensor.detach() * tensor.grad).flatten(2).sum(-1)
                                if tensor.dim() > 2
                                else tensor.detach() * tensor.grad
                            )
                            change.index_add_(1, channels, product.double().cpu()[:, places])
                # the loss is a mean over the batch: its gradient is a sample's own, divided by the batch's size
                total += change.abs().sum(0) * batch.size
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
    return [(total / max(n, 1)).float() for total in totals]


def _columns(group: Group) -> dict[str, tuple[Tensor, Tensor]]:
    """By reader: which channel of the group, and which input of the reader, pair by pair."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for position, channel in enumerate(group.channels):
        for slot in channel:
            if slot.role == "in":
                pairs.setdefault(slot.path, []).append((position, slot.index))
    return {
        path: (torch.tensor([p for p, _ in found]), torch.tensor([i for _, i in found]))
        for path, found in pairs.items()
    }

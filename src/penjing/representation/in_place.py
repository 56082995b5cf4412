"""Masks in a training loop, enforced once a step on the weights themselves instead of in every pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.representation.mask import Mask


class MasksInPlace:
    """The masks of a network that lie directly on a parameter that learns. See `masks_in_place`."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._masked: list[tuple[Mask, nn.Parameter]] = []

    def find(self) -> None:
        """Look for the masks, again after some were added or taken away, and enforce them."""
        self.release()
        self._masked = list(_masked_parameters(self._network))
        self.enforce_()

    def enforce_(self) -> None:
        """Make removed weights 0: after every step of the optimizer."""
        for mask, original in self._masked:
            mask.enforce_(original)

    def mask_gradients_(self) -> None:
        """Make the gradients of removed weights 0: before anything that depends on the norm of the gradient."""
        for mask, original in self._masked:
            if original.grad is not None:
                mask.apply_(original.grad)

    def release(self) -> None:
        """Let every pass mask weights and gradients again."""
        for mask, _ in self._masked:
            mask.release()


@contextmanager
def masks_in_place(network: nn.Module) -> Iterator[MasksInPlace]:
    """A training loop in which masks cost next to nothing.

        with masks_in_place(network) as masks:
            for x, y in loader:
                optimizer.zero_grad()
                loss(network(x), y).backward()
                optimizer.step()
                masks.enforce_()

    As long as a weight is what `enforce_` left, no pass masks it: that saves an operation in each direction. Removed weights
    then have gradients (of the loss with respect to them), and what the optimizer makes of those is undone by `enforce_`. An
    optimizer that treats each weight by itself (SGD, Adam, AdamW) moves the kept ones exactly as it would otherwise; before
    clipping the gradient by its norm, call `mask_gradients_`. A weight that was changed by anything else, or a mask that was,
    is masked by the next pass as usual.
    """
    masks = MasksInPlace(network)
    masks.find()
    try:
        yield masks
    finally:
        masks.enforce_()
        masks.release()


def _masked_parameters(network: nn.Module) -> Iterator[tuple[Mask, nn.Parameter]]:
    for module in network.modules():
        if not isinstance(module, parametrize.ParametrizationList):
            continue
        original: Tensor | None = getattr(module, "original", None)
        if isinstance(module[0], Mask) and isinstance(original, nn.Parameter) and original.requires_grad:
            yield module[0], original

"""What a measure of importance may look at besides the weights as they are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.training import Batch

Weights = Mapping[str, Tensor]
"""A number for each weight, by the parameter's full name as `representation.named_weights` gives it, in its shape."""


@dataclass(frozen=True)
class Evidence:
    """Samples, a loss, and what earlier trainings left behind.

    Attributes:
        batches: a fresh pass over the samples that may be looked at.
        loss: of a network and a batch, a mean over the batch; the network is called within.
        initial: the weights before training.
        path: what was accumulated while training, see `synaptic_intelligence`.
        generator: for measures that draw labels or numbers.
    """

    batches: Callable[[], Iterable[Batch]] | None = None
    loss: Callable[[Network, Batch], Tensor] | None = None
    initial: Weights | None = None
    path: Weights | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def samples(self, who: str) -> Iterable[Batch]:
        """The samples. Raises: SettingError: there are none, and `who` needs them."""
        if self.batches is None:
            raise SettingError(f"{who}: it looks at samples; give Evidence(batches=...).")
        return self.batches()

    def loss_of(self, who: str) -> Callable[[Network, Batch], Tensor]:
        """The loss. Raises: SettingError: there is none, and `who` needs one."""
        if self.loss is None:
            raise SettingError(f"{who}: it looks at the loss; give Evidence(loss=...).")
        return self.loss

    def before(self, who: str) -> Weights:
        """The weights before training. Raises: SettingError: they were not kept, and `who` needs them."""
        if self.initial is None:
            raise SettingError(
                f"{who}: it looks at the weights before training. Put a train stage first, which keeps them, "
                "or give Evidence(initial=...)."
            )
        return self.initial

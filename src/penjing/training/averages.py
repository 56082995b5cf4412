"""Averages of weights along a training: one network that is often better than the last."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from penjing.training.part import Part
from penjing.training.task import Batch

if TYPE_CHECKING:
    from penjing.training.fit import Fit


class AverageWeights(Part):
    """An exponential moving average of weights and statistics, which replaces them at the end.

    mean <- d * mean + (1 - d) * weights after each step, d = min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.mean: dict[str, Tensor] = {}

    def start(self, fit: Fit) -> None:
        self.mean = {name: tensor.detach().clone() for name, tensor in fit.network.state_dict().items()}

    def after_step(self, fit: Fit) -> None:
        d = min(self.decay, (1 + fit.step) / (10 + fit.step))
        with torch.no_grad():
            for name, tensor in fit.network.state_dict().items():
                if tensor.is_floating_point():
                    self.mean[name].lerp_(tensor, 1 - d)
                else:
                    self.mean[name].copy_(tensor)

    def finish(self, fit: Fit) -> None:
        fit.network.load_state_dict(self.mean)

    def state(self) -> dict[str, object]:
        return {"mean": self.mean}

    def load_state(self, state: dict[str, object]) -> None:
        for name, tensor in state["mean"].items():  # type: ignore[attr-defined]
            self.mean[name].copy_(tensor)


class AverageEpochs(Part):
    """Stochastic weight averaging: the plain mean of the weights after each of the last epochs replaces them at the end.

    mean <- mean + (weights - mean) / n,  n = 1, 2, ... after each of the last `epochs` epochs. Then batch norms measure their
    statistics anew on the training set: those of the mean are not the mean of theirs. Best with a learning rate that stays up
    (`Schedule.hold`), so that the averaged networks differ.
    Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.2, algorithm 1; with a falling rate, the average of the last
    checkpoints of Vaswani et al. 2017, arXiv:1706.03762, section 6.1.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs, self.n = epochs, 0
        self.mean: dict[str, Tensor] = {}

    def epoch_end(self, fit: Fit) -> None:
        if fit.epoch < fit.schedule.epochs - self.epochs:  # it counts the finished ones, not this one yet
            return
        self.n += 1
        for name, tensor in fit.network.state_dict().items():
            if name not in self.mean:
                self.mean[name] = tensor.detach().clone()
            elif tensor.is_floating_point():
                self.mean[name].lerp_(tensor.detach(), 1 / self.n)
            else:
                self.mean[name].copy_(tensor)

    def finish(self, fit: Fit) -> None:
        if self.mean:
            fit.network.load_state_dict(self.mean)
            measure_batch_norms_(fit.network, (fit.laid_out(b) for b in fit.task.batches(fit.task.train, fit.device)))

    def state(self) -> dict[str, object]:
        return {"mean": self.mean, "n": self.n}

    def load_state(self, state: dict[str, object]) -> None:
        self.mean, self.n = dict(state["mean"]), int(state["n"])  # type: ignore[call-overload]


@torch.no_grad()
def measure_batch_norms_(network: nn.Module, batches: Iterable[Batch]) -> int:
    """Measure the statistics of batch norms anew: the plain mean over batches of each batch's mean and variance.

    Wherever weights changed without training, by averaging, rounding or cutting, the old statistics are another network's.
    Everything else is in evaluation mode meanwhile, so dropout is off.

    Returns: how many norms there are; without any, no batch is read.
    Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.2.
    """
    norms = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats
    ]
    if not norms:
        return 0
    was_training, momenta = network.training, [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    try:
        for batch in batches:
            network(*batch.args, **batch.kwargs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(was_training)
    return len(norms)


def mean_of_weights(networks: Iterable[nn.Module]) -> nn.Module:
    """A copy of the first whose parameters and statistics are the mean of all: good where they come from one training.

    Networks of different beginnings have nothing between them; their average is no better than chance.
    """
    several = list(networks)
    mean = copy.deepcopy(several[0])
    states = [network.state_dict() for network in several]
    mean.load_state_dict(
        {
            name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
            for name, tensor in states[0].items()
        }
    )
    return mean

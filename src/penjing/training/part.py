"""What may take part in a training: loss terms, proximal steps, clipping, moving averages ... through a few hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import ExitOutputs
from penjing.graph.features import layers_like
from penjing.training.task import Batch

if TYPE_CHECKING:
    from penjing.training.fit import Fit

Answers = Tensor | ExitOutputs


class Part:
    """Takes part in one training. Every hook does nothing unless a subclass says otherwise; subclasses are final.

    Order in one step: `loss` of every part, summed, backward, optimizer step; then `after_step` of every part. A part whose
    `step` returns a number has done all of this up to `after_step` itself; at most one part may.

    Attributes:
        reads_removed: whether it looks at the values that masks hide, which are 0 unless a part does.
    """

    reads_removed: bool = False

    def learners(self, fit: Fit) -> nn.Module | None:
        """Modules of its own that learn with the network, before the optimizer is made; their state is the part's."""
        return None

    def start(self, fit: Fit) -> None:
        """Before the first batch, also when a training goes on after an interruption (then before `load_state`)."""

    def epoch_start(self, fit: Fit) -> None:
        """Before each epoch."""

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        """A term of the loss, a scalar; None for nothing."""
        return None

    def step(self, fit: Fit, batch: Batch) -> float | None:
        """Do the whole step oneself, with `fit.forward` and `fit.update`, and return the loss; None to leave it to the loop."""
        return None

    def after_step(self, fit: Fit) -> None:
        """After the optimizer's step: project, clip, shrink, accumulate."""

    def epoch_end(self, fit: Fit) -> None:
        """After each epoch."""

    def finish(self, fit: Fit) -> None:
        """After the last epoch. Not called where a training that an earlier process finished is only read."""

    def state(self) -> dict[str, object]:
        """What must survive an interruption: nested dicts and lists of tensors, numbers and strings."""
        return {}

    def load_state(self, state: dict[str, object]) -> None:
        """The inverse of `state`."""


def over_exits(answers: Answers, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss of one answer, or the sum over the answers of all exits.

    Source: Huang et al. 2018 (MSDNet), arXiv:1703.09844, section 4: the sum over classifiers, equal weights.
    """
    if isinstance(answers, ExitOutputs):
        return torch.stack([loss(answer) for answer in answers]).sum()
    return loss(answers)


def between(first: float, last: float, fit: Fit) -> float:
    """What lies between the first step's value and the last one's, linear."""
    return first if first == last else first + (last - first) * fit.step / max(fit.total_steps - 1, 1)


def only_learn_(network: nn.Module, prefixes: tuple[str, ...] | None) -> None:
    """Parameters whose names begin so get gradients, no others do; None: all."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(prefixes is None or name.startswith(prefixes))


def rest_in_evaluation_(network: nn.Module, learns: Callable[[str], bool]) -> None:
    """Norms and dropout that do not learn as in use; modules are asked for by path with a dot behind."""
    for path, module in network.named_modules():
        if path and not learns(f"{path}.") and not list(module.children()):
            module.eval()


class _SomeLearn(Part, ABC):
    """Some of the network learns; the rest stays as it is to the bit, the statistics of norms too. The last of the parts.

    Args:
        paths: of layers or of blocks of layers.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.prefixes = tuple(f"{path}." for path in paths)
        self._stopped: list[nn.Parameter] = []
        self._resting: dict[str, Tensor] = {}

    @abstractmethod
    def learns(self, name: str) -> bool:
        """Whether the parameter, buffer or module of that name, modules with a dot behind, takes part."""

    def start(self, fit: Fit) -> None:
        named = fit.network.named_parameters()
        self._stopped = [p for name, p in named if p.requires_grad and not self.learns(name)]
        for parameter in self._stopped:
            parameter.requires_grad_(False)
        state = fit.network.state_dict()
        self._resting = {name: t.detach().clone() for name, t in state.items() if not self.learns(name)}

    def epoch_start(self, fit: Fit) -> None:
        rest_in_evaluation_(fit.network, self.learns)

    def finish(self, fit: Fit) -> None:
        for parameter in self._stopped:
            parameter.requires_grad_(True)
        state = fit.network.state_dict()
        for name, tensor in self._resting.items():  # averages of weights measure norms anew
            state[name].copy_(tensor)


class OnlyLearn(_SomeLearn):
    """These layers learn, no others."""

    def learns(self, name: str) -> bool:
        return name.startswith(self.prefixes)


class Freeze(_SomeLearn):
    """These layers stay as they are to the bit, the statistics of norms too; the others learn. The last of a training's parts.

    Args:
        layers: names of layers or of blocks, or patterns with "*", see `graph.features.layers_like`.
    Raises: SettingError: when training begins: no such layer, or none is left that could learn.
    """

    def __init__(self, layers: Iterable[str]) -> None:
        super().__init__(())
        self.layers = tuple(layers)

    def start(self, fit: Fit) -> None:
        where = f"{fit.where}: freeze"
        paths = [path for pattern in self.layers for path in layers_like(fit.network, pattern, where)]
        self.prefixes = tuple(f"{path}." for path in paths)
        if not any(p.requires_grad and self.learns(name) for name, p in fit.network.named_parameters()):
            raise SettingError(f"{where}: {', '.join(self.layers)} leaves nothing that could learn.")
        super().start(fit)

    def learns(self, name: str) -> bool:
        return not name.startswith(self.prefixes)


class LearnFromLabels(Part):
    """weight * task.loss(answers, labels), summed over exits.

    Args:
        weight: at the first step.
        last_weight: at the last one, linear in between; None: the same all the time.
    """

    def __init__(self, weight: float = 1.0, *, last_weight: float | None = None) -> None:
        self.weight, self.last_weight = weight, weight if last_weight is None else last_weight

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        weight = between(self.weight, self.last_weight, fit)
        return weight * over_exits(answers, lambda answer: fit.task.loss(answer, batch.labels))

"""What may take part in a training: loss terms, proximal steps, clipping, moving averages ... through a few hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from penjing.errors import DataError
from penjing.graph import ExitOutputs
from penjing.objective import decoupled_distillation_loss, dist_loss, logit_regression_loss, soft_target_loss
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


class LearnFromLabels(Part):
    """weight * task.loss(answers, labels), summed over exits."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        return self.weight * over_exits(answers, lambda answer: fit.task.loss(answer, batch.labels))


Match = Literal["soft-targets", "logits", "decoupled", "dist"]
"""What of a teacher's answers is learned: `objective.soft_target_loss`, `logit_regression_loss`, `decoupled_distillation_loss`,
`dist_loss`, each with the weights that its paper names."""


class LearnFromTeacher(Part):
    """weight * how far the answers are from the teacher's, summed over exits; soft targets unless told.

    Args:
        teacher: answers (batch, classes), of any shape where logits are matched; put into evaluation, its parameters get no
            gradients.
        temperature: T > 0; logits have none.
    Raises: DataError: the teacher's answers have another shape than the student's, or `decoupled` finds no labels.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2; others see `Match`.
    """

    def __init__(
        self, teacher: nn.Module, temperature: float = 4.0, weight: float = 1.0, match: Match = "soft-targets"
    ) -> None:
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self.match = match

    def start(self, fit: Fit) -> None:
        self.teacher = self.teacher.to(fit.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        with torch.no_grad():
            laid_out = fit.laid_out(batch)
            target = self.teacher(*laid_out.args, **laid_out.kwargs)
        first = answers[0] if isinstance(answers, ExitOutputs) else answers
        if target.shape != first.shape:
            raise DataError(
                f"distill: teacher and student must answer with the same shape, the teacher gives {tuple(target.shape)} "
                f"and the student {tuple(first.shape)}. Choose a teacher with the same classes."
            )
        if self.match == "decoupled" and not isinstance(batch.labels, Tensor):
            raise DataError(
                "distill: match: decoupled looks at the right class, and these batches have no labels. "
                "Choose match: soft-targets, logits or dist."
            )
        return self.weight * over_exits(answers, lambda answer: self._distance(answer, target, batch.labels))

    def _distance(self, answer: Tensor, target: Tensor, labels: Any) -> Tensor:
        match self.match:
            case "soft-targets":
                return soft_target_loss(answer, target, temperature=self.temperature)
            case "logits":
                return logit_regression_loss(answer, target)
            case "decoupled":
                return decoupled_distillation_loss(answer, target, labels, temperature=self.temperature)
            case "dist":
                return dist_loss(answer, target, temperature=self.temperature)


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

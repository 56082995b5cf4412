"""A network that teaches itself: its last answer is the teacher of its exits and of its narrower selves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import ExitOutputs
from penjing.objective import soft_target_loss
from penjing.training.part import Answers, Part
from penjing.training.task import Batch

if TYPE_CHECKING:
    from penjing.training.fit import Fit


class LearnFromLastAnswer(Part):
    """The last answer learns from the labels; the others from the labels and from it.

    loss(y_K, labels) + weight sum_{k<K} ((1 - soft) loss(y_k, labels) + soft T^2 KL(softmax(y_K / T) || softmax(y_k / T))),
    the teacher's side without a gradient.

    Args:
        soft: weight of the last answer, 0 to 1; 1 is in-place distillation, where only the last answer sees the labels; with 0
            all learn from the labels alone.
        temperature: T > 0.
        weight: of the others beside the last, > 0.
    Raises: SettingError: a weight outside its bounds, a temperature that is not positive, a network with one answer.
    Sources: Yu and Huang 2019 (US-Nets), arXiv:1903.05134, section 3.3 (soft = 1, T = 1); Zhang et al. 2019 (Be Your Own
    Teacher), arXiv:1905.08094, equations 2 and 3.
    """

    def __init__(self, soft: float = 0.5, temperature: float = 3.0, weight: float = 1.0) -> None:
        if not 0 <= soft <= 1 or temperature <= 0 or weight <= 0:
            raise SettingError(
                f"in place: soft must be 0 to 1, temperature and weight above 0, got {soft}, {temperature} and {weight}."
            )
        self.soft, self.temperature, self.weight = soft, temperature, weight

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        if not isinstance(answers, ExitOutputs):
            raise SettingError(
                f"{fit.where}: in_place and weight need a network with several answers, exits or widths."
            )
        *others, last = answers
        terms = [fit.task.loss(last, batch.labels)]
        for answer in others:
            if self.soft < 1:
                terms.append(self.weight * (1 - self.soft) * fit.task.loss(answer, batch.labels))
            if self.soft > 0:
                terms.append(
                    self.weight * self.soft * soft_target_loss(answer, last.detach(), temperature=self.temperature)
                )
        return torch.stack(terms).sum()

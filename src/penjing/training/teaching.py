"""What a student learns from a teacher: its answers, and what its layers give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from penjing.errors import DataError, SettingError, nearest
from penjing.graph import ExitOutputs
from penjing.graph.features import features, layer_names, layers_like
from penjing.objective import (
    attention_transfer_loss,
    decoupled_distillation_loss,
    dist_loss,
    hint_loss,
    logit_regression_loss,
    patient_loss,
    similarity_loss,
    soft_target_loss,
)
from penjing.training.part import Answers, Part, between, over_exits
from penjing.training.task import Batch
from penjing.training.teacher import Teacher

if TYPE_CHECKING:
    from penjing.training.fit import Fit

Match = Literal["soft-targets", "logits", "decoupled", "dist", "cosine", "similarities"]
"""What of a teacher's answers is learned: `objective.soft_target_loss`, `logit_regression_loss`, `decoupled_distillation_loss`,
`dist_loss`, each with the weights that its paper names; for vectors 1 - their cosine, or `similarity_loss`."""
LayerMatch = Literal["hint", "attention", "patient", "similarities"]
"""How layers are compared: `objective.hint_loss`, `attention_transfer_loss`, `patient_loss`, `similarity_loss`."""
Regressor = Literal["auto", "always", "never"]


class LearnFromTeacher(Part):
    """weight * how far the answers are from the teacher's, summed over exits; soft targets unless told.

    Args:
        teacher: a network, or a `Teacher`; answers (batch, classes), of any shape where logits or similarities are matched.
        temperature: T > 0; logits have none.
        weight: at the first step.
        last_weight: at the last one, linear in between; None: the same all the time.
    Raises: DataError: the teacher's answers have another shape than the student's, or `decoupled` finds no labels.
    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2; a weight that falls, Romero et al. 2015,
    arXiv:1412.6550, section 2.4; others see `Match`.
    """

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        temperature: float = 4.0,
        weight: float = 1.0,
        match: Match = "soft-targets",
        *,
        last_weight: float | None = None,
    ) -> None:
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        self.temperature, self.match = temperature, match
        self.weight, self.last_weight = weight, weight if last_weight is None else last_weight

    def start(self, fit: Fit) -> None:
        self.teacher.start(fit)

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        target = self.teacher.answers(fit, batch)
        first = answers[0] if isinstance(answers, ExitOutputs) else answers
        if target.shape != first.shape and self.match != "similarities":
            raise DataError(
                f"distill: teacher and student must answer with the same shape, the teacher gives {tuple(target.shape)} "
                f"and the student {tuple(first.shape)}. Choose a teacher with the same classes."
            )
        if self.match == "decoupled" and not isinstance(batch.labels, Tensor):
            raise DataError(
                "distill: match: decoupled looks at the right class, and these batches have no labels. "
                "Choose match: soft-targets, logits or dist."
            )
        weight = between(self.weight, self.last_weight, fit)
        return weight * over_exits(answers, lambda answer: self._distance(answer, target, batch.labels))

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
            case "cosine":
                return patient_loss(answer, target) / 2
            case "similarities":
                return similarity_loss(answer, target)


class LearnFromLayers(Part):
    """weight * sum over pairs of layers of how far the student's is from the teacher's.

    Neither network is rewritten: what the layers give is looked at while the networks answer.

    Args:
        teacher: a network, or a `Teacher`, whose first network it is.
        layers: by the student's layer the teacher's: paths, or nodes, see `graph.features`. Or a pattern with "*" and "skip"
            or "last": of M layers like it in the student and N in the teacher, the j-th learns from the round(j N / M)-th, or
            from the (N - M + j)-th.
        match: see `LayerMatch`.
        regressor: a learned layer behind the student's, thrown away afterwards, that gives it the teacher's shape: a linear
            layer, or a convolution with the stride or kernel that brings the places together. "auto": where shapes differ.
        token: look at the first token only, as Sun et al. do at [CLS]; else at all places.
    Raises: SettingError: a layer that is not there; shapes that differ where no regressor may stand between.
    Source: Romero et al. 2015 (FitNets), arXiv:1412.6550, section 2.2; Zagoruyko and Komodakis 2017, arXiv:1612.03928;
    Sun et al. 2019, arXiv:1908.09355, section 3.2.
    """

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        layers: Mapping[str, str],
        match: LayerMatch = "hint",
        weight: float = 1.0,
        *,
        regressor: Regressor = "auto",
        token: Literal["all", "first"] = "all",
    ) -> None:
        self.teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        self.layers, self.match, self.weight = dict(layers), match, weight
        self.regressor, self.token = regressor, token
        self.pairs: list[tuple[str, str]] = []
        self.regressors: dict[str, nn.Module] = {}

    def learners(self, fit: Fit) -> nn.Module | None:
        self.pairs = layer_pairs(fit.network, self.teacher.networks[0], self.layers)
        fit.look_at(ours for ours, _ in self.pairs)
        self.teacher.look_at(theirs for _, theirs in self.pairs)
        self.teacher.start(fit)
        self.regressors = self._regressors(fit)
        return nn.ModuleList(self.regressors.values()) if self.regressors else None

    def start(self, fit: Fit) -> None:
        self.teacher.start(fit)

    def loss(self, fit: Fit, batch: Batch, answers: Answers) -> Tensor | None:
        ours, theirs = fit.features, self.teacher.features(fit, batch)
        terms = [self._distance(a, ours[a].float(), theirs[b].float()) for a, b in self.pairs]
        return self.weight * torch.stack(terms).sum()

    def state(self) -> dict[str, object]:
        return {"regressors": [regressor.state_dict() for regressor in self.regressors.values()]}

    def load_state(self, state: dict[str, object]) -> None:
        for regressor, own in zip(self.regressors.values(), state["regressors"], strict=True):  # type: ignore[call-overload]
            regressor.load_state_dict(own)

    def _distance(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        student = self.regressors[name](student) if name in self.regressors else student
        if self.token == "first" and student.dim() == 3:
            student, teacher = student[:, 0], teacher[:, 0]
        match self.match:
            case "hint":
                return hint_loss(student, teacher)
            case "attention":
                return attention_transfer_loss(student, teacher)
            case "patient":
                return patient_loss(*(x.movedim(1, -1) if x.dim() > 3 else x for x in (student, teacher)))
            case "similarities":
                return similarity_loss(student, teacher)

    def _regressors(self, fit: Fit) -> dict[str, nn.Module]:
        """Those that are wanted, by the student's layer, for the shapes that the first batch shows."""
        if self.match in ("attention", "similarities"):
            return {}
        batch = next(fit.task.batches(fit.task.valid, fit.device)).chosen(torch.arange(1, device=fit.device))
        fit.network.eval()
        with torch.no_grad(), features(fit.network, [a for a, _ in self.pairs]) as ours:
            fit.network(*batch.args, **batch.kwargs)
        _, theirs = self.teacher.compute(batch)
        fit.network.train()
        made = {}
        for a, b in self.pairs:
            student, teacher = ours[a].shape, theirs[b].shape
            if student == teacher and self.regressor != "always":
                continue
            if self.regressor == "never":
                raise SettingError(
                    f"hints: {a} gives {tuple(student[1:])} and the teacher's {b} {tuple(teacher[1:])}. Choose layers of one "
                    "shape, or let a regressor stand between them (regressor: auto)."
                )
            made[a] = regressor_between(student, teacher, f"{a} -> {b}").to(fit.device)
        return made


def regressor_between(student: torch.Size, teacher: torch.Size, where: str = "layers") -> nn.Module:
    """A layer from features of one shape to those of another, both (batch, ...).

    Linear along channels; for images a convolution, with stride and kernel r where the student's side is r times the
    teacher's, else with the kernel that leaves the teacher's side, s - t + 1: far fewer weights than a matrix between places.
    Raises: SettingError: a student with fewer places, or another number of dimensions.
    Source: Romero et al. 2015 (FitNets), arXiv:1412.6550, section 2.2, "convolutional regressor".
    """
    ours, theirs = tuple(student), tuple(teacher)
    if len(ours) == len(theirs) == 4 and all(s >= t for s, t in zip(ours[2:], theirs[2:], strict=True)):
        (height, width), (less_high, less_wide) = ours[2:], theirs[2:]
        if height % less_high == width % less_wide == 0:
            factors = height // less_high, width // less_wide
            return nn.Conv2d(ours[1], theirs[1], factors, factors)
        return nn.Conv2d(ours[1], theirs[1], (height - less_high + 1, width - less_wide + 1))
    if len(ours) == len(theirs) in (2, 3) and ours[1:-1] == theirs[1:-1]:
        return nn.Linear(ours[-1], theirs[-1])
    raise SettingError(
        f"hints: no regressor leads from {ours[1:]} to {theirs[1:]} ({where}). The student's layer must have as many "
        "dimensions and at least as many places as the teacher's; choose layers of the same kind, the student's not behind "
        "more strides."
    )


def layer_pairs(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Which layer of the student learns from which of the teacher, patterns resolved.

    Raises: SettingError: no such layer in one of them, or nothing asked for.
    """
    if not layers:
        raise SettingError('hints: layers must name at least one pair, such as {"layer2": "layer2"}.')
    pairs: list[tuple[str, str]] = []
    for ours, theirs in layers.items():
        if theirs not in ("skip", "last"):
            pairs.append((ours, theirs))
            continue
        mine, its = layers_like(student, ours, "hints: student"), layers_like(teacher, ours, "hints: teacher")
        pairs += [(mine[j], its[k]) for j, k in enumerate(patient_mapping(len(mine), len(its), theirs))]
    for whose, module, names in (
        ("student", student, [p[0] for p in pairs]),
        ("teacher", teacher, [p[1] for p in pairs]),
    ):
        known = layer_names(module)
        nodes = {node.name for node in getattr(module, "nodes", ())}
        for name in names:
            if name not in known and name not in nodes:
                raise SettingError(f'hints: the {whose} has no layer "{name}"; {nearest(name, known)}.')
    return pairs


def patient_mapping(n_student: int, n_teacher: int, way: str) -> list[int]:
    """For each of the student's layers the index of the teacher's layer that it learns from, both counted from 0.

    skip    the j-th of M learns from the round(j N / M)-th of N, counted from 1: for 6 and 12, 1 from 2, ..., 6 from 12
    last    the j-th learns from the (N - M + j)-th

    Raises: SettingError: a student with more layers than its teacher.
    Source: Sun et al. 2019, arXiv:1908.09355, section 3.2, figure 1; there the last layer, whose answer is learned anyway, is
    left out.
    """
    if n_student > n_teacher:
        raise SettingError(
            f"hints: {way}: the student has {n_student} such layers, more than the teacher's {n_teacher}. Name pairs instead."
        )
    if way == "last":
        return list(range(n_teacher - n_student, n_teacher))
    return [math.floor((j + 1) * n_teacher / n_student + 0.5) - 1 for j in range(n_student)]

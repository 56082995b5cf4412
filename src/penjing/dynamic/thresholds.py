"""Who leaves at which exit: confidences at which samples leave, found on a validation set for a cost or an accuracy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import NEVER, Network
from penjing.graph.node import confidence
from penjing.measurement import Answers, macs_to_exits, macs_without_exits
from penjing.training.task import correct

Thresholds = Literal["common", "geometric"]
_CANDIDATES, _MARGIN = 400, 1e-5
_HALVINGS = 50
_WIDE = 0.05
"""Half-width of an interval, as a fraction, from which on a validation set is too small to rely on."""


@dataclass(frozen=True)
class AtExits:
    """What is known of a set of samples at the exits of a network.

    Attributes:
        confidences: (exits, n), how sure each exit is of each sample.
        right: (exits + 1, n), 1 where its answer is right; the last row is the final answer's.
        macs: of a sample that leaves at each exit, and last of one that goes all the way, heads included.
        full: MACs of the network without exits, what savings are measured against.
    """

    confidences: Tensor
    right: Tensor
    macs: Sequence[int]
    full: int

    @classmethod
    def of(cls, network: Network, answers: Answers) -> "AtExits":
        """From a network's answers to a set with labels, classes (n,) from logits (n, classes)."""
        assert answers.at_exits is not None
        sure = [confidence(node, logits) for node, logits in zip(network.exits, answers.at_exits[:-1], strict=True)]
        right = torch.stack([correct(logits, answers.labels) for logits in answers.at_exits])
        return cls(torch.stack(sure).float(), right, macs_to_exits(network), macs_without_exits(network))

    def left_at(self, thresholds: Sequence[float]) -> Tensor:
        """Where each sample leaves, (n,), the number of exits for all the way."""
        limits = torch.tensor(list(thresholds), dtype=torch.float32)[:, None]
        leaves = torch.cat([self.confidences >= limits, torch.ones_like(self.confidences[:1], dtype=torch.bool)])
        return leaves.int().argmax(0)

    def saving(self, thresholds: Sequence[float]) -> Tensor:
        """The share of the full network's MACs that each sample saves, (n,), float64; negative where heads cost more."""
        return 1 - torch.tensor(self.macs, dtype=torch.float64)[self.left_at(thresholds)] / self.full

    def accuracy(self, thresholds: Sequence[float]) -> Tensor:
        """Whether each sample's answer is right where it leaves, (n,)."""
        return self.right.gather(0, self.left_at(thresholds)[None]).squeeze(0)


def for_saving(at: AtExits, saving: float, kind: Thresholds = "common") -> list[float]:
    """The thresholds with which at least this share of the work is saved, and as little more as there are samples.

    common: one threshold for all exits, the highest that saves enough.
    geometric: of n samples n p_k leave at exit k, p_k in proportion to r^k, the surest of those that are still there; r is
        the largest that saves enough. With r = 1 - q this is q_k = z (1 - q)^(k - 1) q.
    Args:
        saving: 0 to 1.
    Returns: one threshold an exit.
    Raises: SettingError: the saving is out of reach, with the range that is possible.
    Source: Huang et al. 2018 (MSDNet), arXiv:1703.09844, section 4, budgeted batch classification (geometric).
    """
    most, least = 1 - at.macs[0] / at.full, 1 - at.macs[-1] / at.full
    if not least <= saving <= most:
        raise SettingError(
            f"exits: saving {saving:.1%} of the MACs is out of reach: {1 - most:.1%} of the work is needed up to the first "
            "exit, "
            + (f"so {max(least, 0):.1%} to {most:.1%} is possible. " if most > 0 else "so nothing can be saved. ")
            + ("Ask for less, or put the exit earlier." if saving > most else "")
        )
    if kind == "geometric":
        low, high = -40.0, 40.0  # log r: everybody at the first exit, everybody all the way

        def enough(log_r: float) -> bool:
            return float(at.saving(_geometric(at, log_r)).mean()) >= saving

        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if enough(middle) else (low, middle)
        return _geometric(at, low)
    candidates = torch.unique(at.confidences)
    first, last = 0, len(candidates) - 1
    while first < last:  # the saving falls as the threshold rises
        middle_place = (first + last + 1) // 2
        enough_here = float(at.saving([float(candidates[middle_place])] * len(at.confidences)).mean()) >= saving
        first, last = (middle_place, last) if enough_here else (first, middle_place - 1)
    return [_just_below(candidates, first)] * len(at.confidences)


def _just_below(ordered: Tensor, place: int) -> float:
    """A little less than a confidence, and more than the next lower one, so that the same samples reach it in any batch.

    Sums are rounded in another order in batches of another size, which moves confidences in their last digits.
    """
    value = float(ordered[place])
    return value - min(_MARGIN, (value - float(ordered[place - 1])) / 2 if place > 0 else _MARGIN)


def _geometric(at: AtExits, log_r: float) -> list[float]:
    """The thresholds with which shares in proportion to r^k leave at the exits."""
    n_exits, n = at.confidences.shape
    logs = torch.arange(n_exits + 1, dtype=torch.float64) * log_r
    shares = (logs - logs.logsumexp(0)).exp().tolist()
    inside = torch.ones(n, dtype=torch.bool)
    found: list[float] = []
    for k in range(n_exits):
        here = at.confidences[k][inside]
        count = min(round(shares[k] * n), len(here))
        ordered = here.unique()
        surest = float(here.sort(descending=True).values[count - 1]) if count else NEVER
        threshold = _just_below(ordered, int(torch.searchsorted(ordered, surest))) if count else NEVER
        found.append(threshold)
        inside &= at.confidences[k] < threshold
    return found


def for_drop(at: AtExits, drop: float, kind: Thresholds = "common") -> list[float]:
    """The thresholds that save most where at most this much accuracy is lost against the final answer, as a fraction.

    Returns: one threshold an exit; such that nobody leaves, where every way of leaving early loses more or saves nothing.
    """
    whole = float(at.right[-1].mean())
    best, most = [NEVER] * len(at.confidences), 0.0
    if kind == "common":
        steps = torch.linspace(0, 1, _CANDIDATES + 1, dtype=torch.float64)
        values = torch.quantile(at.confidences.double().flatten()[:1_000_000], steps).float().unique()
        candidates: list[list[float]] = [[float(value) - _MARGIN] * len(at.confidences) for value in values]
    else:
        candidates = [_geometric(at, float(log_r)) for log_r in torch.linspace(-12, 12, _CANDIDATES)]
    for thresholds in candidates:
        saved = float(at.saving(thresholds).mean())
        if saved > most and float(at.accuracy(thresholds).mean()) >= whole - drop - 1e-12:
            best, most = thresholds, saved
    return best


def checked(at: AtExits, thresholds: Sequence[float], warn: Callable[[str], None]) -> dict[str, object]:
    """What thresholds do on the set that they were chosen on, with 95 % intervals; `warn` is told where those are wide."""
    saved, right = at.saving(thresholds), at.accuracy(thresholds) - at.right[-1]
    facts: dict[str, object] = {}
    n = saved.numel()
    wide = []
    for name, values in (("saved", saved), ("accuracy gained", right)):
        mean, half = float(values.mean()), 1.96 * float(values.std(correction=0)) / math.sqrt(n)
        if n < 2:
            half = math.inf
        facts[f"{name} on validation"] = (
            f"{mean:.1%} [{mean - half:.1%}, {mean + half:.1%}]" if n > 1 else f"{mean:.1%}"
        )
        if half > _WIDE:
            wide.append(f"{name} {facts[f'{name} on validation']}")
    if wide:
        warn(
            f"The validation set is small for choosing exit thresholds: with {n} samples the 95 % intervals are wide "
            f"({'; '.join(wide)}). Give it more samples."
        )
    return facts

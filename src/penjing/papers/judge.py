"""Whether an inequality holds: from the interval of a difference over seeds, not from one lucky run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

Verdict = Literal["holds", "fails", "undecided", "indicative"]
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Judged:
    """One inequality and what was found.

    Attributes:
        mean, low, high: of the difference, with its 95 % interval over seeds; NaN limits where there are too few.
        at_least: what it must be.
    """

    mean: float
    low: float
    high: float
    at_least: float
    verdict: Verdict


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of the mean: mean +- t(0.975, n - 1) * sd / sqrt(n). No interval for fewer than 3 values.

    Where all values are the same the interval is that value.
    Source: Student 1908.
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < LEAST_SEEDS:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return mean, mean - half, mean + half


def judge(differences: Sequence[float], at_least: float) -> Judged:
    """holds where the whole interval is at least `at_least`, fails where all of it is below, else undecided.

    Args:
        differences: one a seed, paired: of the same seed's arms.
    """
    mean, low, high = interval(differences)
    verdict: Verdict = "undecided"
    if not (math.isnan(low) or math.isnan(mean)):
        verdict = "holds" if low >= at_least else "fails" if high < at_least else "undecided"
    return Judged(mean, low, high, at_least, verdict)


def shown(mean: float | None, low: float | None, high: float | None) -> str:
    """A mean and its interval for people; None where there is none."""
    if mean is None:
        return "no number"
    return f"{mean:.3g}" if low is None or high is None else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """fails if one does, else undecided if one is, else holds."""
    if "fails" in verdicts:
        return "fails"
    return "holds" if verdicts and "undecided" not in verdicts else "undecided"

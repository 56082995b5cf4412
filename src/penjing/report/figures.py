"""How figures are written in a report: what the reader sees is text from here."""

import math

from penjing.measurement.record import Accuracy, BudgetLine, Drop, Latency, MetricValue
from penjing.units import show_bytes, show_count

MINUS = "−"
_SETS = {"valid": "validation", "test": "test"}
_BYTES = ("file", "bytes", "memory", "size")
_POINTS = ("drop", "accuracy", "points")
_MILLISECONDS = ("latency", "ms")
_COUNTS = ("params", "parameters", "macs", "nonzero")


def show_whole(number: int) -> str:
    """9921 as 9 921, with a narrow space that does not break."""
    return f"{number:,}".replace(",", "\u202f")


def show_percent(fraction: float, digits: int = 2) -> str:
    """0.9921 as 99.21 %."""
    return f"{100 * fraction:.{digits}f}\u00a0%"


def show_signed(number: float, digits: int) -> str:
    """With its sign, a true minus; what rounds to zero has none."""
    text = f"{abs(number):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if number > 0 else MINUS}{text}"


def show_ms(milliseconds: float) -> str:
    """Three digits that count: 0.0421, 1.23, 45.6, 789."""
    digits = (
        4
        if milliseconds < 0.1
        else 3
        if milliseconds < 1
        else 2
        if milliseconds < 10
        else 1
        if milliseconds < 100
        else 0
    )
    return f"{milliseconds:.{digits}f}\u00a0ms"


def show_quartiles(latency: Latency) -> str:
    """1.20 to 1.31 ms."""
    return f"{show_ms(latency.low)} to {show_ms(latency.high)}".replace("\u00a0ms", "", 1)


def show_factor(factor: float) -> str:
    """450 times, 4.5 times, 1.03 times; under 1.1 with two decimals so that a small gain is not rounded away."""
    return f"{factor:.0f}" if factor >= 20 else f"{factor:.1f}" if factor >= 1.1 else f"{factor:.2f}"


def set_name(data: str) -> str:
    """ "valid" as validation; "test" as it is."""
    return _SETS.get(data, data)


def is_fraction(metric: MetricValue) -> bool:
    """Whether a metric is shown in percent."""
    return "accuracy" in metric.name.lower() and 0 <= metric.low <= metric.high <= 1


def show_metric(metric: MetricValue) -> str:
    """99.21 % for an accuracy, four digits for anything else."""
    return show_percent(metric.value) if is_fraction(metric) else f"{metric.value:.4g}"


def show_interval(metric: MetricValue) -> str:
    """99.02 to 99.37 %."""
    if is_fraction(metric):
        return f"{100 * metric.low:.2f} to {show_percent(metric.high)}"
    return f"{metric.low:.4g} to {metric.high:.4g}"


def show_accuracy(accuracy: Accuracy) -> str:
    """9 921 of 10 000."""
    return f"{show_whole(accuracy.correct)} of {show_whole(accuracy.total)}"


def show_drop(drop: Drop, metric: MetricValue) -> str:
    """0.31 pp lost as −0.31 pp: the change that the reader sees in the metric."""
    if is_fraction(metric):
        return f"{show_signed(-100 * drop.value, 2)}\u00a0pp"
    return show_signed(_change(drop.value, metric), 4)


def show_drop_interval(drop: Drop, metric: MetricValue) -> str:
    """Of the same change, smaller end first."""
    if is_fraction(metric):
        return f"{show_signed(-100 * drop.high, 2)} to {show_signed(-100 * drop.low, 2)}"
    ends = sorted((_change(drop.low, metric), _change(drop.high, metric)))
    return " to ".join(show_signed(end, 4) for end in ends)


def say_drop(drop: Drop, metric: MetricValue) -> str:
    """As a clause: 0.31 pp below the baseline (95 % interval of the difference −0.55 to −0.07 pp)."""
    unit = "\u00a0pp" if is_fraction(metric) else ""
    size = f"{100 * abs(drop.value):.2f}" if unit else f"{abs(drop.value):.4f}"
    interval = f"(95\u00a0% interval of the difference {show_drop_interval(drop, metric)}{unit})"
    if float(size) == 0:
        return f"the same as the baseline {interval}"
    side = "below" if (drop.value > 0) == metric.higher_is_better else "above"
    return f"{size}{unit} {side} the baseline {interval}"


def say_latency(latency: Latency, baseline: Latency) -> str:
    """Against the baseline in the same turn: 2.3 times faster, or that the spreads overlap."""
    if latency.median <= 0 or baseline.median <= 0:
        return ""
    faster = latency.median <= baseline.median
    factor = baseline.median / latency.median if faster else latency.median / baseline.median
    text = f"{show_factor(factor)}× {'faster' if faster else 'slower'}"
    overlap = latency.low <= baseline.high and baseline.low <= latency.high
    return f"{text}, spreads overlap" if overlap else text


def say_gain(before: float, after: float, less: str, more: str) -> str:
    """450 times smaller, or larger; nothing where there is nothing to divide by."""
    if before <= 0 or after <= 0:
        return ""
    factor, word = (before / after, less) if after <= before else (after / before, more)
    return "the same" if show_factor(factor) == "1.00" else f"{show_factor(factor)}× {word}"


def _change(drop: float, metric: MetricValue) -> float:
    """What a drop does to the metric: a drop in a loss makes it larger."""
    return -drop if metric.higher_is_better else drop


def show_budget_value(line: BudgetLine, value: float) -> str:
    """A limit or a measurement in the unit that the limit's name speaks of."""
    if not math.isfinite(value):
        return "not measured"
    words = line.name.lower().replace("_", " ").split()
    if any(word in _POINTS for word in words):
        return f"{100 * value:.2f}\u00a0pp" if "drop" in words else show_percent(value)
    if any(word in _MILLISECONDS for word in words):
        return show_ms(value)
    if any(word in _BYTES for word in words):
        return show_bytes(round(value))
    if any(word in _COUNTS for word in words):
        return show_count(value)
    return f"{value:.4g}"

"""The result in a sentence, the gains in figures, and whether the budget is met."""

import math
from dataclasses import dataclass

from penjing.measurement.record import BudgetLine, Record
from penjing.report.document import Report
from penjing.report.figures import (
    say_drop,
    say_gain,
    say_latency,
    set_name,
    show_accuracy,
    show_budget_value,
    show_interval,
    show_metric,
    show_ms,
    show_percent,
)
from penjing.units import show_bytes, show_count


@dataclass(frozen=True)
class Gain:
    """One quantity before and after, as text."""

    name: str
    before: str
    after: str
    gain: str


@dataclass(frozen=True)
class BudgetRow:
    """One limit as text; `verdict` says whether it is met, or by how much it is missed."""

    name: str
    limit: str
    measured: str
    met: bool
    verdict: str


def say_result(report: Report) -> str:
    """Bytes, accuracy with its interval, and the drop: what a reader would quote."""
    before, after = report.baseline, report.final
    sizes = f"{show_bytes(after.file_bytes)} instead of {show_bytes(before.file_bytes)}"
    return f"{sizes}: {_say_metric(after)} on the {set_name(after.data)} set{_say_change(after)}."


def say_budget(lines: list[BudgetLine]) -> str:
    """Whether all limits are met; how many are not."""
    missed = [line for line in lines if not line.met]
    if not lines:
        return "No budget was set."
    limits = "The one limit" if len(lines) == 1 else f"All {len(lines)} limits"
    if not missed:
        return f"Budget met. {limits} {'holds' if len(lines) == 1 else 'hold'}."
    names = ", ".join(line.name for line in missed)
    return (
        f"Budget not met. {len(missed)} of {len(lines)} limits {'is' if len(missed) == 1 else 'are'} missed: {names}."
    )


def budget_rows(report: Report) -> list[BudgetRow]:
    """Each limit beside what was measured. Says so where a drop counts by its interval's upper end."""
    rows = []
    for line in report.budget:
        name = line.name
        drop = report.final.drop
        if name == "drop" and drop is not None and line.measured == drop.high != drop.value:
            name = "drop, upper end of its 95\u00a0% interval"
        limit, measured = (show_budget_value(line, value) for value in (line.limit, line.measured))
        rows.append(BudgetRow(name, limit, measured, line.met, "met" if line.met else _excess(line)))
    return rows


def gains(report: Report) -> list[Gain]:
    """File, parameters, computation, latency, memory: the baseline's and the final one's."""
    before, after = report.baseline, report.final
    rows = [
        Gain(
            "File",
            show_bytes(before.file_bytes),
            show_bytes(after.file_bytes),
            say_gain(before.file_bytes, after.file_bytes, "smaller", "larger"),
        )
    ]
    for name, a, b in (
        ("Parameters", before.parameters, after.parameters),
        ("MACs of a sample", before.macs, after.macs),
    ):
        rows.append(Gain(name, show_count(a), show_count(b), say_gain(a, b, "fewer", "more")))
    if after.latency_ms and after.baseline_latency_ms:
        latency, baseline = after.latency_ms, after.baseline_latency_ms
        rows.append(
            Gain("Latency, median", show_ms(baseline.median), show_ms(latency.median), say_latency(latency, baseline))
        )
    if before.peak_memory_bytes and after.peak_memory_bytes:
        a, b = before.peak_memory_bytes, after.peak_memory_bytes
        rows.append(Gain("Peak memory", show_bytes(a), show_bytes(b), say_gain(a, b, "smaller", "larger")))
    return rows


def _say_metric(record: Record) -> str:
    counts = f"{show_accuracy(record.accuracy)}, " if record.accuracy else ""
    name = "" if record.accuracy else f"{record.metric.name} "
    return f"{name}{show_metric(record.metric)} ({counts}95\u00a0% interval {show_interval(record.metric)})"


def _say_change(record: Record) -> str:
    return f", {say_drop(record.drop, record.metric)}" if record.drop else ""


def _excess(line: BudgetLine) -> str:
    if not math.isfinite(line.measured):
        return "not met"
    if "drop" in line.name.lower() and line.measured > line.limit:
        return f"{show_budget_value(line, line.measured - line.limit)} over"
    if line.limit > 0 and line.measured > line.limit:
        return f"{show_percent(line.measured / line.limit - 1, 0)} over"
    return "not met"

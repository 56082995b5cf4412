"""The tables of a report as rows of text: what the template lays out."""

from dataclasses import dataclass
from typing import Any

from penjing.measurement.record import OperatingPoint, Record
from penjing.report.document import Changed, Report
from penjing.report.figures import (
    is_fraction,
    say_latency,
    set_name,
    show_accuracy,
    show_drop,
    show_drop_interval,
    show_interval,
    show_metric,
    show_ms,
    show_percent,
    show_quartiles,
    show_whole,
)
from penjing.units import show_bytes, show_count, show_seconds

_MAX_PAIRS = 15


@dataclass(frozen=True)
class Cell:
    """A figure and the small lines under it; `mark` is a class of the page's style."""

    figure: str
    under: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class StageRow:
    """A line of the table of stages; `kind` is baseline, plain, stage or final."""

    name: str
    kind: str
    data: str
    cells: list[Cell]
    n_warnings: int = 0


@dataclass(frozen=True)
class WarningRow:
    """What a user should know, and which stage said it."""

    source: str
    text: str


def stage_rows(report: Report) -> list[StageRow]:
    """Baseline, the plain ways to write it, the baseline on the stages' set, the stages, the final one."""
    rows = [_row(report.baseline, "baseline", "baseline")]
    for plain in report.baseline_rows:
        metric = Cell("not measured", mark="none")
        if plain.metric is not None:
            metric = Cell(show_metric(plain.metric), (show_interval(plain.metric),))
        file = Cell(show_bytes(plain.file_bytes))
        data = set_name(report.baseline.data) if plain.metric else ""
        rows.append(StageRow(plain.name, "plain", data, [metric, *[Cell("")] * 3, file, Cell("")]))
    if report.baseline_valid.data != report.baseline.data:
        rows.append(_row(report.baseline_valid, "baseline", "baseline"))
    rows += [_row(stage, stage.name, "stage") for stage in report.stages]
    return [*rows, _row(report.final, "final", "final")]


def stage_facts(report: Report) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(stage, duration, facts) of every stage that has something to say."""
    return [
        (
            stage.name,
            show_seconds(stage.seconds),
            [(name.replace("_", " "), _say(fact)) for name, fact in stage.facts.items()],
        )
        for stage in report.stages
    ]


def operating_rows(points: list[OperatingPoint]) -> list[tuple[str, list[Cell]]]:
    """(name, cells) of every way to run a network with exits."""
    return [
        (
            point.name,
            [
                Cell(show_metric(point.metric), (show_interval(point.metric),)),
                Cell(show_count(point.macs)),
                _point_latency(point),
                Cell("" if point.share is None else show_percent(point.share, 1)),
                Cell("" if point.threshold is None else "never" if point.threshold > 1 else f"{point.threshold:.3g}"),
                Cell("" if point.own_bytes is None else f"{point.own_bytes:,}"),
            ],
        )
        for point in points
    ]


def several_in_one(final: Record) -> tuple[str, str] | None:
    """Bytes of the file with all answers, and of one file for each; None where they were not counted."""
    alone = [point.own_bytes for point in final.operating_points if point.own_bytes is not None]
    return (show_whole(final.file_bytes), show_whole(sum(alone))) if len(alone) > 1 else None


def change_rows(changed: Changed) -> list[tuple[str, str, str]]:
    """(what, samples, share) of the five ways in which two networks' answers meet."""
    counts = [
        ("both right", changed.both_right),
        ("only the baseline right: lost", changed.only_baseline_right),
        ("only the final network right: gained", changed.only_final_right),
        ("both wrong, the same answer", changed.both_wrong_same),
        ("both wrong, another answer", changed.both_wrong_other),
    ]
    return [(what, show_whole(count), show_percent(count / max(changed.n, 1))) for what, count in counts]


def say_pairs(changed: Changed) -> str:
    """What a picture of the changes shows, and whether it is all of them."""
    listed = sum(pair.count for pair in changed.pairs if pair.baseline != pair.final)
    total = changed.only_baseline_right + changed.only_final_right + changed.both_wrong_other
    text = "Samples whose answer changed, from the baseline's to the final network's"
    return text if listed >= total else f"{text}: the most common changes, {listed} of {total} samples"


def pair_rows(changed: Changed) -> list[tuple[str, str, str, str, str]]:
    """(class, baseline said, final says, samples, verdict) of the most common changes."""
    pairs = sorted((p for p in changed.pairs if p.baseline != p.final), key=lambda pair: -pair.count)[:_MAX_PAIRS]
    return [
        (pair.label, pair.baseline, pair.final, show_whole(pair.count), _verdict(pair.label, pair.baseline, pair.final))
        for pair in pairs
    ]


def all_warnings(report: Report) -> list[WarningRow]:
    """Each text once, with all who said it: the baseline, the stages, the final network, then the run itself."""
    sources: dict[str, dict[str, None]] = {}
    said = set()
    for name, record in _records(report):
        for text in record.warnings:
            sources.setdefault(text, {})[name] = None
            said |= {text, f"{name}: {text}"}
    for text in report.warnings:
        if text not in said:
            sources.setdefault(text, {})["the run"] = None
    return [WarningRow(", ".join(names), text) for text, names in sources.items()]


def facts_of_run(report: Report) -> list[tuple[str, str]]:
    """(what, value) on where and how the run was made."""
    task, machine = report.task, dict(report.machine)
    samples = [
        (count, name)
        for count, name in ((task.n_train, "training"), (task.n_valid, "validation"), (task.n_test, "test"))
    ]
    said = ", ".join(f"{show_whole(count)} for {name}" for count, name in samples if count is not None)
    rows = [
        ("Started", report.created.replace("T", " ")),
        ("Duration", show_seconds(report.duration_seconds)),
        ("Seed", "none" if report.seed is None else str(report.seed)),
        ("Samples", said + ("" if task.n_test is not None else "; no test set")),
        ("Classes", "" if task.classes is None else str(len(task.classes))),
    ]
    for key, value in machine.items():
        text = show_bytes(round(value)) if key.endswith("_bytes") and isinstance(value, (int, float)) else _say(value)
        rows.append((key.removesuffix("_bytes").replace("_", " ").capitalize(), text))
    rows.append(("Versions", ", ".join(f"{name} {_say(version)}" for name, version in report.versions.items())))
    return [(what, value) for what, value in rows if value]


def _records(report: Report) -> list[tuple[str, Record]]:
    stages = [(stage.name, stage) for stage in report.stages]
    return [("baseline", report.baseline), ("baseline", report.baseline_valid), *stages, ("final", report.final)]


def _row(record: Record, name: str, kind: str) -> StageRow:
    counts = [show_accuracy(record.accuracy)] if record.accuracy else []
    unit = "\u00a0pp" if is_fraction(record.metric) else ""
    drop = Cell("")
    if record.drop and kind != "baseline":
        drop = Cell(show_drop(record.drop, record.metric), (show_drop_interval(record.drop, record.metric) + unit,))
    nonzero = "" if record.nonzero == record.parameters else f"{show_count(record.nonzero)} not zero"
    full = "" if record.macs_full == round(record.macs) else f"{show_count(record.macs_full)} without exits"
    cells = [
        Cell(show_metric(record.metric), (*counts, show_interval(record.metric))),
        drop,
        Cell(show_count(record.parameters), _lines(nonzero)),
        Cell(show_count(record.macs), _lines(full)),
        Cell(show_bytes(record.file_bytes)),
        _latency(record, kind),
    ]
    return StageRow(name, kind, set_name(record.data), cells, len(record.warnings))


def _latency(record: Record, kind: str) -> Cell:
    latency = record.latency_ms
    if latency is None:
        return Cell("not measured", mark="none")
    baseline = None if kind == "baseline" else record.baseline_latency_ms
    ratio = say_latency(latency, baseline) if baseline else ""
    return Cell(show_ms(latency.median), (show_quartiles(latency), *_lines(*ratio.split(", "))))


def _lines(*texts: str) -> tuple[str, ...]:
    """Those that say something."""
    return tuple(text for text in texts if text)


def _point_latency(point: OperatingPoint) -> Cell:
    if point.latency_ms is None:
        return Cell("not measured", mark="none")
    return Cell(show_ms(point.latency_ms.median), (show_quartiles(point.latency_ms),))


def _verdict(label: str, before: str, after: str) -> str:
    return "lost" if label == before else "gained" if label == after else "wrong both times"


def _say(value: Any) -> str:
    """A fact of any shape in a line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_say(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_say(item) for item in value) or "none"
    return str(value)

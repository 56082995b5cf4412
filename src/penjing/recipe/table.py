"""Every stage in one table, for the terminal."""

import io
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penjing.measurement import Record
from penjing.units import show_count


def stage_table(report: Mapping[str, Any]) -> Table:
    """Baseline, stages and result: accuracy k/n with its interval, drop, parameters, MACs, bytes, latency."""
    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold"
    )
    percent = report["baseline"]["accuracy"] is not None
    table.add_column("stage", no_wrap=True)
    table.add_column(report["task"]["metric"], justify="right")
    table.add_column("% [95 % interval]" if percent else "95 % interval", justify="right")
    table.add_column("drop, pp [95 %]" if percent else "drop [95 %]", justify="right")
    table.add_column("params", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("file bytes", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("speed", justify="right")
    baseline, final = Record.from_json(report["baseline"]), Record.from_json(report["final"])
    on_valid = Record.from_json(report["baseline_valid"])
    table.add_row("validation set", style="dim")
    _add(table, on_valid)
    for stage in report["stages"]:
        _add(table, Record.from_json(stage))
    table.add_section()
    if baseline.data == "test":
        table.add_row("test set", style="dim")
        _add(table, baseline)
    for row in report["baseline_rows"]:
        metric = row["metric"]
        table.add_row(
            f"  as {row['name']}",
            f"{round(metric['value'] * metric['n'])}/{metric['n']}" if percent else _value(metric),
            _percent(metric) if percent else _range(metric),
            "",
            "",
            "",
            f"{row['file_bytes']:,}",
            "",
            "",
            style="dim",
        )
    _add(table, final, style="bold")
    return table


def summary_table(report: Mapping[str, Any], width: int = 132) -> str:
    """The same as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(stage_table(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _add(table: Table, record: Record, style: str | None = None) -> None:
    if record.accuracy is not None:
        value = f"{record.accuracy.correct}/{record.accuracy.total}"
        interval = _percent(vars(record.metric))
    else:
        value, interval = _value(vars(record.metric)), _range(vars(record.metric))
    factor = 100 if record.accuracy else 1
    drop = (
        f"{factor * record.drop.value:+.2f} [{factor * record.drop.low:+.2f}, {factor * record.drop.high:+.2f}]"
        if record.drop
        else ""
    )
    latency = record.latency_ms
    speed = ""
    if latency is not None and record.baseline_latency_ms is not None and record.drop is not None:
        speed = f"{record.baseline_latency_ms.median / latency.median:.2f}x"
    table.add_row(
        record.name,
        value,
        escape(interval),
        escape(drop),
        f"{record.parameters:,}",
        show_count(record.macs),
        f"{record.file_bytes:,}",
        f"{latency.median:.3g}" if latency else "",
        speed,
        style=style,
    )


def _percent(metric: Mapping[str, Any]) -> str:
    return f"{100 * metric['value']:.2f} [{100 * metric['low']:.2f}, {100 * metric['high']:.2f}]"


def _value(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.4g}"


def _range(metric: Mapping[str, Any]) -> str:
    return f"{metric['low']:.4g} to {metric['high']:.4g}"

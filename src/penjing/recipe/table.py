"""Every stage in one table, for the terminal."""

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from penjing.measurement import Record
from penjing.units import show_count


def stage_table(report: Mapping[str, Any]) -> Table:
    """Baseline, stages and result: accuracy k/n with its interval, drop, parameters, MACs, bytes, latency."""
    table = Table(title=None, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("set")
    table.add_column(report["task"]["metric"], justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("drop (pp)" if report["baseline"]["accuracy"] else "drop", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("file bytes", justify="right")
    table.add_column("ms (quartiles)", justify="right")
    table.add_column("speed", justify="right")
    _add(table, Record.from_json(report["baseline_valid"]))
    for stage in report["stages"]:
        _add(table, Record.from_json(stage))
    table.add_section()
    if report["baseline"]["data"] == "test":
        _add(table, Record.from_json(report["baseline"]))
    for row in report["baseline_rows"]:
        metric = row["metric"]
        table.add_row(
            f"  as {row['name']}",
            report["baseline"]["data"],
            _value(metric),
            _range(metric),
            "",
            "",
            "",
            f"{row['file_bytes']:,}",
            "",
            "",
            style="dim",
        )
    _add(table, Record.from_json(report["final"]), style="bold")
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
        interval = f"{100 * record.accuracy.low:.2f} to {100 * record.accuracy.high:.2f} %"
    else:
        value, interval = _value(vars(record.metric)), _range(vars(record.metric))
    factor = 100 if record.accuracy else 1
    drop = (
        f"{factor * record.drop.value:+.2f} ({factor * record.drop.low:+.2f} to {factor * record.drop.high:+.2f})"
        if record.drop
        else ""
    )
    latency = record.latency_ms
    speed = ""
    if latency is not None and record.baseline_latency_ms is not None and record.drop is not None:
        speed = f"{record.baseline_latency_ms.median / latency.median:.2f}x"
    table.add_row(
        record.name,
        record.data,
        value,
        interval,
        drop,
        f"{record.parameters:,}",
        show_count(record.macs),
        f"{record.file_bytes:,}",
        f"{latency.median:.3g} ({latency.low:.3g} to {latency.high:.3g})" if latency else "",
        speed,
        style=style,
    )


def _value(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.4g}"


def _range(metric: Mapping[str, Any]) -> str:
    return f"{metric['low']:.4g} to {metric['high']:.4g}"

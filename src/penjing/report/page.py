"""The report of a run as one HTML file that needs nothing else, no network either."""

import hashlib
import json
import math
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from penjing.errors import RunError
from penjing.report.charts import (
    MAX_CLASSES,
    MAX_LAYERS,
    Chart,
    accuracy_against_bytes,
    accuracy_against_latency,
    blocks_of_classes,
    bytes_of_layers,
    changed_answers,
    config,
    exits_of_classes,
    off_the_charts,
    recall_of_classes,
    shares_of_blocks,
    shares_of_exits,
    weights_of_tensor,
)
from penjing.report.colours import DARK, LIGHT, THEMED
from penjing.report.document import Report, read_report
from penjing.report.figures import set_name, show_whole
from penjing.report.headline import budget_rows, gains, say_budget, say_result
from penjing.report.tables import (
    all_warnings,
    change_rows,
    facts_of_run,
    operating_rows,
    pair_rows,
    say_pairs,
    several_in_one,
    stage_facts,
    stage_rows,
)
from penjing.units import show_bytes

PAGE_NAME = "report.html"


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` beside the `report.json` of a run, and give its path.

    Raises: RunError: there is no report.json, it is damaged or from a newer penjing, or the page cannot be written.
    """
    folder = Path(run_folder)
    report = read_report(folder)
    path = folder / PAGE_NAME
    text = render(report, artifact_found=_find_artifact(report, folder))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}).") from None
    return path


def render(report: Report, *, artifact_found: str) -> str:
    """The page's HTML. `artifact_found` says in a sentence what was found of the artifact."""
    charts = chart_specs(report)
    data = {"config": config(THEMED), "charts": charts}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            charts=charts,
            off_the_charts=off_the_charts(report),
            result=say_result(report),
            budget_said=say_budget(report.budget),
            budget=budget_rows(report),
            gains=gains(report),
            stages=stage_rows(report),
            facts=stage_facts(report),
            operating=operating_rows(report.final.operating_points),
            several=several_in_one(report.final),
            final_set=set_name(report.final.data),
            valid_set=set_name(report.baseline_valid.data),
            n_changed_of=show_whole(report.changed.n) if report.changed else "",
            changes=change_rows(report.changed) if report.changed else [],
            pairs_said=say_pairs(report.changed) if report.changed else "",
            pairs=pair_rows(report.changed) if report.changed else [],
            warnings=all_warnings(report),
            run=facts_of_run(report),
            artifact_bytes=show_bytes(report.artifact.bytes),
            artifact_found=artifact_found,
            n_layers=len({*report.layers_before, *report.final.layer_bytes}),
            max_layers=MAX_LAYERS,
            max_classes=MAX_CLASSES,
            light=Markup(LIGHT.as_css()),
            dark=Markup(DARK.as_css()),
            style=Markup(_part("page.css")),
            library=_library(),
            script=Markup(_part("page.js")),
            chart_data=_as_script_data(data),
        )
    )


def chart_specs(report: Report) -> dict[str, dict[str, Any]]:
    """Vega-Lite specs by the id of their place on the page; a chart without data is not there."""
    exits, blocks, changed = report.exits, report.blocks, report.changed
    recalls = [
        row for row in report.per_class or [] if row.baseline_recall is not None and row.final_recall is not None
    ]
    charts: dict[str, Chart | None] = {
        "accuracy-bytes": accuracy_against_bytes(report, THEMED),
        "accuracy-latency": accuracy_against_latency(report, THEMED),
        "layers": bytes_of_layers(report.layers_before, report.final.layer_bytes, THEMED)
        if report.layers_before or report.final.layer_bytes
        else None,
        "weights": weights_of_tensor(report.weights, THEMED) if report.weights else None,
        "exits": shares_of_exits(exits, THEMED) if exits else None,
        "exits-classes": exits_of_classes(exits, THEMED) if exits and exits.by_class else None,
        "blocks": shares_of_blocks(blocks, THEMED) if blocks else None,
        "blocks-classes": blocks_of_classes(blocks, THEMED) if blocks and blocks.by_class else None,
        "recall": recall_of_classes(recalls, THEMED) if recalls else None,
        "changed": changed_answers(changed, THEMED) if changed else None,
    }
    return {name: _spec(chart) for name, chart in charts.items() if chart is not None}


def _spec(chart: Chart) -> dict[str, Any]:
    spec = chart.to_dict()
    for name in ("$schema", "config"):  # the address of the schema is of no use here; the look is the page's
        spec.pop(name, None)
    return spec


def _as_script_data(value: Any) -> Markup:
    """JSON that can stand inside a script element: no `<` at all, so nothing can end it or open a comment."""
    text = json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    """What is not a number, or infinite, as null: JSON has no other way to write it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _find_artifact(report: Report, folder: Path) -> str:
    """Whether the file in the folder still is the one that was measured."""
    try:
        content = (folder / report.artifact.path).read_bytes()
    except (OSError, ValueError):
        return "It is not in this folder any more."
    if hashlib.sha256(content).hexdigest() == report.artifact.sha256.lower():
        return "The file in this folder is the one that was measured (checked when this page was written)."
    return "The file in this folder is another one than was measured: its checksum differs."


@cache
def _library() -> Markup:
    """Vega, Vega-Lite and vega-embed as one piece of JavaScript."""
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"))


def _part(name: str) -> str:
    return resources.files("penjing.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

"""The one chart that tells a run: accuracy against bytes, by itself."""

import json
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from penjing.errors import RunError
from penjing.report.charts import accuracy_against_bytes, config
from penjing.report.colours import LIGHT
from penjing.report.document import Report, parse_report, read_report


def overview_chart(report: dict[str, Any]) -> alt.LayerChart:
    """Accuracy against file bytes along the stages, in light colours, 760 x 360 pixels.

    Args:
        report: the data of `report.json`.
    Raises: RunError: it is not sound, or no metric in it is a number.
    """
    return _overview(parse_report(report))


def save_overview_png(run_folder: str | Path, path: str | Path) -> Path:
    """Write `overview_chart` of a run as a PNG image, twice as fine as the screen.

    Raises: RunError: there is no report in the folder, or it is not sound.
    """
    spec = _overview(read_report(Path(run_folder))).to_dict()
    target = Path(path)
    target.write_bytes(vl_convert.vegalite_to_png(json.dumps(spec), scale=2))
    return target


def _overview(report: Report) -> alt.LayerChart:
    chart = accuracy_against_bytes(report, LIGHT)
    if chart is None:
        raise RunError("report: there is nothing to draw, no metric of this run is a number.")
    return chart.properties(width=760, height=360, padding=14).configure(**{**config(LIGHT), "background": LIGHT.paper})

"""Pictures of claims: a curve or a dot for each arm, with the spread over seeds, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from penjing.files import write_atomically
from penjing.report.charts import config
from penjing.report.colours import LIGHT

Row = Mapping[str, Any]
_RANGE = ("#0f7a56", "#b4540a", "#3b5fa8", "#8a5a9e", "#76847f", "#b3261e", "#855600")
_SIZE = {"width": 460, "height": 300}
_SCALE = 1.4


def curves(
    rows: Sequence[Row],
    x: str,
    y: str,
    *,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
    order: Sequence[str] = (),
) -> alt.LayerChart:
    """Lines through the means over seeds, and the range of the seeds as a band.

    Args:
        rows: each with "arm" and the fields named by x and y, one a seed and point.
        order: arms in the order of the legend.
    """
    base = alt.Chart(alt.Data(values=[dict(row) for row in rows])).encode(
        x=alt.X(f"{x}:Q", title=x, scale=alt.Scale(type="log" if log_x else "linear", zero=False, nice=False)),
        color=alt.Color(
            "arm:N",
            title=None,
            scale=alt.Scale(range=list(_RANGE)),
            sort=list(order) or None,
            legend=alt.Legend(labelLimit=0, symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3),
        ),
    )
    scale = alt.Scale(type="log" if log_y else "linear", zero=False)
    band = base.mark_area(opacity=0.18).encode(y=alt.Y(f"min({y}):Q", title=y, scale=scale), y2=f"max({y}):Q")
    line = base.mark_line(point=True).encode(y=alt.Y(f"mean({y}):Q", title=y, scale=scale))
    return alt.layer(band, line).properties(title=title, **_SIZE)


def traces(
    rows: Sequence[Row], x: str, y: str, *, title: str, order: Sequence[str] = (), log_y: bool = False
) -> alt.LayerChart:
    """A line with dots for each arm and seed, where seeds do not share their x.

    Args:
        rows: each with "arm", "seed" and the fields named by x and y.
        order: arms in the order of the legend.
    """
    return (
        alt.Chart(alt.Data(values=[dict(row) for row in rows]))
        .mark_line(point=True, opacity=0.75)
        .encode(
            x=alt.X(f"{x}:Q", title=x, scale=alt.Scale(zero=False)),
            y=alt.Y(f"{y}:Q", title=y, scale=alt.Scale(type="log" if log_y else "linear", zero=False)),
            color=alt.Color(
                "arm:N",
                title=None,
                scale=alt.Scale(range=list(_RANGE)),
                sort=list(order) or None,
                legend=alt.Legend(labelLimit=0, columns=3),
            ),
            detail="seed:N",
        )
        .properties(title=title, **_SIZE)
    )


def dots(
    rows: Sequence[Row], value: str, *, title: str, order: Sequence[str] = (), log: bool = False
) -> alt.LayerChart:
    """A dot for each seed, arm by arm, and a stroke at the mean. `rows` as for `curves`."""
    base = alt.Chart(alt.Data(values=[dict(row) for row in rows])).encode(
        y=alt.Y("arm:N", title=None, sort=list(order) or None, axis=alt.Axis(labelLimit=260))
    )
    x = alt.X(f"{value}:Q", title=value, scale=alt.Scale(type="log" if log else "linear", zero=False))
    mean = base.mark_tick(thickness=3, size=18, color=LIGHT.after).encode(
        x=alt.X(f"mean({value}):Q", title=value, scale=x["scale"])
    )
    return alt.layer(base.mark_circle(size=45, opacity=0.6, color=LIGHT.before).encode(x=x), mean).properties(
        title=title, width=_SIZE["width"]
    )


def pictures_in_rows(rows: Mapping[str, Sequence[str]], *, title: str, side: int = 44) -> alt.Chart:
    """Pictures, given as data addresses, in labelled rows."""
    values = [
        {"row": row, "column": k, "address": address} for row, own in rows.items() for k, address in enumerate(own)
    ]
    return (
        alt.Chart(alt.Data(values=values))
        .mark_image(width=side, height=side)
        .encode(
            x=alt.X("column:O", axis=None),
            y=alt.Y("row:N", title=None, sort=list(rows), axis=alt.Axis(labelLimit=260)),
            url="address:N",
        )
        .properties(title=title, width=alt.Step(side + 4), height=alt.Step(side + 4))
    )


def grid(rows: Sequence[Row], x: str, y: str, value: str, *, title: str, order: Sequence[str] = ()) -> alt.LayerChart:
    """A table of percentages with coloured cells, the means over seeds; `order` of the x."""
    base = alt.Chart(alt.Data(values=[dict(row) for row in rows])).encode(
        x=alt.X(f"{x}:N", title=x, sort=list(order) or None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y(f"{y}:N", title=y, sort=None),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            f"mean({value}):Q", title=value, scale=alt.Scale(domain=[0, 100], range=[LIGHT.paper, "#7dc3a6"])
        )
    )
    text = base.mark_text(fontSize=10).encode(text=alt.Text(f"mean({value}):Q", format=".0f"))
    return alt.layer(cells, text).properties(title=title, width=alt.Step(44), height=alt.Step(24))


def side_by_side(*charts: alt.LayerChart, same_arms: bool = True) -> alt.HConcatChart:
    """Several pictures in one; with the same arms in all of them one legend serves for all."""
    return alt.hconcat(*charts, spacing=40).resolve_scale(color="shared" if same_arms else "independent")


def write_picture(chart: Any, path: Path) -> None:
    """A chart as PNG, written whole or not at all."""
    whole = chart.configure(**(config(LIGHT) | {"background": LIGHT.paper}))
    write_atomically(path, vl_convert.vegalite_to_png(whole.to_dict(), scale=_SCALE))

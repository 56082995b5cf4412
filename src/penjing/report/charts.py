"""The charts of a report: pure functions from its records to Altair charts.

Every chart is a single or layered view as wide as its box. Text in tooltips is made here, so that it reads as in the
tables.
"""

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeAlias

import altair as alt

from penjing.measurement.record import MetricValue, Record
from penjing.report.colours import Colours
from penjing.report.document import Blocks, Changed, ClassRecall, Exits, Histogram, Report, SharesOfClass
from penjing.report.figures import (
    is_fraction,
    say_latency,
    set_name,
    show_accuracy,
    show_drop,
    show_interval,
    show_metric,
    show_ms,
    show_percent,
    show_whole,
)
from penjing.report.labels import place_labels
from penjing.units import show_bytes

Chart: TypeAlias = alt.Chart | alt.LayerChart
MAX_LAYERS = 40
MAX_CLASSES = 40
_MAX_ANSWERS = 20
_LOG_ABOVE = 10
_PLOT_WIDTH, _PLOT_HEIGHT = 340, 320  # pixels; names are placed for a narrow screen
_BYTES_LABEL = "replace(format(datum.value, '~s') + 'B', regexp('([kMGT]?B)$'), ' $1')"


def config(colours: Colours) -> dict[str, Any]:
    """The look of all charts: the page's font, quiet axes, no background."""
    font = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
    text = {"labelColor": colours.ink, "titleColor": colours.ink, "labelFontSize": 12, "titleFontSize": 12}
    axis = {"gridColor": colours.line, "domainColor": colours.before, "tickColor": colours.before}
    return {
        "background": None,
        "font": font,
        "view": {"stroke": None},
        "axis": {**text, **axis, "titleFontWeight": "normal", "titlePadding": 8, "labelLimit": 170, "gridOpacity": 0.8},
        "legend": {**text, "titleFontWeight": "normal", "orient": "top", "symbolStrokeWidth": 2},
        "text": {"color": colours.ink, "fontSize": 12},
        "rule": {"color": colours.ink},
        "line": {"strokeWidth": 2},
    }


def accuracy_against_bytes(report: Report, colours: Colours) -> Chart | None:
    """The metric against the file's bytes (logarithmic), along the stages, with 95 % intervals.

    Ways to write the baseline that need no training stand beside the path, where their metric was measured.
    None: no metric is a number.
    """
    points = [_point(record, data, name) for record, data, name in path_of(report)]
    for point, (record, _, _) in zip(points, path_of(report), strict=True):
        point["x"] = max(record.file_bytes, 1)
    points += [
        {
            **_metric_fields(row.metric),
            "name": row.name,
            "set": "for comparison",
            "x": max(row.file_bytes, 1),
            "Drop": "",
        }
        | {"File": show_bytes(row.file_bytes), "Latency": "", "order": 0}
        for row in report.baseline_rows
        if row.metric is not None
    ]
    points = _drawable(points)
    if not points:
        return None
    scale = _log_scale([point["x"] for point in points])
    axis = alt.Axis(labelExpr=_BYTES_LABEL, values=_log_ticks(scale))
    return _path(points, "file (bytes, logarithmic)", scale, axis, report, colours)


def accuracy_against_latency(report: Report, colours: Colours) -> Chart | None:
    """The metric against the median latency, along the stages, with quartiles. None: under two were measured."""
    points = []
    for record, data, name in path_of(report):
        latency = record.latency_ms
        if latency is None and record is report.baseline_valid:
            latency = report.baseline.latency_ms
        if latency is not None and latency.median > 0:
            point = _point(record, data, name)
            quartiles = {"x_low": max(latency.low, latency.median / 1e3), "x_high": latency.high}
            points.append({**point, "x": latency.median, **quartiles, "Latency": show_ms(latency.median)})
    points = _drawable(points)
    if len(points) < 2:
        return None
    ends = [p[end] for p in points for end in ("x_low", "x_high")]
    wide = max(ends) > _LOG_ABOVE * min(ends)
    scale = _log_scale(ends) if wide else alt.Scale(domain=[0, max(ends) * 1.12], nice=False)
    title = f"latency of one sample (ms{', logarithmic' if wide else ''})"
    axis = alt.Axis(format="~g", values=_log_ticks(scale)) if wide else alt.Axis(tickCount=6)
    return _path(points, title, scale, axis, report, colours, spread=True)


def path_of(report: Report) -> list[tuple[Record, str, str]]:
    """(record, set, name) of everything measured, the validation set's path first.

    The final record is left out where it repeats the last stage on the same set, which is then named so.
    """
    path = [(report.baseline_valid, set_name(report.baseline_valid.data), "baseline")]
    path += [(stage, set_name(stage.data), stage.name) for stage in report.stages]
    if report.final.data != report.baseline_valid.data:
        ends = [(report.baseline, "baseline"), (report.final, "final")]
        return path + [(record, set_name(record.data), name) for record, name in ends]
    last = report.stages[-1] if report.stages else None
    if last is not None and (last.file_bytes, last.metric) == (report.final.file_bytes, report.final.metric):
        path[-1] = (last, path[-1][1], f"{last.name} (final)")
        return path
    return [*path, (report.final, set_name(report.final.data), "final")]


def bytes_of_layers(before: dict[str, int], after: dict[str, int], colours: Colours) -> Chart:
    """Bytes in the file by layer, the baseline's beside the final one's; the smallest of many are summed."""
    names = _layer_order(before, after)
    if len(names) > MAX_LAYERS:
        largest = set(sorted(names, key=lambda n: -max(before.get(n, 0), after.get(n, 0)))[: MAX_LAYERS - 1])
        rest = [n for n in names if n not in largest]
        sums = [sum(side.get(n, 0) for n in rest) for side in (before, after)]
        label = f"{len(rest)} smaller layers"
        names = [*(n for n in names if n in largest), label]
        before, after = {**before, label: sums[0]}, {**after, label: sums[1]}
    sizes = [v for side in (before, after) for v in (side.get(n, 0) for n in names) if v > 0]
    wide = bool(sizes) and max(sizes) > 4 * _LOG_ABOVE * min(sizes)
    rows = [
        {"layer": name, "network": network, "bytes": max(side[name], 1), "Size": show_bytes(side[name])}
        for name in names
        for network, side in (("baseline", before), ("final", after))
        if name in side
    ]
    top = max(sizes, default=1)
    scale = alt.Scale(type="log", domain=[1, top * 16], nice=False) if wide else alt.Scale(domain=[0, top * 1.15])
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("layer:N", sort=names, title=None, axis=alt.Axis(ticks=False, domain=False, grid=False)),
        yOffset=alt.YOffset("network:N", sort=["baseline", "final"]),
        x=alt.X(
            "bytes:Q",
            scale=scale,
            axis=alt.Axis(labelExpr=_BYTES_LABEL, values=_log_ticks(scale))
            if wide
            else alt.Axis(labelExpr=_BYTES_LABEL),
            title=f"bytes in the file{' (logarithmic)' if wide else ''}",
        ),
        tooltip=["layer:N", "network:N", "Size:N"],
    )
    bars = base.mark_bar().encode(
        x2=alt.datum(1 if wide else 0),
        color=_colour("network", ["baseline", "final"], [colours.before, colours.after]),
    )
    figures = base.mark_text(align="left", dx=4, fontSize=11).encode(text="Size:N")
    return _sized(bars + figures, 28 * len(names))


def weights_of_tensor(weights: dict[str, Histogram], colours: Colours) -> Chart:
    """The values of one tensor as a histogram, chosen from a list; its centroids as rules.

    Counts are on a square-root scale: a mask puts most of them at zero.
    """
    bars = [
        {"tensor": name, "from": low, "to": high, "count": count, "Values": f"{low:.4g} to {high:.4g}"}
        for name, histogram in weights.items()
        for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False)
    ]
    rules = [
        {"tensor": name, "centroid": value, "Number": f"{number} of {len(histogram.centroids)}"}
        for name, histogram in weights.items()
        if histogram.centroids
        for number, value in enumerate(sorted(histogram.centroids), 1)
    ]
    names = list(weights)
    first = max(names, key=lambda name: (bool(weights[name].centroids), sum(weights[name].counts)))
    chosen = alt.param(name="tensor", value=first, bind=alt.binding_select(options=names, name="Tensor "))
    x = alt.X("from:Q", title="value of a weight", scale=alt.Scale(zero=False))
    chart: Chart = (
        alt.Chart(alt.Data(values=bars))
        .mark_bar(binSpacing=0, color=colours.after, opacity=0.65)
        .encode(
            x=x,
            x2="to",
            y=alt.Y(
                "count:Q",
                scale=alt.Scale(type="sqrt"),
                title="weights (square-root scale)",
                axis=alt.Axis(tickCount=5, format="d"),
            ),
            y2=alt.datum(0),
            tooltip=["Values:N", alt.Tooltip("count:Q", title="Weights", format=",")],
        )
        .transform_filter("datum.tensor === tensor")
    )
    if rules:
        chart += (
            alt.Chart(alt.Data(values=rules))
            .mark_rule(color=colours.other, strokeWidth=1.5)
            .encode(x="centroid:Q", tooltip=[alt.Tooltip("centroid:Q", title="Centroid", format=".4g"), "Number:N"])
            .transform_filter("datum.tensor === tensor")
        )
    return _sized(chart, 240).add_params(chosen)


def shares_of_exits(exits: Exits, colours: Colours) -> Chart:
    """The fraction of all samples that left at each exit, with how many of those were right."""
    rows = [
        {"exit": name, "share": 100 * share, "Share": show_percent(share, 1), "Right": _optional_percent(accuracy)}
        | {"label": f"{show_percent(share, 1)} left here, {_optional_percent(accuracy)} of them right"}
        for name, share, accuracy in zip(exits.names, exits.share, exits.accuracy_of_leavers, strict=True)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("exit:N", sort=exits.names, title=None, axis=alt.Axis(ticks=False, domain=False)),
        tooltip=["exit:N", "Share:N", "Right:N"],
    )
    bars = base.mark_bar(color=colours.after, opacity=0.45).encode(
        x=alt.X(
            "share:Q", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5), title="share of the samples (%)"
        )
    )
    figures = base.mark_text(align="left", dx=6).encode(x=alt.datum(0), text="label:N")
    return _sized(bars + figures, 30 * len(rows))


def exits_of_classes(exits: Exits, colours: Colours) -> Chart:
    """Where each class left: the darker, the more of its samples. The hardest classes first where there are many."""
    return _shares_of_classes("exit", exits.names, exits.by_class, lambda row: -row.shares[-1], colours)


def shares_of_blocks(blocks: Blocks, colours: Colours) -> Chart:
    """What was computed of each block with a gate, over all samples."""
    rows = [
        {"block": name, "share": 100 * share, "Share": show_percent(share, 1), "label": show_percent(share, 1)}
        for name, share in zip(blocks.names, blocks.share, strict=True)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("block:N", sort=blocks.names, title=None, axis=alt.Axis(ticks=False, domain=False)),
        tooltip=["block:N", "Share:N"],
    )
    bars = base.mark_bar(color=colours.after, opacity=0.45).encode(
        x=alt.X("share:Q", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5), title="computed (%)")
    )
    return _sized(bars + base.mark_text(align="left", dx=6).encode(x=alt.datum(0), text="label:N"), 30 * len(rows))


def blocks_of_classes(blocks: Blocks, colours: Colours) -> Chart:
    """Which blocks serve which class: the darker, the more of it is computed. Classes that need most first if many."""
    return _shares_of_classes("block", blocks.names, blocks.by_class, lambda row: -sum(row.shares), colours)


def _shares_of_classes(
    what: str,
    names: Sequence[str],
    classes: Sequence[SharesOfClass],
    hardness: Callable[[SharesOfClass], float],
    colours: Colours,
) -> Chart:
    if len(classes) > MAX_CLASSES:
        classes = sorted(classes, key=hardness)[:MAX_CLASSES]
    rows = [
        {"class": row.label, what: name, "share": share}
        | {"Share": show_percent(share, 1), "label": f"{100 * share:.0f}"}
        for row in classes
        for name, share in zip(names, row.shares, strict=True)
    ]
    axis = alt.Axis(orient="top", labelAngle=0, ticks=False, domain=False)
    x = alt.X(f"{what}:N", sort=list(names), title=None, axis=axis)
    y = alt.Y("class:N", sort=[row.label for row in classes], title="class", axis=alt.Axis(ticks=False, domain=False))
    return _heat(rows, x, y, "share", ["class:N", f"{what}:N", "Share:N"], colours, len(classes), top=1.0)


def recall_of_classes(classes: Sequence[ClassRecall], colours: Colours) -> Chart:
    """Recall of each class before and after, joined; the largest losses first where there are many."""
    shown = [row for row in classes if row.baseline_recall is not None and row.final_recall is not None]
    if len(shown) > MAX_CLASSES:
        shown = sorted(shown, key=lambda row: (row.final_recall or 0) - (row.baseline_recall or 0))[:MAX_CLASSES]
    rows: list[dict[str, Any]] = [
        {
            "class": row.label,
            "before": 100 * (row.baseline_recall or 0),
            "after": 100 * (row.final_recall or 0),
            "Baseline": show_percent(row.baseline_recall or 0),
            "Final": show_percent(row.final_recall or 0),
            "Samples": show_whole(row.n),
        }
        for row in shown
    ]
    names = ["baseline", "final"]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("class:N", sort=[row.label for row in shown], title="class", axis=alt.Axis(grid=True, ticks=False)),
        tooltip=["class:N", "Baseline:N", "Final:N", "Samples:N"],
    )
    x = alt.X("before:Q", title="recall (%)", scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(tickCount=6))
    colour = _colour("network", names, [colours.before, colours.after])
    rule = base.mark_rule(strokeWidth=2, opacity=0.5).encode(x=x, x2="after")
    ends = [
        base.transform_calculate(network=f"'{name}'").mark_point(filled=True, size=80, opacity=1, shape=shape)
        .encode(x=alt.X(f"{field}:Q"), color=colour)
        for name, field, shape in zip(names, ("before", "after"), ("diamond", "circle"), strict=True)
    ]  # fmt: skip
    return _sized(alt.layer(rule, *ends), 22 * len(rows))


def changed_answers(changed: Changed, colours: Colours) -> Chart | None:
    """How often the baseline's answer became another one, over all classes. None: nothing changed."""
    counts: dict[tuple[str, str], int] = {}
    for pair in changed.pairs:
        if pair.baseline != pair.final:
            counts[pair.baseline, pair.final] = counts.get((pair.baseline, pair.final), 0) + pair.count
    if not counts:
        return None
    order: dict[str, int] = {}
    for (before, after), _ in sorted(counts.items(), key=lambda item: -item[1]):
        for answer in (before, after):
            if len(order) < _MAX_ANSWERS:
                order.setdefault(answer, len(order))
    names = sorted(order, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    rows = [
        {"before": before, "after": after, "count": count, "label": str(count)}
        for (before, after), count in counts.items()
        if before in order and after in order
    ]
    x = alt.X(
        "after:N", sort=names, title="final network says", axis=alt.Axis(labelAngle=0, orient="top", labelOverlap=False)
    )
    y = alt.Y("before:N", sort=names, title="baseline said", axis=alt.Axis(labelOverlap=False))
    x, y = x.scale(domain=names), y.scale(domain=names)
    tooltip = [
        alt.Tooltip("before:N", title="Baseline said"),
        alt.Tooltip("after:N", title="Final says"),
        alt.Tooltip("count:Q", title="Samples"),
    ]
    return _heat(rows, x, y, "count", tooltip, colours, len(names), top=max(counts.values()))


def _point(record: Record, data: str, name: str) -> dict[str, Any]:
    latency = record.latency_ms
    baseline = None if name == "baseline" else record.baseline_latency_ms
    gain = say_latency(latency, baseline) if latency and baseline else ""
    fields = _metric_fields(record.metric)
    if record.accuracy:
        fields["Metric"] += f" ({show_accuracy(record.accuracy)})"
    return {
        **fields,
        "name": name,
        "set": f"{data} set",
        "order": 0,
        "Drop": show_drop(record.drop, record.metric) if record.drop else "",
        "File": show_bytes(record.file_bytes),
        "Latency": f"{show_ms(latency.median)} {f'({gain})' if gain else ''}".strip() if latency else "",
    }


def _drawable(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose metric and interval are numbers, and which do not press all others together."""
    sound = [point for point in points if all(math.isfinite(point[end]) for end in ("y", "low", "high"))]
    return [point for point in sound if not _far_off(point["y"], [other["y"] for other in sound])]


def _far_off(value: float, values: Sequence[float]) -> bool:
    """Whether a value is so far from the middle that the others could not be told apart beside it."""
    distances = sorted(abs(other - median(values)) for other in values)
    usual = distances[int(0.75 * (len(distances) - 1))]
    return len(values) > 3 and abs(value - median(values)) > 10 * max(usual, 1e-9) + 0.1 * abs(median(values))


def off_the_charts(report: Report) -> list[str]:
    """Stages that the charts along the stages leave out because they lie far away, each with its figure."""
    measured = [(data, name, record.metric) for record, data, name in path_of(report)]
    values = [metric.value for _, _, metric in measured if math.isfinite(metric.value)]
    return [f"{name} ({show_metric(metric)})" for _, name, metric in measured if _far_off(metric.value, values)]


def _metric_fields(metric: MetricValue) -> dict[str, Any]:
    unit = 100 if is_fraction(metric) else 1
    ends = {"y": unit * metric.value, "low": unit * metric.low, "high": unit * metric.high}
    return {**ends, "Metric": show_metric(metric), "Interval": show_interval(metric)}


def _path(
    points: list[dict[str, Any]],
    title: str,
    scale: alt.Scale,
    axis: alt.Axis,
    report: Report,
    colours: Colours,
    *,
    spread: bool = False,
) -> alt.LayerChart:
    """Points with interval bars, those of one set joined in the order of the stages, names beside them.

    `spread`: points have bars along x too, from `x_low` to `x_high`.
    """
    left, right = scale.domain
    bottom, top = _padded([point[end] for point in points for end in ("low", "high")])
    spots = [
        (
            _PLOT_WIDTH * _fraction(point["x"], left, right, logarithmic=scale.type == "log"),
            _PLOT_HEIGHT * (1 - _fraction(point["y"], bottom, top, logarithmic=False)),
            point["name"],
        )
        for point in points
    ]
    for number, (point, place) in enumerate(zip(points, place_labels(spots, _PLOT_WIDTH, _PLOT_HEIGHT), strict=True)):
        point.update(order=number, align=place.align, dx=place.dx, dy=place.dy)
    metric = report.final.metric
    unit = " (%)" if is_fraction(metric) else ""
    colour, shape = _set_colour(points, colours), _set_shape(points)
    tooltip = [
        alt.Tooltip("name:N", title="Stage"),
        alt.Tooltip("set:N", title="Measured on"),
        alt.Tooltip("Metric:N", title=metric.name),
        alt.Tooltip("Interval:N", title="95 % interval"),
        alt.Tooltip("Drop:N", title="Change"),
        "File:N",
        "Latency:N",
    ]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("x:Q", title=title, scale=scale, axis=axis),
        y=alt.Y("y:Q", title=f"{metric.name}{unit}", scale=alt.Scale(domain=[bottom, top], nice=False)),
    )
    line = base.mark_line(opacity=0.6).encode(color=colour, order="order:Q", detail="set:N")
    line = line.transform_filter("datum.set !== 'for comparison'")
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.75).encode(y="low:Q", y2="high", color=colour)
    if spread:
        bars += base.mark_rule(strokeWidth=1.5, opacity=0.75).encode(x="x_low:Q", x2="x_high", color=colour)
    marks = base.mark_point(filled=True, size=75, opacity=1).encode(color=colour, shape=shape, tooltip=tooltip)
    beside = {"align": alt.expr("datum.align"), "dx": alt.expr("datum.dx"), "dy": alt.expr("datum.dy"), "limit": 150}
    names = [
        base.mark_text(**beside, **outline).encode(text="name:N")
        for outline in ({"stroke": colours.paper, "strokeWidth": 4, "opacity": 0.85}, {})
    ]
    return _sized(alt.layer(line, bars, *names, marks), _PLOT_HEIGHT)


def _sets(points: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(point["set"] for point in points))


def _set_colour(points: list[dict[str, Any]], colours: Colours) -> alt.Color:
    sets = _sets(points)
    known = {"test set": colours.other, "for comparison": colours.before}
    return _colour("set", sets, [known.get(name, colours.after) for name in sets])


def _set_shape(points: list[dict[str, Any]]) -> alt.Shape:
    sets = _sets(points)
    known = {"test set": "diamond", "for comparison": "cross"}
    scale = alt.Scale(domain=sets, range=[known.get(name, "circle") for name in sets])
    return alt.Shape("set:N", scale=scale, title=None)


def _colour(field: str, names: list[str], colours: list[str]) -> alt.Color:
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=names, range=colours), title=None)


def _heat(
    rows: list[dict[str, Any]],
    x: alt.X,
    y: alt.Y,
    field: str,
    tooltip: list[Any],
    colours: Colours,
    n_lines: int,
    *,
    top: float,
) -> Chart:
    """Cells whose strength is the figure that stands in them. Opacity, for it works on light and on dark paper."""
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, tooltip=tooltip)
    strength = alt.Opacity(f"{field}:Q", scale=alt.Scale(domain=[0, top], range=[0.04, 0.6]), legend=None)
    cells = base.mark_rect(color=colours.after).encode(opacity=strength)
    return _sized(cells + base.mark_text().encode(text="label:N"), 24 * n_lines)


def _sized(chart: Any, height: int) -> Any:
    """As wide as its box."""
    return chart.properties(width="container", height=height)


def _log_scale(values: Sequence[float]) -> alt.Scale:
    """With room on both sides, for names."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.12, 1.3)
    return alt.Scale(type="log", domain=[low / margin, high * margin], nice=False)


def _log_ticks(scale: alt.Scale) -> list[float]:
    """1, 2 and 5 times the powers of ten where there are few of those, else the powers of ten."""
    low, high = (math.log10(end) for end in scale.domain)
    steps = (1, 2, 5) if high - low < 2 else (1, 3) if high - low < 4 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    return [tick for tick in ticks if scale.domain[0] <= tick <= scale.domain[1]]


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of values, a little wider on both sides."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _fraction(value: float, left: float, right: float, *, logarithmic: bool) -> float:
    if logarithmic:
        value, left, right = math.log(value), math.log(left), math.log(right)
    return (value - left) / (right - left)


def _optional_percent(fraction: float | None) -> str:
    return "none" if fraction is None else show_percent(fraction, 1)


def _layer_order(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """The baseline's order; what a layer was split into follows it."""
    order: dict[str, None] = {}
    for name in before:
        order[name] = None
        order.update(dict.fromkeys(n for n in after if n.startswith(f"{name}.")))
    order.update(dict.fromkeys(after))
    return list(order)

"""The sensitivity scan: how the metric falls when one layer alone loses weights, without training.

Source: Han et al. 2015, arXiv:1506.02626, section 4 and figure 6.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import altair as alt
import torch
import vl_convert

from penjing.errors import SettingError
from penjing.graph import Network, select
from penjing.measurement import answer
from penjing.pruning.masks import choose_masks, masks_of
from penjing.pruning.weight_scores import WeightScore, weight_score
from penjing.representation import plain
from penjing.sensitivity import Evidence, weighted_layers
from penjing.shapes import Json
from penjing.training import Task
from penjing.training.progress import Reporter, Silent

SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class SensitivityScan:
    """The metric on the validation set against the sparsity of each layer, the others whole.

    Attributes:
        metric: its name. higher_is_better: its direction. score: what ranked the weights.
        baseline: the metric of the network as it was.
        sparsities: fractions removed that were tried, ascending.
        values: by the weight's full name the metric at each sparsity.
    """

    metric: str
    higher_is_better: bool
    score: str
    baseline: float
    sparsities: tuple[float, ...]
    values: Mapping[str, tuple[float, ...]]

    def drops(self, name: str) -> tuple[float, ...]:
        """How much worse than the baseline, at each sparsity; positive is worse whatever the metric."""
        sign = 1.0 if self.higher_is_better else -1.0
        return tuple(sign * (self.baseline - value) for value in self.values[name])

    def rows(self) -> list[tuple[str, float, float, float]]:
        """(weight, sparsity, metric, drop), layer by layer: a table."""
        return [
            (name, sparsity, value, drop)
            for name, values in self.values.items()
            for sparsity, value, drop in zip(self.sparsities, values, self.drops(name), strict=True)
        ]

    def amounts(self, drop: float) -> dict[str, float]:
        """For each layer the largest sparsity tried that loses at most `drop`, in the metric's unit; 0 where none does."""
        return {
            name: max(
                (s for s, lost in zip(self.sparsities, self.drops(name), strict=True) if lost <= drop), default=0.0
            )
            for name in self.values
        }

    def to_json(self) -> Json:
        """What `json.dumps` takes."""
        return {
            **asdict(self),
            "sparsities": list(self.sparsities),
            "values": {n: list(v) for n, v in self.values.items()},
        }

    @classmethod
    def from_json(cls, data: Json) -> "SensitivityScan":
        """The inverse of `to_json`."""
        values = {name: tuple(row) for name, row in data["values"].items()}
        return cls(**{**data, "sparsities": tuple(data["sparsities"]), "values": values})

    def plot(self, path: str | Path) -> Path:
        """Draw the metric against the sparsity, a line a layer, as PNG or SVG.

        Raises: SettingError: another ending.
        """
        target = Path(path)
        if target.suffix not in (".png", ".svg"):
            raise SettingError(f'scan: a picture ends in ".png" or ".svg", got "{target.name}".')
        spec = json.dumps(_chart(self).to_dict())
        if target.suffix == ".png":
            target.write_bytes(vl_convert.vegalite_to_png(spec, scale=2))
        else:
            target.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        return target


def sensitivity_scan(
    network: Network,
    task: Task,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    score: str | WeightScore = "magnitude",
    structure: str = "weights",
    layers: Sequence[str] = ("*",),
    evidence: Evidence | None = None,
    reporter: Reporter | None = None,
) -> SensitivityScan:
    """Prune one layer at a time, as far as each of the sparsities, and measure on the validation set. Nothing is trained.

    Args:
        network: not modified; weights that masks removed stay removed.
        score: a name in `WEIGHT_SCORES`, or a measure; computed once.
        layers: which: names, globs, type:Class, !not-this.
        evidence: what the score looks at.
        reporter: where progress goes.
    Raises: SettingError: sparsities out of [0, 1), none, an unknown name, or evidence that the score needs and does not get.
    """
    tried = tuple(sorted(set(sparsities)))
    if not tried or not all(0 <= s < 1 for s in tried):
        raise SettingError(f"scan: sparsities must be in [0, 1), at least one, got {list(sparsities)}.")
    found = weighted_layers(network)
    by_path = {name.rpartition(".")[0]: layer for name, layer in found.items()}
    chosen = set(select(by_path.items(), layers, "scan: layers"))
    measure = weight_score(score, "scan: score") if isinstance(score, str) else score
    scores, already = measure(network, evidence or Evidence()), masks_of(network)
    dense = plain(network).eval()

    def value() -> float:
        answers = answer(dense, task, task.valid)
        return float(torch.as_tensor(task.metric.score(answers.logits, answers.labels)).double().mean())

    baseline = value()
    values: dict[str, tuple[float, ...]] = {}
    names = [name for name in found if name.rpartition(".")[0] in chosen]
    with (reporter or Silent()).bar("scan", len(names) * len(tried)) as bar:
        for name in names:
            weight = dense.get_parameter(name).detach()
            whole, row = weight.clone(), []
            for sparsity in tried:
                keep = choose_masks(
                    {name: scores[name]}, sparsity, scope="layer", already=already, structure=structure
                ).masks
                weight.copy_(whole.masked_fill(~keep[name].to(whole.device), 0.0))
                row.append(value())
                bar.advance(1, f"{name} {100 * sparsity:g} %")
            weight.copy_(whole)
            values[name] = tuple(row)
    label = score if isinstance(score, str) else "own"
    return SensitivityScan(task.metric.name, task.metric.higher_is_better, label, baseline, tried, values)


def _chart(scan: SensitivityScan) -> alt.LayerChart:
    rows: Iterable[dict[str, object]] = [
        {"layer": name.rpartition(".")[0], "sparsity": 100 * sparsity, "metric": value}
        for name, sparsity, value, _ in scan.rows()
    ]
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("sparsity:Q", title="weights of the layer that are removed (%)", scale=alt.Scale(zero=False)),
        y=alt.Y("metric:Q", title=f"{scan.metric}, validation set", scale=alt.Scale(zero=False)),
        color=alt.Color("layer:N", title="layer", sort=None),
    )
    level = alt.Chart(alt.Data(values=[{"metric": scan.baseline}])).mark_rule(strokeDash=[4, 4]).encode(y="metric:Q")
    return (level + base.mark_line(point=True)).properties(width=560, height=340)

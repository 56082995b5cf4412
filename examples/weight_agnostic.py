"""Search for a network that works whatever its weight, and see what it is worth.

    python examples/weight_agnostic.py --task digits --generations 500 --out runs/wann
    python examples/weight_agnostic.py --task swing-up --generations 256 --out runs/swing-up

One core, minutes. The folder then holds search.npz (where the search stands; go on with --resume), worth.json, champion.pj (the
found network at its best shared weight) and search.png. Source: Gaier and Ha 2019, arXiv:1906.04358.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import altair as alt
import numpy as np
import torch
import vl_convert

import penjing as pj
from penjing.errors import PenjingError, RunError
from penjing.pruning.weight_agnostic import (
    ACTIVATIONS,
    DigitsTrial,
    SearchSettings,
    State,
    SwingUpTrial,
    Topology,
    Trial,
    Worth,
    dense,
    digits_search,
    digits_trial,
    hold_zeros_,
    search,
    to_network,
    train_weights,
    tune_swing_up,
    weigh_digits,
    weigh_swing_up,
)
from penjing.pruning.weight_agnostic.cart_pole import starts, swing_up_own
from penjing.pruning.weight_agnostic.evaluate import plan
from penjing.report.charts import config
from penjing.report.colours import LIGHT

NAMES = {
    "digits": (["1", *(f"{row},{column}" for row in range(8) for column in range(8))], [str(c) for c in range(10)]),
    "swing-up": (["1", "x", "x'", "cos θ", "sin θ", "θ'"], ["force"]),
}
"""Of bias and inputs, and of outputs; a pixel by row and column."""
CHART = {"width": 820, "height": 240}


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    out: Path = options.out
    file = out / "search.npz"
    if file.exists() and not options.resume:
        raise RunError(f"{file}: a search is there already. Give --resume to go on, or another --out.")
    trial: Trial = digits_trial() if options.task == "digits" else SwingUpTrial()
    make = digits_search if options.task == "digits" else SearchSettings
    settings = make(population=options.population, seed=options.seed)
    line = Line(options.generations)
    state = search(trial, settings, options.generations, file=file, progress=line.show)
    line.end()
    if state.champion is None:
        raise RunError("--generations must be at least 1.")
    rows = {"found topology": weigh(state.champion, trial, options.seed)}
    hidden = [20] if options.task == "digits" else [10]
    rows["dense layers"] = weigh(dense(trial.n_inputs, hidden, trial.n_outputs), trial, options.seed)
    best_weight = rows["found topology"].best_weight
    save_network(state.champion, best_weight, out / "champion.pj")
    trained = trained_score(state.champion, trial, best_weight, options.seed)
    print(table(rows, options.task, trained))
    content = {"task": options.task, "seed": options.seed, "generations": state.generation, "trained": trained}
    worths = {name: asdict(worth) for name, worth in rows.items()}
    (out / "worth.json").write_text(json.dumps(content | worths, indent=2) + "\n")
    (out / "search.png").write_bytes(picture(state, options.task))
    print(f"{out}: search.npz, worth.json, champion.pj, search.png")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(NAMES), default="digits")
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="go on with the search in the folder")
    return parser.parse_args()


class Line:
    """One line on a terminal, else a line every 20 generations."""

    def __init__(self, total: int) -> None:
        self.total, self.begun = total, time.monotonic()
        self.done: int | None = None
        self.live = sys.stderr.isatty()

    def show(self, state: State) -> None:
        if self.done is None:
            self.done = state.generation - 1
        latest, seconds = state.history[-1], time.monotonic() - self.begun
        left = seconds / (state.generation - self.done) * (self.total - state.generation)
        text = (
            f"generation {state.generation}/{self.total}  best {latest.mean:.3f}  median {latest.median:.3f}  "
            f"champion {latest.champion:.3f}, {latest.connections} connections  {left:.0f} s left"
        )
        if self.live:
            print(f"\r{text:<110}", end="", file=sys.stderr, flush=True)
        elif state.generation % 20 == 0 or state.generation == self.total:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live:
            print(file=sys.stderr)
        print(f"searched for {time.monotonic() - self.begun:.0f} s", file=sys.stderr)


def weigh(topology: Topology, trial: Trial, seed: int) -> Worth:
    generator = np.random.default_rng([seed, 2])  # none of the search's
    if isinstance(trial, SwingUpTrial):
        return weigh_swing_up(topology, generator)
    return weigh_digits(topology, trial, generator)


def save_network(topology: Topology, weight: float, file: Path) -> None:
    """Save the topology at its best shared weight."""
    example = torch.zeros(2, topology.n_inputs)
    pj.save(pj.trace(to_network(topology, weight), (example,)), file)


def trained_score(topology: Topology, trial: Trial, weight: float, seed: int) -> float:
    """Accuracy or reward after the weights were trained, each by itself, from the best shared one."""
    generator = np.random.default_rng([seed, 3])
    if isinstance(trial, SwingUpTrial):
        weights = tune_swing_up(topology, weight, generator)
        return float(swing_up_own(topology, weights[None], starts(20, generator)).mean())
    assert isinstance(trial, DigitsTrial)
    network = pj.trace(to_network(topology, weight), (torch.zeros(2, trial.n_inputs),))
    hold_zeros_(network)
    x, test = (torch.tensor(part, dtype=torch.float32) for part in (trial.train_x, trial.test_x))
    train_weights(network, x, torch.tensor(trial.train_y), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return float((network(test).argmax(1) == torch.tensor(trial.test_y)).double().mean())


def table(rows: dict[str, Worth], task: str, trained: float) -> str:
    unit, digits = (100, 1) if task == "digits" else (1, 0)
    what = "accuracy on held-out digits (%)" if task == "digits" else "reward of an episode, 1000 at most"

    def show(value: float | None, sd: float | None = None) -> str:
        if value is None:
            return "-"
        return f"{unit * value:.{digits}f}" + ("" if sd is None else f" ± {unit * sd:.{digits}f}")

    lines = [f"{what}", f"{'':<34}" + "".join(f"{name:>18}" for name in rows)]
    for title, cells in {
        "shared weight from U(-2, 2)": [show(w.shared_mean, w.shared_sd) for w in rows.values()],
        "the six shared weights": [show(w.series_mean) for w in rows.values()],
        "best shared weight": [show(w.best) for w in rows.values()],
        "  which is": [f"{w.best_weight:.2f}" for w in rows.values()],
        "ensemble of the six": [show(w.ensemble) for w in rows.values()],
        "every weight drawn by itself": [show(w.own_mean, w.own_sd) for w in rows.values()],
        "weights trained": [show(trained), *(["-"] * (len(rows) - 1))],
        "connections": [str(w.connections) for w in rows.values()],
        "hidden nodes": [str(w.hidden) for w in rows.values()],
    }.items():
        lines.append(f"{title:<34}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def picture(state: State, task: str) -> bytes:
    """The search's progress above, the champion below, as a PNG."""
    assert state.champion is not None
    both = alt.vconcat(progress_chart(state), topology_chart(state.champion, task)).resolve_scale(color="independent")
    chart = both.properties(padding=14).configure(**{**config(LIGHT), "background": LIGHT.paper})
    return vl_convert.vegalite_to_png(json.dumps(chart.to_dict()), scale=2)


def progress_chart(state: State) -> alt.Chart:
    series = {"best of the generation": "mean", "median of the generation": "median", "champion": "champion"}
    low = min(generation.mean for generation in state.history)
    rows = [
        {"generation": number, "who": who, "reward": max(getattr(generation, field), low - abs(low) * 0.2)}
        for number, generation in enumerate(state.history, 1)
        for who, field in series.items()
    ]
    colours = [LIGHT.before, LIGHT.other, LIGHT.after]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(clip=True)
        .encode(
            x=alt.X("generation:Q", scale=alt.Scale(nice=False)),
            y=alt.Y("reward:Q", title="reward, mean over shared weights", scale=alt.Scale(zero=False)),
            color=alt.Color("who:N", title=None, scale=alt.Scale(domain=list(series), range=colours)),
        )
        .properties(**CHART, title="The search")
    )


def topology_chart(topology: Topology, task: str) -> alt.LayerChart:
    """Inputs on the left, outputs on the right, a column for each level of hidden nodes."""
    work = plan(topology)
    heard = {
        node: [int(s) for s in work.sources[work.begin[place] : work.begin[place + 1]]]
        for place, node in enumerate(work.nodes.tolist())
    }
    place = place_nodes(topology, heard)
    inputs, outputs = NAMES[task]
    kinds = ["input", *ACTIVATIONS]
    nodes = []
    for node, (x, y) in place.items():
        label = (
            inputs[node]
            if node <= topology.n_inputs
            else outputs[node - topology.n_inputs - 1]
            if node in topology.outputs
            else ""
        )
        kind = "input" if node <= topology.n_inputs else ACTIVATIONS[topology.activation[node]]
        nodes.append(
            {"x": x, "y": y, "label": label, "kind": kind, "side": "left" if node in topology.outputs else "right"}
        )
    edges = [
        {"x": place[source][0], "y": place[source][1], "x2": place[node][0], "y2": place[node][1]}
        for node, sources in heard.items()
        for source in sources
    ]
    used = [kind for kind in kinds if any(node["kind"] == kind for node in nodes)]
    axis = {"axis": None, "scale": alt.Scale(nice=False, zero=False, padding=26)}
    lines = alt.Chart(alt.Data(values=edges)).mark_rule(opacity=0.3, strokeWidth=1, color=LIGHT.before)
    lines = lines.encode(x=alt.X("x:Q", **axis), y=alt.Y("y:Q", **axis), x2="x2", y2="y2")
    base = alt.Chart(alt.Data(values=nodes)).encode(x=alt.X("x:Q", **axis), y=alt.Y("y:Q", **axis))
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=used, range=[LIGHT.ink, *TABLEAU[: len(used) - 1]]))
    marks = base.mark_point(filled=True, size=90, opacity=1).encode(color=colour)
    texts = [
        base.transform_filter(f"datum.side === '{side}'")
        .mark_text(align=align, dx=dx, fontSize=11)
        .encode(text="label:N")
        for side, align, dx in (("left", "left", 9), ("right", "right", -9))
    ]
    title = f"The champion: {topology.n_connections} connections"
    return alt.layer(lines, marks, *texts).properties(width=CHART["width"], height=2 * CHART["height"], title=title)


TABLEAU = ["#8fa39b", "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f"]


def place_nodes(topology: Topology, heard: dict[int, list[int]]) -> dict[int, tuple[float, float]]:
    """x: the longest way from an input, all outputs at the end; y: near those that a node listens to."""
    level: dict[int, int] = {
        source: 0 for sources in heard.values() for source in sources if source <= topology.n_inputs
    }
    for node, sources in heard.items():
        level[node] = 1 + max((level[source] for source in sources), default=0)
    last = max(level.values())
    level.update(dict.fromkeys(topology.outputs, last))
    place: dict[int, tuple[float, float]] = {}
    for number in range(last + 1):
        column = [node for node in level if level[node] == number]
        if number in (0, last):
            column.sort()
        else:
            centre = {n: float(np.mean([place[s][1] for s in heard[n]])) if heard[n] else 0.5 for n in column}
            column.sort(key=centre.__getitem__)
        for at, node in enumerate(column):
            aside = 0.3 * math.sin(2.4 * number) if 0 < number < last else 0.0  # else long connections hide short ones
            place[node] = (number, 1 - (at + 0.5 + aside) / len(column))
    return place


if __name__ == "__main__":
    try:
        main()
    except PenjingError as error:
        sys.exit(f"error: {error}")

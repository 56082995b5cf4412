"""A service that holds a latency target while the machine's load changes: a slimmable network and a controller.

    python examples/latency_service.py --out service.png

A convolutional network learns scikit-learn's digits at four widths. Its widths are timed and their accuracy measured on the
validation set. Then requests come in one by one, and the number of images in them changes: 4, 12, 24, 8, 4. The controller is
not told; it sees how long calls take and chooses the width. A service that always runs the whole network is shown beside it.
"""

import argparse
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import torch
import vl_convert
from torch import nn

import penjing as pj
from penjing.data import digits
from penjing.dynamic import Configuration
from penjing.graph import Network, trace
from penjing.measurement import answer, macs_of_answers
from penjing.training import Workbench

WIDTHS = (0.25, 0.5, 0.75)
LOADS = (4, 12, 24, 8, 4)
"""Images in a request, one part of the time after another."""
SCALE = 4
"""Digits are enlarged so many times, so that the network has something to do."""


@dataclass(frozen=True)
class Served:
    """One request.

    Attributes:
        second: since the start; ms: how long the call took; width: what ran; service: which one.
    """

    second: float
    ms: float
    width: str
    service: str


class Enlarged(nn.Module):
    """Three convolutions on enlarged digits."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 32)
        self.layers = nn.Sequential()
        for inputs, outputs in itertools.pairwise(widths):
            self.layers += nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.interpolate(x, scale_factor=float(SCALE), mode="nearest")
        return self.head(self.layers(x).mean((2, 3)))


def trained(epochs: int) -> tuple[Network, pj.Task]:
    """The network at four widths."""
    torch.manual_seed(0)
    found = digits()
    task = pj.Task(found.train, found.valid, found.test)
    bench = Workbench(trace(Enlarged(), task.example().args), task)
    pj.Slimmable(widths=WIDTHS, epochs=epochs, lr=0.01, in_place=0.5).apply(bench)
    return bench.network.eval(), task


def measured(network: Network, task: pj.Task, x: torch.Tensor) -> list[Configuration]:
    """Accuracy on the validation set and the time of a call, for each width, taking turns."""
    found = answer(network, task, task.valid)
    assert found.at_exits is not None
    times: list[list[float]] = [[] for _ in network.answer_names]
    for _ in range(30):
        for k in range(len(times)):
            network.leave_at(k)
            network(x)
            times[k].append(timed(network, x))
    return [
        Configuration(
            name,
            k,
            float((logits.argmax(1) == found.labels).double().mean()),
            sorted(ms)[len(ms) // 2],
            float(macs),
        )
        for k, (name, logits, ms, macs) in enumerate(
            zip(network.answer_names, found.at_exits, times, macs_of_answers(network), strict=True)
        )
    ]


def timed(network: Network, x: torch.Tensor) -> float:
    """Milliseconds of a call."""
    begun = time.perf_counter()
    network(x)
    return 1e3 * (time.perf_counter() - begun)


def serve(
    network: Network, images: torch.Tensor, controller: pj.Controller | None, target: float, seconds: float, name: str
) -> list[Served]:
    """Answer requests one after another for so long, with more and fewer images in them."""
    served: list[Served] = []
    current = len(network.exits)
    network.leave_at(current)
    begun = time.perf_counter()
    while (now := time.perf_counter() - begun) < seconds:
        x = images[: LOADS[int(now / seconds * len(LOADS))]]
        choice = None if controller is None else controller.within(target)
        if choice is not None and choice.number != current:
            network.leave_at(choice.number)
            current = choice.number
        ms = timed(network, x)
        if controller is not None and choice is not None:
            controller.observe(choice, ms)
        served.append(Served(now, ms, network.answer_names[current], name))
    return served


def draw(served: list[Served], target: float, path: Path) -> None:
    """Latency over time of both services, the target, and which width ran."""
    rows = [vars(one) for one in served]
    base = alt.Chart(alt.Data(values=rows)).mark_circle(size=9, opacity=0.5)
    points = base.encode(
        x=alt.X("second:Q", title="seconds; requests of " + ", ".join(map(str, LOADS)) + " images"),
        y=alt.Y("ms:Q", title="latency of a call, ms", scale=alt.Scale(type="log")),
        color=alt.Color("width:N", title=None, sort=["width 0.25", "width 0.5", "width 0.75", "width 1"]),
    )
    line = alt.Chart(alt.Data(values=[{"target": target}])).mark_rule(strokeDash=[4, 4]).encode(y="target:Q")
    panels = [
        alt.layer(points.transform_filter(alt.datum.service == name), line, data=alt.Data(values=rows)).properties(
            width=420, height=230, title=name
        )
        for name in dict.fromkeys(one.service for one in served)
    ]
    path.write_bytes(vl_convert.vegalite_to_png(alt.hconcat(*panels).to_json(), scale=1.4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("latency-service.png"))
    parser.add_argument("--seconds", type=float, default=12.0, help="of each service")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--target", type=float, help="ms; twice what the whole network takes for 4 images, unless told")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, task = trained(arguments.epochs)
    images = next(task.batches(task.valid)).args[0][: max(LOADS)]
    with torch.inference_mode():
        table = measured(network, task, images[: LOADS[0]])
        for one in table:
            print(f"{one.name:12} {one.accuracy:.1%} {one.latency_ms:.2f} ms {one.macs / 1e6:.2f} M MACs")
        target = arguments.target or 2 * table[-1].latency_ms
        always = serve(network, images, None, target, arguments.seconds, "always the whole network")
        held = serve(network, images, pj.Controller(table), target, arguments.seconds, "with a controller")
    for served in (always, held):
        missed = sum(one.ms > target for one in served)
        print(f"{served[0].service}: {missed} of {len(served)} calls took more than {target:.2f} ms")
    draw([*always, *held], target, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()

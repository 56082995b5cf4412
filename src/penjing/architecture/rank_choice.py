"""Which ranks: by the share of the norm that is kept, by the evidence, by a limit on the whole network, or by measured time."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from penjing.architecture.schemes import LayerShape, Options, Ranks, Scheme
from penjing.errors import SettingError

Cost = Literal["parameters", "macs"]
_RUNGS = 10
"""Ranks that are timed at first, and once more between the two of them that the share lies between."""
_ROUNDS, _SECONDS = 9, 0.004
"""Turns that each layer has, and how long each is."""


@dataclass(frozen=True)
class Candidate:
    """A layer that can be factorised, with what each choice of ranks costs.

    Attributes:
        scheme: how.
        shape: of the layer as it is.
        options: the ranks that there are.
        parameters, macs: of each of them, (n,), float64.
    """

    scheme: Scheme
    shape: LayerShape
    options: Options
    parameters: Tensor
    macs: Tensor

    @classmethod
    def of(cls, scheme: Scheme, shape: LayerShape, options: Options) -> "Candidate":
        """With the costs counted."""
        parameters, macs = scheme.costs(shape, options.ranks.double().unbind(1))
        return cls(scheme, shape, options, parameters, macs)

    def pays(self) -> Tensor:
        """Which ranks need fewer parameters or fewer multiply-accumulates than the layer, (n,), bool."""
        return (self.parameters < self.shape.n_parameters) | (self.macs < self.shape.n_macs)

    def cost(self, what: Cost) -> tuple[Tensor, int]:
        """Of each choice, (n,), and of the layer as it is."""
        if what == "parameters":
            return self.parameters, self.shape.n_parameters
        return self.macs, self.shape.n_macs

    def ranks(self, choice: int) -> Ranks:
        """The ranks of one choice."""
        return tuple(self.options.ranks[choice].tolist())


def by_energy(candidate: Candidate, energy: float) -> Ranks:
    """The ranks of fewest parameters that keep this share of the squared norm.

    Where nothing that was looked at keeps so much (cp), the largest that was looked at.
    """
    enough = candidate.options.error <= 1 - energy + 1e-12
    if not bool(enough.any()):
        return candidate.ranks(int(candidate.options.error.argmin()))
    return candidate.ranks(int(candidate.parameters.masked_fill(~enough, math.inf).argmin()))


def by_limit(candidates: Mapping[str, Candidate], total: float, limit: float, what: Cost) -> dict[str, Ranks]:
    """Ranks over all layers together: the whole network keeps the limit, and the squared relative errors add up to little.

    Of each layer only those choices count that lie on the lower convex hull of its errors over its costs, where the layer as it
    is has the error 0. From there one step after the other is taken, always the one whose error for each parameter or
    multiply-accumulate saved is smallest: the least sum of errors there is for what is then saved (Shoham and Gersho 1988).
    What the last step saved too much is given back, each time to the layer whose error falls most by it.

    Args:
        candidates: by path.
        total: of the whole network as it is.
        limit: of the whole network afterwards.
    Returns: of the layers that are factorised.
    Raises: SettingError: even rank 1 everywhere does not keep the limit, or nothing is to be done.
    """
    word = "multiply-accumulates" if what == "macs" else what
    if total <= limit:
        raise SettingError(
            f"low-rank: the network has {total:,.0f} {word}, no more than max_{what} {limit:,.0f} already."
        )
    hulls = {path: _lower_hull(candidate, what) for path, candidate in candidates.items()}
    least = total + sum(hull[-1][0] - hull[0][0] for hull in hulls.values())
    if least > limit:
        raise SettingError(
            f"low-rank: max_{what} is {limit:,.0f}, and {least:,.0f} of {total:,.0f} {word} stay with the chosen layers "
            "at their smallest ranks. Ask for more, or choose more layers."
        )
    at = dict.fromkeys(hulls, 0)
    while total > limit:
        path = min((p for p in hulls if at[p] + 1 < len(hulls[p])), key=lambda p: _slope(hulls[p], at[p]))
        total += hulls[path][at[path] + 1][0] - hulls[path][at[path]][0]
        at[path] += 1
    points = {path: hulls[path][k] for path, k in at.items()}
    while True:
        better = {path: _best_within(c, points[path][0] + limit - total, what) for path, c in candidates.items()}
        path = max(points, key=lambda p: points[p][1] - better[p][1])
        if better[path][1] >= points[path][1]:
            break
        total += better[path][0] - points[path][0]
        points[path] = better[path]
    return {path: candidates[path].ranks(choice) for path, (_, _, choice) in points.items() if choice is not None}


def by_time(candidate: Candidate, layer: nn.Module, example: Tensor, share: float) -> tuple[Ranks | None, float]:
    """The largest ranks with which the layers take at most this share of the time of the one that they replace.

    Timed are some of the choices of least error for their cost, from few to many parameters, in turns with the layer and
    one another, on one thread; then some between the largest that is fast enough and the next. The largest is timed once
    more, as the best of many is in part the luckiest; where it is too slow then, the next smaller one is.

    Args:
        example: what the layer takes, on the CPU.
        share: above 0.
    Returns: the ranks, or None where none that pays is fast enough, and the share that they took, or that the fastest took.
    """
    ladder = _frontier(candidate)
    timed: dict[int, float] = {}
    low, high = 0, len(ladder) - 1
    for _ in range(2):
        rungs = sorted({round(low + (high - low) * k / (_RUNGS - 1)) for k in range(_RUNGS)} - set(timed))
        if not rungs:
            break
        chains = [_chain(candidate, layer, candidate.ranks(ladder[rung])) for rung in rungs]
        whole, *parts = median_times([layer, *chains], example)
        timed |= {rung: part / whole for rung, part in zip(rungs, parts, strict=True)}
        fast = [rung for rung in timed if timed[rung] <= share]
        if not fast:
            break
        low = max(fast)
        high = min((rung for rung in timed if rung > low), default=low)
    for rung in sorted((rung for rung in timed if timed[rung] <= share), reverse=True):
        ranks = candidate.ranks(ladder[rung])
        whole, part = median_times([layer, _chain(candidate, layer, ranks)], example)
        timed[rung] = part / whole
        if timed[rung] <= share:
            return ranks, timed[rung]
    return None, min(timed.values(), default=math.inf)


def median_times(modules: Sequence[nn.Module], example: Tensor) -> list[float]:
    """Median seconds of a call of each, on one thread, in turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            calls: list[Callable[[Tensor], Any]] = [module.forward for module in modules]
            repeats = [_repeats(call, example) for call in calls]
            times: list[list[float]] = [[] for _ in calls]
            for _ in range(_ROUNDS):
                for k, call in enumerate(calls):
                    begun = time.perf_counter()
                    for _ in range(repeats[k]):
                        call(example)
                    times[k].append((time.perf_counter() - begun) / repeats[k])
    finally:
        torch.set_num_threads(threads)
    return [statistics.median(found) for found in times]


def _repeats(call: Callable[[Tensor], Any], example: Tensor) -> int:
    for _ in range(2):  # the first call is not like the others
        begun = time.perf_counter()
        call(example)
        took = time.perf_counter() - begun
    return max(1, int(_SECONDS / max(took, 1e-7)))


def _chain(candidate: Candidate, layer: nn.Module, ranks: Ranks) -> nn.Sequential:
    """Layers of these ranks with any numbers; the time does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    shapes = candidate.scheme.factor_shapes(candidate.shape, ranks)
    factors = [torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:])) for shape in shapes]
    return nn.Sequential(*candidate.scheme.layers(layer, factors).values())


def _frontier(candidate: Candidate) -> list[int]:
    """Choices that pay and are better than all that need no more parameters, from few parameters to many."""
    found: list[int] = []
    least = math.inf
    order = torch.argsort(candidate.parameters, stable=True)
    pays = candidate.pays()
    error = candidate.options.error
    for choice in order[pays[order]].tolist():
        if float(error[choice]) < least:
            least = float(error[choice])
            found.append(choice)
    return found


_Point = tuple[float, float, int | None]
"""Cost, squared relative error, which choice; None: the layer as it is."""


def _lower_hull(candidate: Candidate, what: Cost) -> list[_Point]:
    """From the layer as it is to the cheapest choice: costs fall, errors rise, and rise faster and faster."""
    costs, dense = candidate.cost(what)
    points: list[_Point] = [(float(dense), 0.0, None)]
    best = torch.where(costs < dense)[0]
    order = best[torch.argsort(costs[best], stable=True)]
    least = candidate.options.error[order].cummin(0).values
    better = torch.cat([torch.ones(min(len(order), 1), dtype=torch.bool), least[1:] < least[:-1]])
    for choice in order[better].flip(0).tolist():
        point: _Point = (float(costs[choice]), float(candidate.options.error[choice]), choice)
        if point[0] == points[-1][0]:
            continue
        while len(points) > 1 and _rise(points[-2], points[-1]) >= _rise(points[-2], point):
            points.pop()
        points.append(point)
    return points


def _best_within(candidate: Candidate, room: float, what: Cost) -> _Point:
    """The choice of least error that costs no more than this; the layer as it is where that fits."""
    costs, dense = candidate.cost(what)
    if dense <= room:
        return float(dense), 0.0, None
    choice = int(candidate.options.error.masked_fill((costs > room) | (costs >= dense), math.inf).argmin())
    return float(costs[choice]), float(candidate.options.error[choice]), choice


def _rise(a: _Point, b: _Point) -> float:
    """Error for each unit saved on the way from a to b."""
    return (b[1] - a[1]) / (a[0] - b[0])


def _slope(hull: list[_Point], k: int) -> float:
    return _rise(hull[k], hull[k + 1])

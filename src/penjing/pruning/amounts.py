"""How much is removed: the fewest channels, least important first, that reach what was asked for, counted or measured."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from torch import Tensor

from penjing.artifact import save
from penjing.graph import Group, Network
from penjing.measurement import Worker, count_parameters, macs_by_node, take_turns

Amount = Literal["sparsity", "parameters", "macs", "latency"]
AMOUNTS: tuple[Amount, ...] = ("sparsity", "parameters", "macs", "latency")
_ROUNDS, _SECONDS = 7, 0.05
"""Turns that each of two networks has, and how long each is."""


def n_parameters(network: Network) -> float:
    """Numbers in weights, biases and norms."""
    return count_parameters(network)[0]


def n_macs(network: Network) -> float:
    """Multiply-accumulates of one sample, heads of exits included."""
    return sum(macs_by_node(network).values())


def in_order(
    groups: Sequence[Group],
    scores: Sequence[Tensor],
    *,
    keep_at_least: int = 2,
    at_most: float = 1.0,
    uniform: bool = False,
) -> list[tuple[int, int]]:
    """The channels that may go, (group, channel), in the order in which they go: the least important first.

    Args:
        scores: per group (channels,); compared as they are.
        keep_at_least: channels that every group keeps.
        at_most: largest fraction of a group's channels that may go.
        uniform: the same fraction of every group: ranked by a channel's place within its group.
    """
    room = [max(0, min(g.n_channels - keep_at_least, math.floor(at_most * g.n_channels))) for g in groups]
    ranked: list[tuple[float, int, int]] = []
    for g, found in enumerate(scores):
        inside = sorted((float(value), c) for c, value in enumerate(found))
        for place, (value, c) in enumerate(inside[: room[g]]):
            ranked.append(((place + 1) / len(inside) if uniform else value, g, c))
    return [(g, c) for _, g, c in sorted(ranked)]


def first_of(
    groups: Sequence[Group], order: Sequence[tuple[int, int]], n: int, *, round_to: int = 1
) -> dict[str, list[int]]:
    """The first n channels of an order, by group; fewer where what stays would not be a multiple.

    Args:
        round_to: of every group a multiple of it stays, or the whole group.
    Returns: by the group's name the positions that go, ascending; no group without any.
    """
    taken: list[list[int]] = [[] for _ in groups]
    for g, c in order[:n]:
        taken[g].append(c)
    found: dict[str, list[int]] = {}
    for group, channels in zip(groups, taken, strict=True):
        left = math.ceil((group.n_channels - len(channels)) / round_to) * round_to
        goes = max(0, group.n_channels - left)
        if goes:
            found[group.name] = sorted(channels[:goes])
    return found


def fewest(n: int, enough: Callable[[int], bool]) -> int:
    """The smallest k of 0 to n for which `enough` holds, which holds for all larger ones; n where it never does."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def search(n: int, enough: Callable[[int], bool], *, steps: int) -> int:
    """A number k of 0 to n that was found to be enough by halving, with few questions; n where none was.

    For a question that costs much and whose answer is not certain, as a measured time.
    """
    low, high = -1, n
    for _ in range(steps):
        if high - low < 2:
            break
        middle = (low + high + 1) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


class Stopwatch:
    """Times networks against one that was there before, each in a worker process of its own, taking turns.

    Args:
        before: the network whose time is 1.
    """

    def __init__(self, before: Network) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="penjing-latency-")
        path = Path(self._folder.name) / "before.pj"
        save(before, path)
        self._before = Worker(path)
        self.measured: list[float] = []

    def share(self, network: Network) -> float:
        """Median time of one sample, as a fraction of the median time before, measured within the same seconds."""
        path = Path(self._folder.name) / f"{len(self.measured)}.pj"
        save(network, path)
        with Worker(path) as worker:
            before, now = take_turns([self._before, worker], rounds=_ROUNDS, seconds=_SECONDS)
        self.measured.append(now.latency_ms.median / before.latency_ms.median)
        return self.measured[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._before.close()
        self._folder.cleanup()


COUNTED: Mapping[Amount, Callable[[Network], float]] = {"parameters": n_parameters, "macs": n_macs}
"""Amounts that are counted, not measured."""

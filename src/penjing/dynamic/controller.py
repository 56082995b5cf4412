"""A controller: which configuration of a network to run now, for a deadline, a target latency, or what is left of a battery.

It chooses from a table of what was measured, in microseconds, and never runs anything itself:

    measured points ── frontier: those that no other one beats in both ── under the limit the best ── network.leave_at(k)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from penjing.errors import SettingError
from penjing.measurement import OperatingPoint


@dataclass(frozen=True)
class Configuration:
    """One way to run a network.

    Attributes:
        name: as in reports, such as "width 0.5" or "exit 1".
        number: for `Network.leave_at`.
        accuracy: the metric, higher is better, measured on a validation set.
        latency_ms: measured, of one call.
        macs: multiply-accumulates of a sample.
        moved_bytes: weights and activations that a call reads and writes, None where it was not counted.
    """

    name: str
    number: int
    accuracy: float
    latency_ms: float
    macs: float
    moved_bytes: float | None = None

    def estimated_energy_mj(self, *, per_mac_pj: float = 4.6, per_byte_pj: float = 160.0) -> float:
        """An ESTIMATE of the energy of one sample in millijoule, not a measurement: MACs and bytes moved, each at a price.

        Args:
            per_mac_pj: picojoule of a multiplication and an addition in 32-bit floats.
            per_byte_pj: picojoule of a byte from DRAM.
        Source of the default prices: Horowitz 2014, Computing's energy problem, ISSCC, for 45 nm (3.7 + 0.9 pJ; 640 pJ for 32
        bits from DRAM).
        """
        return (self.macs * per_mac_pj + (self.moved_bytes or 0.0) * per_byte_pj) * 1e-9


def configurations(points: Sequence[OperatingPoint]) -> list[Configuration]:
    """The configurations of a report's operating points that were timed; mixtures by thresholds are none."""
    found = []
    for number, point in enumerate(point for point in points if point.name != "thresholds"):
        if point.latency_ms is not None:
            value = point.metric.value if point.metric.higher_is_better else -point.metric.value
            found.append(Configuration(point.name, number, value, point.latency_ms.median, point.macs))
    return found


class Controller:
    """Chooses among configurations.

    Args:
        table: what was measured.
        margin: fraction of a limit that is kept free, for times vary.
        inertia: weight of the past in what is known of the load, 0 to 1.
    Raises: SettingError: an empty table, a margin or inertia outside [0, 1).
    """

    def __init__(self, table: Sequence[Configuration], *, margin: float = 0.1, inertia: float = 0.8) -> None:
        if not table:
            raise SettingError("controller: the table of configurations is empty; measure at least one.")
        if not 0 <= margin < 1 or not 0 <= inertia < 1:
            raise SettingError(f"controller: margin and inertia must be in [0, 1), got {margin} and {inertia}.")
        self.margin, self.inertia = margin, inertia
        self.slowdown = 1.0
        """How many times slower than measured calls are now, by what `observe` was told."""
        self._ratios: list[float] = []
        self.frontier: list[Configuration] = []
        for point in sorted(table, key=lambda c: (c.latency_ms, -c.accuracy)):
            if not self.frontier or point.accuracy > self.frontier[-1].accuracy:
                self.frontier.append(point)

    def within(self, milliseconds: float) -> Configuration:
        """The most accurate configuration that is done in so much time, the margin kept; the fastest if none is.

        Raises: SettingError: no time at all.
        """
        if milliseconds <= 0:
            raise SettingError(f"controller: a deadline must be greater than 0 ms, got {milliseconds}.")
        limit = milliseconds * (1 - self.margin) / self.slowdown
        best = self.frontier[0]
        for point in self.frontier[1:]:
            if point.latency_ms > limit:
                break
            best = point
        return best

    def observe(self, chosen: Configuration, milliseconds: float) -> None:
        """Tell how long a call took, so that later choices know the load of the machine.

        The median of measured / table of the last three calls counts, so that one that was interrupted does not: at once where
        it is more than what is known, else slowdown <- inertia * slowdown + (1 - inertia) * median.
        """
        self._ratios = [*self._ratios[-2:], milliseconds / chosen.latency_ms]
        median = sorted(self._ratios)[len(self._ratios) // 2]
        self.slowdown = max(median, self.inertia * self.slowdown + (1 - self.inertia) * median)

    def on_battery(self, level: float, *, full_above: float = 0.8, least_below: float = 0.1) -> Configuration:
        """The configuration for a battery's level, 0 to 1: the best above one, the cheapest below the other, linear in between.

        What is linear is the MACs that are allowed.
        Raises: SettingError: a level outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise SettingError(f"controller: a battery's level must be 0 to 1, got {level}.")
        share = min(max((level - least_below) / (full_above - least_below), 0.0), 1.0)
        cheapest, dearest = (pick(c.macs for c in self.frontier) for pick in (min, max))
        allowed = cheapest + share * (dearest - cheapest)
        return max((c for c in self.frontier if c.macs <= allowed + 1e-9), key=lambda c: c.accuracy)

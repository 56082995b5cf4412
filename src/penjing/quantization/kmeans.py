"""Clusters of numbers: exact k-means in one dimension, Lloyd's iteration from a first guess, and clusters that cost bits.

Everything works on numbers in order. The best clusters are runs of them, and with running sums what a run weighs, where its
mean is and how far it scatters takes one subtraction: a step of Lloyd's iteration over millions takes no longer than over
hundreds.
"""

from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from penjing.errors import SettingError

Init = Literal["exact", "linear", "density", "random"]
"""How clusters are found: the optimum, or Lloyd's iteration from evenly spaced values, quantiles, or values drawn at random."""

Numbers = NDArray[np.float64]
_EXACT_UP_TO = 1 << 18
_CELLS = 1 << 15
_MOST_STEPS = 300


def kmeans_1d(
    values: ArrayLike,
    k: int,
    *,
    weights: ArrayLike | None = None,
    init: Init = "exact",
    generator: np.random.Generator | None = None,
) -> tuple[NDArray[np.int64], Numbers]:
    """The clustering with the least weighted sum of squared distances, or what Lloyd's iteration makes of a first guess.

    minimise sum_i w_i (v_i - c[code_i])^2 over k centroids c and codes. `exact` is the optimum, by dynamic programming, up to
    2^18 different values. Above that it is the optimum for a fine histogram, whose cells are neither wider than a 2^15th of the
    range nor hold more than a 2^15th of the values, followed by Lloyd's iteration over all values.

    Args:
        values: (n,), finite.
        k: at least 1; fewer clusters come out where there are fewer different values, or where a guess leaves some empty.
        weights: (n,), > 0; None: all 1.
        init: see `first_guess`.
        generator: for `random`.
    Returns: codes (n,), int64, of the nearest centroid, and centroids ascending (at most k,), float64.
    Source: Wu 1991, "Optimal quantization by matrix searching" (the optimum is found column by column, each search bounded by
    its neighbours'); Han, Mao and Dally 2016, arXiv:1510.00149, section 3.2 (the guesses).
    """
    found = np.asarray(values, dtype=np.float64).ravel()
    line = Line(found, weights)
    centroids = _clusters(line, k, init, generator)
    return np.searchsorted(between(centroids), found, side="left"), centroids


class Line:
    """Numbers in ascending order, equal ones once (as far as their differences tell them apart), with running sums.

    Args:
        values: (n,), finite.
        weights: (n,), > 0; None: all 1.
    Attributes:
        values: the different values, ascending, (m,).
        centre, x: their mean, and the values less that, so that sums of squares lose no digits.
        mass, first, second: what values weigh, and their first and second moments, summed up to before each: (m + 1,).
        counts: how many values there are, summed up in the same way.
    """

    def __init__(self, values: Numbers, weights: ArrayLike | None = None) -> None:
        self.centre = float(values.mean()) if len(values) else 0.0
        x, at, place, counts = np.unique(
            values - self.centre, return_index=True, return_inverse=True, return_counts=True
        )
        given = None if weights is None else np.asarray(weights, dtype=np.float64).ravel()
        self.values = values[at]
        self._fill(x, np.bincount(place, given, len(x)).astype(np.float64), counts)

    def _fill(self, x: Numbers, w: Numbers, counts: NDArray[np.int64]) -> None:
        self.x = x
        self.mass, self.first, self.second = (_summed(w * x**power) for power in (0, 1, 2))
        self.counts = _summed(counts)

    def coarse(self, cells: int) -> "Line":
        """A histogram: neighbours together where they lie in one cell, at their mean. The centre is the same.

        A cell is neither wider than 1 / cells of the range nor holds more than 1 / cells of the values. What scatters within a
        cell does not depend on the clusters, and is left out.
        """
        wide = np.floor((self.x - self.x[0]) * (cells / (self.x[-1] - self.x[0])))
        many = self.counts[1:] * cells // (self.counts[-1] + 1)
        ends = np.flatnonzero((np.diff(wide) > 0) | (np.diff(many) > 0)) + 1
        edges = np.concatenate([[0], ends, [len(self.x)]])
        w = np.diff(self.mass[edges])
        other = object.__new__(Line)
        x = np.diff(self.first[edges]) / w
        other.centre, other.values = self.centre, x + self.centre
        other._fill(x, w, np.diff(self.counts[edges]))
        return other

    def means(self, cuts: NDArray[np.int64]) -> Numbers:
        """The mean of each run between cuts, NaN of an empty one; less the centre."""
        mass = np.diff(self.mass[cuts])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(mass > 0, np.diff(self.first[cuts]) / mass, np.nan)

    def scatter(self, cuts: NDArray[np.int64], centroids: Numbers) -> float:
        """sum w (x - c)^2, of each run from its own centroid; all less the centre."""
        mass, first, second = (np.diff(sums[cuts]) for sums in (self.mass, self.first, self.second))
        return float((second - 2 * centroids * first + centroids**2 * mass).sum())


def between(centroids: Numbers) -> Numbers:
    """Where the nearest centroid changes: halfway. (k - 1,), for centroids in ascending order."""
    return (centroids[1:] + centroids[:-1]) / 2


def distortion(values: ArrayLike, centroids: ArrayLike, weights: ArrayLike | None = None) -> float:
    """sum_i w_i (v_i - c)^2 with the nearest centroid c; centroids in ascending order."""
    found, table = np.asarray(values, dtype=np.float64).ravel(), np.asarray(centroids, dtype=np.float64)
    squares = (found - table[np.searchsorted(between(table), found)]) ** 2
    return float((squares if weights is None else squares * np.asarray(weights).ravel()).sum())


def optimum(line: Line, k: int) -> Numbers:
    """The centroids of the best k clusters, ascending; see `kmeans_1d`."""
    exact = len(line.x) <= _EXACT_UP_TO
    cells = line if exact else line.coarse(_CELLS)
    k = min(k, len(cells.x))
    if k == len(line.x):
        return line.values
    cuts = np.zeros(k + 1, dtype=np.int64)
    _best_cuts(cells.mass, cells.first, cuts)
    centroids = np.unique(cells.means(cuts) + line.centre)
    return centroids if exact else lloyd(line, centroids)[0]


def first_guess(line: Line, k: int, init: Init, generator: np.random.Generator | None = None) -> Numbers:
    """Where Lloyd's iteration begins.

    linear: evenly spaced from the least value to the largest; density: the quantiles (i + 1/2) / k; random (Forgy): k different
    values, drawn as often as they occur.
    Source: Han, Mao and Dally 2016, arXiv:1510.00149, section 3.2.
    Raises: SettingError: random without a generator, or `exact`, which is no guess.
    """
    n = int(line.counts[-1])
    k = min(k, len(line.x))
    if init == "linear":
        guess = np.linspace(line.x[0], line.x[-1], k)
    elif init == "density":
        guess = line.x[
            np.searchsorted(line.counts[1:], (np.arange(k) + 0.5) * n / k, side="right").clip(max=len(line.x) - 1)
        ]
    elif init == "random":
        if generator is None:
            raise SettingError("k-means: init: random draws the first centroids; give it a generator.")
        guess = generator.choice(line.x, k, replace=False, p=np.diff(line.counts) / n)
    else:
        raise SettingError(f'k-means: there is no first guess "{init}"; linear, density and random are possible.')
    return np.unique(guess) + line.centre


def lloyd(line: Line, centroids: Numbers, steps: int = _MOST_STEPS) -> tuple[Numbers, list[float]]:
    """Lloyd's iteration: every value to its nearest centroid, every centroid to the mean of its values, until nothing moves.

    Neither half of a step can make the distortion larger. A centroid without values stays where it is, and is left out at last.
    Args:
        centroids: ascending.
    Returns: the centroids that are used, ascending, and the distortion before each step and after the last.
    Source: Lloyd 1982, "Least squares quantization in PCM".
    """
    now = np.asarray(centroids, dtype=np.float64) - line.centre
    found: list[float] = []
    cuts = _cuts(line, between(now))
    for _ in range(steps):
        found.append(line.scatter(cuts, now))
        means = line.means(cuts)
        moved = np.where(np.isnan(means), now, means)
        before, cuts, now = cuts, _cuts(line, between(moved)), moved
        if np.array_equal(before, cuts):
            break
    found.append(line.scatter(cuts, now))
    return now[np.diff(cuts) > 0] + line.centre, found


def entropy_constrained(
    values: ArrayLike,
    k: int,
    price: float,
    *,
    init: Init = "exact",
    generator: np.random.Generator | None = None,
) -> tuple[NDArray[np.int64], Numbers]:
    """Clusters for codes whose length counts: fewer and less evenly used ones, the more a bit costs.

    minimise sum_i (v_i - c[code_i])^2 + price * sum_i length[code_i],  length[j] = -log2(share of the codes that are j),
    by turns over codes, centroids and lengths, from the clusters that k-means has; each turn can only make it less, so it never
    ends worse than k-means. A cluster that no value wants any more is gone: price decides how many there are.

    Args:
        values: (n,), finite.
        k: the most clusters there may be.
        price: of a bit, in squared units of the values; 0 is k-means.
        init, generator: the k-means to begin with.
    Returns: codes and centroids as `kmeans_1d`; a code need not be of the nearest centroid.
    Source: Chou, Lookabaugh and Gray 1989, "Entropy-constrained vector quantization".
    """
    found = np.asarray(values, dtype=np.float64).ravel()
    line = Line(found)
    now = _clusters(line, k, init, generator) - line.centre
    cuts = _cuts(line, between(now))
    best, kept = np.inf, (now, cuts)
    for _ in range(_MOST_STEPS):
        cuts = np.unique(cuts)
        now, runs = np.unique(line.means(cuts), return_index=True)  # two runs of one mean are one cluster
        cuts = np.append(cuts[runs], cuts[-1])
        lengths = code_lengths_of(np.diff(line.counts[cuts]))
        cost = line.scatter(cuts, now) + price * float((np.diff(line.counts[cuts]) * lengths).sum())
        if cost >= best * (1 - 1e-12):
            break
        best, kept = cost, (now, cuts)
        cuts = _cuts(line, _priced_borders(now, price * lengths))
    now, cuts = kept
    return np.searchsorted(line.x[cuts[1:-1]], found - line.centre, side="right"), now + line.centre


def code_lengths_of(counts: ArrayLike) -> Numbers:
    """Ideal lengths in bits of codes that occur so often: -log2(count / sum). Counts > 0."""
    found = np.asarray(counts, dtype=np.float64)
    return np.log2(found.sum()) - np.log2(found)


def _clusters(line: Line, k: int, init: Init, generator: np.random.Generator | None) -> Numbers:
    return optimum(line, k) if init == "exact" else lloyd(line, first_guess(line, k, init, generator))[0]


def _summed(values: Any) -> Any:
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])


def _cuts(line: Line, borders: Numbers) -> NDArray[np.int64]:
    """Where runs begin and end, (k + 1,): a value on a border belongs to the run below it."""
    return np.concatenate([[0], np.searchsorted(line.x, borders, side="right"), [len(line.x)]]).astype(np.int64)


def _priced_borders(centroids: Numbers, prices: Numbers) -> Numbers:
    """Where another cluster becomes the one of min_j (x - c_j)^2 + price_j, for ascending centroids.

    A cluster that is nowhere least has its two borders at one place. Less x^2 these are straight lines; their minimum is the
    lower hull of lines in order of their slopes.
    """
    heights = centroids**2 + prices
    hull: list[int] = []
    at: list[float] = []  # at[i]: from where on hull[i] is the least
    for j in range(len(centroids)):
        begins = -np.inf
        while hull:
            begins = (heights[j] - heights[hull[-1]]) / (2 * (centroids[j] - centroids[hull[-1]]))
            if begins > at[-1]:
                break
            hull.pop()
            at.pop()
            begins = -np.inf
        hull.append(j)
        at.append(float(begins))
    borders = np.full(len(centroids) - 1, np.inf)
    for i, j in enumerate(hull[1:], 1):
        borders[hull[i - 1] : j] = at[i]  # those between the two are empty
    borders[: hull[0]] = -np.inf
    return borders


@njit(cache=True)
def _best_cuts(mass, first, cuts):  # type: ignore[no-untyped-def]  # pragma: no cover  (compiled)
    """Fill `cuts`, (k + 1,): the ends of the k runs that scatter least, for running sums (m + 1,) of m >= k values.

    Scatter is sum w x^2 less sum over runs of (sum w x)^2 / sum w; the first does not depend on the runs, so the second is made
    as large as possible. gain[j] is its maximum for the first j values in as many runs as were added so far; where the last run
    of that begins grows with j, so that each search is bounded by those already made: first the middle, then the quarters...
    """
    k, m = len(cuts) - 1, len(mass) - 1
    begins = np.zeros((k, m + 1), dtype=np.int32)
    gain = np.empty(m + 1)
    gain[0] = 0.0
    for j in range(1, m + 1):
        gain[j] = first[j] * first[j] / mass[j]
    for run in range(1, k):
        better = np.empty(m + 1)
        better[: run + 1] = -np.inf
        n = m - run  # the last run ends behind run + 1, ..., m values: places 1 to n
        stride = 1
        while 2 * stride <= n:
            stride *= 2
        while stride:
            for place in range(stride, n + 1, 2 * stride):
                j = run + place
                low = begins[run, j - stride] if place > stride else run
                high = begins[run, j + stride] if place + stride <= n else j - 1
                best, where = -np.inf, low
                for i in range(low, max(low, min(high, j - 1)) + 1):
                    part = first[j] - first[i]
                    total = gain[i] + part * part / (mass[j] - mass[i])
                    if total > best:
                        best, where = total, i
                better[j] = best
                begins[run, j] = where
            stride //= 2
        gain = better
    cuts[k] = m
    for run in range(k - 1, 0, -1):
        cuts[run] = begins[run, cuts[run + 1]]

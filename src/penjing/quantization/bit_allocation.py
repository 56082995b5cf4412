"""Bits for each layer: where they matter most, under a limit of bytes.

Each layer is put on grids of every number of bits, alone, and the divergence of the network's answers is measured. The sum over
layers is then made small under the limit: from the most bits everywhere, the step down that costs least divergence for each
byte saved is taken until the limit holds. Steps off the lower convex hull are taken together with those before them, which
makes the greedy choice the best one for every limit that it comes by.
Source: Shoham and Gersho 1988, Efficient bit allocation for an arbitrary set of quantizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from penjing.errors import SettingError


@dataclass(frozen=True)
class Choice:
    """One way to write a layer.

    Attributes:
        bits: of its grid.
        size: bytes of its codes.
        divergence: of the network's answers when only this layer is written so.
    """

    bits: int
    size: float
    divergence: float


def allocate(choices: Mapping[str, list[Choice]], limit: float) -> dict[str, Choice]:
    """For each layer one of its choices, with a total size of at most `limit` and a small sum of divergences.

    Raises: SettingError: even the smallest choices are too large; the message has the size that they take.
    """
    hulls = {name: _hull(of_layer) for name, of_layer in choices.items()}
    chosen = dict.fromkeys(hulls, 0)
    total = sum(hull[0].size for hull in hulls.values())
    while total > limit:
        steps = {
            name: _slope(hull[chosen[name]], hull[chosen[name] + 1])
            for name, hull in hulls.items()
            if chosen[name] + 1 < len(hull)
        }
        if not steps:
            raise SettingError(
                f"quantize: with the fewest bits everywhere the weights still take {total:.0f} bytes, more than the "
                f"{max(limit, 0):.0f} that max_bytes leaves for them. Prune first, or allow more bytes."
            )
        name = min(steps, key=lambda key: steps[key])
        total += hulls[name][chosen[name] + 1].size - hulls[name][chosen[name]].size
        chosen[name] += 1
    return {name: hull[chosen[name]] for name, hull in hulls.items()}


def _slope(larger: Choice, smaller: Choice) -> float:
    """Divergence added for each byte saved."""
    return (smaller.divergence - larger.divergence) / max(larger.size - smaller.size, 1e-9)


def _hull(choices: list[Choice]) -> list[Choice]:
    """The lower convex hull, from the largest to the smallest; what is larger and no better is left out."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (-c.size, c.divergence)):
        if found and choice.size >= found[-1].size:
            continue
        while found and choice.divergence <= found[-1].divergence:
            found.pop()
        while len(found) > 1 and _slope(found[-2], found[-1]) >= _slope(found[-1], choice):
            found.pop()
        found.append(choice)
    return found

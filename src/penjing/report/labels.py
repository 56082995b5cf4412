"""Where the names of points go so that they cover neither each other nor a point."""

from collections.abc import Sequence
from dataclasses import dataclass

_GLYPH = 6.4
_LINE = 14.0
_GAP = 9.0
_MARK = 6.0


@dataclass(frozen=True)
class Offset:
    """From the point to its name, in pixels; `align` is the side of the text that is next to the point."""

    align: str
    dx: float
    dy: float


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def overlap(self, other: "_Box") -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def place_labels(points: Sequence[tuple[float, float, str]], width: float, height: float) -> list[Offset]:
    """The first free place for each name in order, or the least covered: beside its point, then above or below.

    Args:
        points: (x, y, name), x and y in pixels from the top left corner of a plot of this width and height.
    """
    marks = [_Box(x - _MARK, x + _MARK, y - _MARK, y + _MARK) for x, y, _ in points]
    taken: list[_Box] = []
    places = []
    for x, y, name in points:
        best: tuple[float, Offset, _Box] | None = None
        for offset in _candidates():
            box = _box(x, y, name, offset)
            inside = _Box(max(box.left, 0), min(box.right, width), max(box.top, 0), min(box.bottom, height))
            outside = _area(box) - (_area(inside) if inside.right > inside.left and inside.bottom > inside.top else 0)
            cost = 3 * outside + sum(box.overlap(other) for other in (*taken, *marks))
            if best is None or cost < best[0] - 1e-9:
                best = (cost, offset, box)
        if best is not None:
            taken.append(best[2])
            places.append(best[1])
    return places


def _candidates() -> list[Offset]:
    beside = [Offset(align, dx, dy) for dy in (-8.0, 10.0) for align, dx in (("left", _GAP), ("right", -_GAP))]
    stacked = [Offset("center", 0.0, dy) for dy in (-16.0, 18.0)]
    further = [
        Offset(align, dx, dy) for dy in (24.0, -22.0, 38.0, -36.0) for align, dx in (("left", _GAP), ("right", -_GAP))
    ]
    return [*beside, *stacked, *further]


def _box(x: float, y: float, name: str, offset: Offset) -> _Box:
    wide = min(_GLYPH * len(name), 150.0)
    left = x + offset.dx - {"left": 0.0, "center": wide / 2, "right": wide}[offset.align]
    middle = y + offset.dy
    return _Box(left, left + wide, middle - _LINE / 2, middle + _LINE / 2)


def _area(box: _Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top)

"""Labels through operations that move, join and part dimensions: reshape, permute, concatenation, slices, padding, pools."""

import itertools
from collections.abc import Sequence

import numpy as np

from penjing.graph.labels import Axis, Labels, Value
from penjing.graph.network import Node
from penjing.graph.ops import PUT, TAKE
from penjing.graph.rules.rule import Axes, Rule, Shape, elementwise, nothing, opaque, places_locked
from penjing.graph.sizes import Size


def _blocks(before: Shape, after: Shape) -> list[tuple[range, range]]:
    """The shortest runs of dimensions with equal products, from left to right."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        left, right = before[i] if i < len(before) else 1, after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        found.append((range(i0, i), range(j0, j)))
    return found


def _atoms(sizes: Sequence[int], products: Sequence[int]) -> list[list[int]] | None:
    """For each size its factors between the common products; None where they do not divide it."""
    found, total = [], 1
    for size in sizes:
        inner = [p for p in products if total < p <= total * size]
        factors, last = [], total
        for p in inner:
            if p % last:
                return None
            factors.append(p // last)
            last = p
        if last != total * size:
            return None
        found.append(factors)
        total *= size
    return found


def reshape(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    value = inputs[0]
    reason = f"{node.name} ({node.op}) mixes it with other dimensions"
    axes: Axes = [None] * len(shape)
    if 0 in value.shape:
        return opaque(labels, node, inputs, shape, reason)
    for before, after in _blocks(value.shape, shape):
        if all(value.axes[i] is None for i in before):
            continue
        sizes_in, sizes_out = [value.shape[i] for i in before], [shape[j] for j in after]
        products = sorted(
            set(itertools.accumulate(sizes_in, lambda a, b: a * b))
            | set(itertools.accumulate(sizes_out, lambda a, b: a * b))
        )
        atoms_in, atoms_out = _atoms(sizes_in, products), _atoms(sizes_out, products)
        if atoms_in is None or atoms_out is None:
            for i in before:
                labels.lock(value.axes[i], reason)
            continue
        free = [_may_shrink(node, j, atoms) for j, atoms in zip(after, atoms_out, strict=True) for _ in atoms]
        pieces: list[tuple[int, Axis]] = []
        for i, factors in zip(before, atoms_in, strict=True):
            axis, may = value.axes[i], free[len(pieces) : len(pieces) + len(factors)]
            if axis is None or not factors:
                pieces += [(f, None) for f in factors]
            elif len(factors) == 1:
                pieces.append((factors[0], axis))
            else:
                pieces += list(zip(factors, labels.split(node.name, i, axis, factors, may), strict=True))
        for j, factors in zip(after, atoms_out, strict=True):
            own, pieces = pieces[: len(factors)], pieces[len(factors) :]
            axes[j] = labels.merge([axis for _, axis in own], [size for size, _ in own], reason)
    _count_shape(labels, node, axes)
    return Value(shape, tuple(axes))


def _may_shrink(node: Node, position: int, atoms: Sequence[int]) -> bool:
    """Whether a size of a result is a number that can be set; one that is computed is the batch's, or contains it."""
    entry = node.settings["shape"][position] if "shape" in node.settings else 0
    return not isinstance(entry, Size) and (entry != -1 or len(atoms) > 1)


def _count_shape(labels: Labels, node: Node, axes: Sequence[Axis]) -> None:
    for position, entry in enumerate(node.settings.get("shape", ())):
        if isinstance(entry, Size) or entry != -1:
            if isinstance(entry, Size):
                labels.lock(axes[position], f"{node.name} ({node.op}) computes its size")
            else:
                labels.count("node", node.name, "shape", position, axes[position])


def _permute(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    return Value(shape, tuple(inputs[0].axes[d] for d in node.settings["dims"]))


def _expand(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    value = inputs[0]
    offset = len(shape) - len(value.shape)
    axes: Axes = []
    for j, size in enumerate(shape):
        i = j - offset
        entry = node.settings["shape"][j]
        if i >= 0 and value.shape[i] == size:
            axes.append(value.axes[i])
        elif isinstance(entry, Size) or size == 1:
            axes.append(None)
        else:
            axes.append(labels.free(size))
    _count_shape(labels, node, axes)
    return Value(shape, tuple(axes))


def _full(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    entries = node.settings["shape"]
    axes = [
        None if isinstance(e, Size) or size < 2 else labels.free(size) for e, size in zip(entries, shape, strict=True)
    ]
    _count_shape(labels, node, axes)
    return Value(shape, tuple(axes))


def _concat(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    dim = node.settings["dim"] % len(shape)
    axes: Axes = []
    reason = f"{node.name} (concat) puts it beside something that has no channels to lose"
    for d in range(len(shape)):
        if d != dim:
            axis = inputs[0].axes[d]
            for value in inputs[1:]:
                axis = labels.same(axis, value.axes[d], reason)
            axes.append(axis)
            continue
        if all(value.axes[d] is None for value in inputs):
            axes.append(None)
            continue
        parts = []
        for value in inputs:
            part = value.axes[d]
            if part is None:
                part = labels.fresh(value.shape[d])
                labels.lock(part, reason)
            parts.append(part)
        axes.append(np.concatenate(parts))
    return Value(shape, tuple(axes))


def _slice(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    s = node.settings
    dim = s["dim"] % len(shape)
    axes = list(inputs[0].axes)
    axis = axes[dim]
    if axis is not None:
        if (
            isinstance(s["start"], Size)
            or isinstance(s["end"], Size)
            or s["step"] != 1
            or s["start"] < 0
            or s["end"] < 0
        ):
            labels.lock(axis, f"{node.name} (slice) takes only some of it")
            axes[dim] = None
        else:
            labels.count("node", node.name, "start", None, axis[: s["start"]])
            labels.count("node", node.name, "end", None, axis[: s["end"]])
            axes[dim] = axis[s["start"] : s["end"]]
    return Value(shape, tuple(axes))


def _select(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    dim = node.settings["dim"]
    labels.lock(inputs[0].axes[dim], f"{node.name} (select) takes one of it")
    return Value(shape, tuple(axis for d, axis in enumerate(inputs[0].axes) if d != dim))


def _along(*settings: str) -> Rule:
    """Dimensions along which places matter are locked, the others pass."""

    def rule(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
        dims: list[int] = []
        for name in settings:
            found = node.settings[name]
            dims += [d % len(shape) for d in (found if isinstance(found, tuple) else (found,))]
        axes: Axes = []
        for d, axis in enumerate(inputs[0].axes):
            if d in dims:
                labels.lock(axis, f"{node.name} ({node.op}) runs along it")
            axes.append(None if d in dims else axis)
        for other in inputs[1:]:
            for d in range(len(shape)):
                if d not in dims:
                    axes[d] = labels.same(axes[d], other.axes[d], f"{node.name} ({node.op}) mixes it")
                else:
                    labels.lock(other.axes[d], f"{node.name} ({node.op}) runs along it")
        return Value(shape, tuple(axes))

    return rule


def _pad(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    amounts, value = node.settings["pad"], inputs[0]
    axes = list(value.axes)
    for k in range(len(amounts) // 2):
        dim = len(shape) - 1 - k
        before, after = amounts[2 * k], amounts[2 * k + 1]
        axis = axes[dim]
        if (before == 0 and after == 0) or axis is None:
            axes[dim] = axis if before == 0 and after == 0 else None
            continue
        fixed = isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0
        if node.settings["mode"] != "constant" or not fixed:
            labels.lock(axis, f"{node.name} (pad) runs along it")
            axes[dim] = None
            continue
        left, right = labels.free(before), labels.free(after)
        labels.count("node", node.name, "pad", 2 * k, left)
        labels.count("node", node.name, "pad", 2 * k + 1, right)
        axes[dim] = np.concatenate([left, axis, right])
    return Value(shape, tuple(axes))


def _repeat(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    value, repeats = inputs[0], node.settings["repeats"]
    offset = len(shape) - len(value.shape)
    axes: Axes = [None] * offset
    for axis, times in zip(value.axes, repeats[offset:], strict=True):
        if isinstance(times, Size):
            labels.lock(axis, f"{node.name} (repeat) runs along it")
        axes.append(None if axis is None or isinstance(times, Size) else np.tile(axis, times))
    return Value(shape, tuple(axes))


def _repeat_interleave(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axes = list(inputs[0].axes)
    dim = node.settings["dim"]
    axis = axes[dim]
    axes[dim] = None if axis is None else np.repeat(axis, node.settings["repeats"])
    return Value(shape, tuple(axes))


def _index(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    value, indices, dims = inputs[0], inputs[1:], node.settings["dims"]
    reason = f"{node.name} (index) looks up places in it"
    for d in dims:
        labels.lock(value.axes[d], reason)
    for other in indices:
        labels.lock_all(other, reason)
    rank = max(len(other.shape) for other in indices)
    adjacent = dims == tuple(range(dims[0], dims[0] + len(dims)))
    at = dims[0] if adjacent else 0
    rest = [axis for d, axis in enumerate(value.axes) if d not in dims]
    return Value(shape, (*rest[:at], *[None] * rank, *rest[at:]))


def _pixel_shuffle(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axes = list(inputs[0].axes)
    axis, r = axes[-3], node.settings["upscale_factor"]
    axes[-3] = None if axis is None else labels.tie_all(axis.reshape(-1, r * r))
    return Value(shape, places_locked(labels, node, axes, 2))


def _pixel_unshuffle(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axes = list(inputs[0].axes)
    axis, r = axes[-3], node.settings["downscale_factor"]
    axes[-3] = None if axis is None else np.repeat(axis, r * r)
    return Value(shape, places_locked(labels, node, axes, 2))


def _places(n: int | None) -> Rule:
    """Pools and the like: every dimension but the last n passes; None: all but the first two."""

    def rule(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
        n_places = len(shape) - 2 if n is None else n
        return Value(shape, places_locked(labels, node, list(inputs[0].axes), n_places))

    return rule


def _item(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    return Value(shape, (None,) * len(shape))


def _take(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    return Value(shape, inputs[0].axes)


def _put(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    return elementwise(labels, node, inputs[:2], shape)


SHAPES: dict[str, Rule] = {
    "reshape": reshape,
    "flatten": reshape,
    "permute": _permute,
    "expand": _expand,
    "full": _full,
    "scalar": nothing,
    "arange": nothing,
    "item": _item,
    "concat": _concat,
    TAKE: _take,
    PUT: _put,
    "slice": _slice,
    "select": _select,
    "roll": _along("dims"),
    "flip": _along("dims"),
    "softmax": _along("dim"),
    "log_softmax": _along("dim"),
    "cumsum": _along("dim"),
    "gather": _along("dim"),
    "triu": _places(2),
    "tril": _places(2),
    "pad": _pad,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "index": _index,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "max_pool2d": _places(2),
    "avg_pool2d": _places(2),
    "adaptive_avg_pool2d": _places(2),
    "max_pool": _places(None),
    "avg_pool": _places(None),
    "adaptive_avg_pool": _places(None),
    "adaptive_max_pool": _places(None),
    "resize": _places(None),
    "instance_norm": _places(None),
}

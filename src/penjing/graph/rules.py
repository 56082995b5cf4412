"""How labels flow through each operation and each kind of layer. Whatever has no rule locks its inputs.

A rule takes the labels, the node, what is known of its inputs and the shape of its result, and says what is known of that.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from penjing.graph.labels import Axis, Edge, Labels, Split, Value
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import CONSTANTS, MODULE, Network, Node
from penjing.graph.ops import OPERATIONS
from penjing.graph.sizes import Size

Shape = tuple[int, ...]
Rule = Callable[[Labels, Node, list[Value], Shape], Value]
Axes = list[Axis]


def flow(labels: Labels, network: Network, node: Node, inputs: list[Value], shape: Shape) -> Value:
    """What is known of the result of an operation or a layer."""
    learned = all(value.learned for value in inputs)
    try:
        found = _flow(labels, network, node, inputs, shape)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a form that no rule was made for
        found = _opaque(labels, node, inputs, shape, f"{node.name} ({node.op}) is of an unknown form ({error!r})")
    return Value(shape, _several(labels, node, found.axes, shape), learned)


def _several(labels: Labels, node: Node, axes: Sequence[Axis], shape: Shape) -> tuple[Axis, ...]:
    """A single channel is none: dimensions of size 1 come and go, so it must stay."""
    kept: Axes = []
    for axis, size in zip(axes, shape, strict=True):
        if size == 1:
            labels.lock(axis, f"{node.path or node.name} ({node.op}) has only this one")
        kept.append(None if size == 1 else axis)
    return tuple(kept)


def _flow(labels: Labels, network: Network, node: Node, inputs: list[Value], shape: Shape) -> Value:
    if node.op == MODULE:
        layer = network.get_submodule(node.path)
        kind = kind_of(layer)
        rule = LAYERS.get(kind or "")
        if rule is not None:
            return rule(labels, node, inputs, shape, layer)
        if kind is not None and MODULES[kind].elementwise:
            return inputs[0]
        return _opaque(labels, node, inputs, shape, f"{node.path} ({kind or type(layer).__name__}) mixes channels")
    if node.op in RULES:
        return RULES[node.op](labels, node, inputs, shape)
    if OPERATIONS[node.op].elementwise:
        return _elementwise(labels, node, inputs, shape)
    return _opaque(labels, node, inputs, shape, f"{node.name} ({node.op}) mixes channels")


def _opaque(labels: Labels, node: Node, inputs: Sequence[Value], shape: Shape, reason: str) -> Value:
    for value in inputs:
        labels.lock_all(value, reason)
    return Value(shape, (None,) * len(shape))


def _elementwise(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axes: Axes = []
    for back in range(len(shape), 0, -1):
        size, axis, seen = shape[-back], None, False
        reason = f"{node.name} ({node.op}) combines it with something that has no channels to lose"
        for value in inputs:
            if back > len(value.shape) or (value.shape[-back] == 1 and size != 1):
                continue  # broadcast
            other = value.axes[-back]
            axis = labels.same(axis, other, reason) if seen else other
            seen = True
        axes.append(axis)
    return Value(shape, tuple(axes))


# --- shapes ------------------------------------------------------------------------------------------------------------


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


def _reshape(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    value = inputs[0]
    reason = f"{node.name} ({node.op}) mixes it with other dimensions"
    axes: Axes = [None] * len(shape)
    if 0 in value.shape:
        return _opaque(labels, node, inputs, shape, reason)
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


def _nothing(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    return Value(shape, (None,) * len(shape))


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
    return Value(shape, _places_locked(labels, node, axes, 2))


def _pixel_unshuffle(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axes = list(inputs[0].axes)
    axis, r = axes[-3], node.settings["downscale_factor"]
    axes[-3] = None if axis is None else np.repeat(axis, r * r)
    return Value(shape, _places_locked(labels, node, axes, 2))


def _places_locked(labels: Labels, node: Node, axes: Axes, n: int) -> tuple[Axis, ...]:
    """The last n dimensions are places: what is there stays."""
    for axis in axes[len(axes) - n :]:
        labels.lock(axis, f"{node.path or node.name} ({node.op}) takes it for places")
    return (*axes[: len(axes) - n], *[None] * n)


def _places(n: int | None) -> Rule:
    """Pools and the like: every dimension but the last n passes; None: all but the first two."""

    def rule(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
        n_places = len(shape) - 2 if n is None else n
        return Value(shape, _places_locked(labels, node, list(inputs[0].axes), n_places))

    return rule


# --- sums --------------------------------------------------------------------------------------------------------------


def _contract(labels: Labels, node: Node, operands: Sequence[tuple[int, int, Axis]], reason: str) -> None:
    """Sum over one dimension of several inputs: (position among the node's inputs, dimension, axis); -1: a layer's own."""
    axes = [axis for _, _, axis in operands]
    if any(axis is None for axis in axes):
        for axis in axes:
            labels.lock(axis, reason)
        return
    for axis in axes[1:]:
        assert axes[0] is not None and axis is not None
        labels.tie(axes[0], axis)
    for position, dim, axis in operands:
        if position >= 0 and axis is not None:
            labels.edges.append(_edge(node, position, dim, axis))


def _edge(node: Node, position: int, dim: int, axis: np.ndarray) -> Edge:
    return Edge(node.name, position, dim, axis)


def _attend(labels: Labels, inputs: Sequence[Value]) -> None:
    """Note the channels of results that are multiplied by results: those of attention."""
    if sum(not value.learned for value in inputs) > 1:
        labels.attended += [axis for value in inputs for axis in value.axes if axis is not None]


def _matmul(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    left, right = inputs
    reason = f"{node.name} (matmul) sums over it together with something that has no channels to lose"
    if len(left.shape) < 2 or len(right.shape) < 2:
        return _opaque(labels, node, inputs, shape, reason)
    _attend(labels, inputs)
    n, m = len(left.shape), len(right.shape)
    _contract(labels, node, [(0, n - 1, left.axes[-1]), (1, m - 2, right.axes[-2])], reason)
    lead = _elementwise(
        labels,
        node,
        [Value(left.shape[:-2], left.axes[:-2]), Value(right.shape[:-2], right.axes[:-2])],
        shape[:-2],
    )
    _produce(labels, left, left.axes[-2])
    _produce(labels, right, right.axes[-1])
    return Value(shape, (*lead.axes, left.axes[-2], right.axes[-1]))


def _owner(labels: Labels, value: Value) -> str:
    """The path of the layer whose parameter this is; of the model's own parameters the name."""
    for site in labels.sites:
        if any(axis is site.labels for axis in value.axes):
            return site.path.partition(".parametrizations.")[0] or site.name
    return ""


def _produce(labels: Labels, value: Value, axis: Axis) -> None:
    """Channels come into being: rows of a weight. Those of a constant of the graph are not a layer's."""
    if axis is not None and value.learned and not f"{(owner := _owner(labels, value))}.".startswith(CONSTANTS):
        labels.produced.append((owner, axis))


def _einsum(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    equation = node.settings["equation"]
    reason = f"{node.name} (einsum {equation}) combines it with something that has no channels to lose"
    if "." in equation or "->" not in equation:
        return _opaque(labels, node, inputs, shape, reason)
    _attend(labels, inputs)
    left, right = equation.split("->")
    where: dict[str, list[tuple[int, int, Axis]]] = {}
    for position, (term, value) in enumerate(zip(left.split(","), inputs, strict=True)):
        for dim, letter in enumerate(term):
            where.setdefault(letter, []).append((position, dim, value.axes[dim]))
    axes: dict[str, Axis] = {}
    for letter, operands in where.items():
        if letter not in right:
            _contract(labels, node, operands, reason)
            continue
        axis = operands[0][2]
        for _, _, other in operands[1:]:
            axis = labels.same(axis, other, reason)
        axes[letter] = axis
    for term, value in zip(left.split(","), inputs, strict=True):
        for letter, axis in zip(term, value.axes, strict=True):
            if letter in right:
                _produce(labels, value, axis)
    return Value(shape, tuple(axes[letter] for letter in right))


def _attention(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    query, key, value = inputs[:3]
    reason = f"{node.name} (attention) has no channels to lose there"
    _attend(labels, inputs[:3])
    rank = len(shape)
    if rank < 3 or {len(v.shape) for v in inputs[:3]} != {rank}:
        return _opaque(labels, node, inputs, shape, reason)
    operands = [(0, rank - 1, query.axes[-1]), (1, rank - 1, key.axes[-1])]
    _contract(labels, node, operands, reason)
    for place in (query.axes[-2], key.axes[-2], value.axes[-2]):
        labels.lock(place, reason)
    axes: Axes = []
    for d in range(rank - 2):
        axis = query.axes[d]
        for other in (key, value):
            times = query.shape[d] // other.shape[d] if other.shape[d] else 1
            theirs = other.axes[d]
            if other.shape[d] == 1 and query.shape[d] != 1:
                labels.lock(axis, reason)
                axis = None
            else:
                axis = labels.same(axis, None if theirs is None else np.repeat(theirs, times), reason)
        axes.append(axis)
    for mask in inputs[3:]:
        for back in range(1, len(mask.shape) + 1):
            d = rank - back
            if d >= rank - 2:
                labels.lock(mask.axes[-back], reason)
            elif mask.shape[-back] != 1:
                axes[d] = labels.same(axes[d], mask.axes[-back], reason)
    return Value(shape, (*axes, None, value.axes[-1]))


def _linear_on(
    labels: Labels, node: Node, x: Value, weight: Value, bias: Value | None, shape: Shape, where: str
) -> Value:
    _contract(labels, node, [(0, len(x.shape) - 1, x.axes[-1]), (-1, 1, weight.axes[1])], f"{where} reads all of it")
    out = weight.axes[0]
    if bias is not None:
        out = labels.same(out, bias.axes[0], f"the bias of {where} stays") if len(bias.shape) == 1 else out
    return Value(shape, (*x.axes[:-1], out))


def _linear(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    _attend(labels, inputs[:2])
    x, weight = inputs[:2]
    found = _linear_on(labels, node, x, weight, inputs[2] if len(inputs) > 2 else None, shape, node.name)
    _produce(labels, weight, weight.axes[0])
    return found


def _convolution_on(
    labels: Labels,
    node: Node,
    x: Value,
    weight: Value,
    bias: Value | None,
    shape: Shape,
    groups: int,
    transposed: bool,
    where: str,
) -> Value:
    """weight (out, in / groups, kernel ...), transposed (in, out / groups, kernel ...)."""
    for axis in weight.axes[2:]:
        labels.lock(axis, f"it is a kernel of {where}")
    if groups == 1:
        inn, out = (weight.axes[0], weight.axes[1]) if transposed else (weight.axes[1], weight.axes[0])
        _contract(labels, node, [(0, 1, x.axes[1]), (-1, 0, inn)], f"{where} reads all of it")
    else:
        inn, out = _grouped(labels, node, x.axes[1], weight, groups, transposed, where)
    if bias is not None:
        out = labels.same(out, bias.axes[0], f"the bias of {where} stays")
    return Value(shape, _places_locked(labels, node, [x.axes[0], out, *x.axes[2:]], len(shape) - 2))


def _grouped(
    labels: Labels, node: Node, read: Axis, weight: Value, groups: int, transposed: bool, where: str
) -> tuple[Axis, Axis]:
    """Whole groups go, or the same channels of every group, as `Labels.choices` says."""
    first, second = weight.axes[0], weight.axes[1]  # the whole dimension, and the one that counts within a group
    per_first, per_second = weight.shape[0] // groups, weight.shape[1]
    if read is None:
        labels.lock(first if transposed else second, f"{where} reads all of it")
    n_read = per_first if transposed else per_second
    n_out = per_second if transposed else per_first
    if (first is None and weight.shape[0] > 1) or (second is None and per_second > 1):
        for axis in (read, first, second):
            labels.lock(axis, f"the weight of {where} is computed and cannot lose channels")
        return read, None
    whole = first if first is not None else labels.free(weight.shape[0])
    inside = second
    key = (node.name, -1)
    options = (0, 1) if n_read > 1 and n_out > 1 else (0,)
    chosen = labels.choices.get(key, 0 if len(options) == 1 or groups >= n_read else 1)
    if chosen == 0:  # whole groups: labels (groups,)
        each = labels.tie_all(whole.reshape(groups, per_first))
        labels.lock(inside, f"{where} is a grouped convolution that loses whole groups")
        if read is not None:
            labels.tie(labels.tie_all(read.reshape(groups, n_read)), each)
            labels.edges.append(_edge(node, 0, 1, read))
        else:
            labels.lock(each, f"{where} reads something that has no channels to lose")
        out = np.repeat(each, n_out)
        marked = each
    else:
        rows = labels.tie_all(np.moveaxis(whole.reshape(groups, per_first), 0, 1))  # (per_first,)
        inner = inside if inside is not None else labels.free(per_second)
        inn, outward = (rows, inner) if transposed else (inner, rows)
        if read is not None:
            labels.tie(labels.tie_all(np.moveaxis(read.reshape(groups, n_read), 0, 1)), inn)
            labels.edges.append(_edge(node, 0, 1, read))
        out = np.tile(outward, groups)
        marked = outward
    if len(options) > 1:
        labels.splits.append(Split(key, options, chosen, marked))
    counted = each if chosen == 0 else None
    if node.op == MODULE:
        labels.count("layer", node.path, "groups", None, counted)
    else:
        labels.count("node", node.name, "groups", None, counted)
    return read, out


def _convolution(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    s = node.settings
    bias = inputs[2] if len(inputs) > 2 else None
    weight = inputs[1]
    out = weight.axes[1 if s["transposed"] else 0]
    _produce(labels, weight, out)
    return _convolution_on(labels, node, inputs[0], weight, bias, shape, s["groups"], s["transposed"], node.name)


def _reduce(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    value = inputs[0]
    rank = len(value.shape)
    dims = {d % rank for d in node.settings["dims"]}
    for d in dims:
        axis = value.axes[d]
        if axis is None:
            continue
        if node.op == "sum" or (
            node.op == "vector_norm" and node.settings["order"] > 0 and math.isfinite(node.settings["order"])
        ):
            labels.edges.append(_edge(node, 0, d, axis))
        elif node.op in ("mean", "variance"):
            labels.statistics.append(_edge(node, 0, d, axis))
        else:
            labels.lock(axis, f"{node.name} ({node.op}) runs along it")
    keep = node.settings["keepdim"]
    axes = [None if d in dims else axis for d, axis in enumerate(value.axes) if keep or d not in dims]
    return Value(shape, tuple(axes))


def _weight_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    dim = node.settings["dim"] % len(shape)
    reason = f"{node.name} (weight norm) takes the norm of the weight along it"
    for value in inputs:
        labels.lock_all(value, reason, but=[dim])
    axis = labels.same(inputs[0].axes[dim], inputs[1].axes[dim], reason)
    return Value(shape, tuple(axis if d == dim else None for d in range(len(shape))))


def _embedding(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    indices, weight = inputs
    labels.lock(weight.axes[0], "its rows are looked up by number")
    _produce(labels, weight, weight.axes[1])
    labels.lock_all(indices, "they are places, not channels")
    return Value(shape, (*[None] * len(indices.shape), weight.axes[1]))


def _last_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    """Layer and RMS norm as operations: statistics over the last dimension."""
    x = inputs[0]
    n = len(node.settings["shape"])
    if n != 1:
        reason = f"{node.name} ({node.op}) takes statistics over {n} dimensions"
        for value in inputs[1:]:
            labels.lock_all(value, reason)
        return Value(shape, _places_locked(labels, node, list(x.axes), n))
    axis = x.axes[-1]
    for value in inputs[1:]:
        axis = labels.same(axis, value.axes[-1], f"{node.name} scales it")
    if axis is not None:
        labels.statistics.append(_edge(node, 0, len(shape) - 1, axis))
        labels.count("node", node.name, "shape", 0, axis)
    return Value(shape, (*x.axes[:-1], axis))


def _group_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axis = inputs[0].axes[1]
    for value in inputs[1:]:
        axis = labels.same(axis, value.axes[0], f"{node.name} scales it")
    axis = _whole_groups(labels, node, axis, node.settings["groups"], len(shape))
    return Value(shape, _places_locked(labels, node, [inputs[0].axes[0], axis, *inputs[0].axes[2:]], len(shape) - 2))


def _whole_groups(labels: Labels, node: Node, axis: Axis, groups: int, rank: int) -> Axis:
    if axis is None:
        return None
    if groups == 1:
        labels.statistics.append(_edge(node, 0, 1, axis))
        return axis
    each = labels.tie_all(axis.reshape(groups, -1))
    owner = ("layer", node.path, "num_groups") if node.op == MODULE else ("node", node.name, "groups")
    labels.count(owner[0], owner[1], owner[2], None, each)  # type: ignore[arg-type]
    return axis


def _batch_norm(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    axis = inputs[0].axes[1]
    for value in inputs[1:]:
        axis = labels.same(axis, value.axes[0], f"{node.name} scales it")
    return Value(shape, (inputs[0].axes[0], axis, *inputs[0].axes[2:]))


def _item(labels: Labels, node: Node, inputs: list[Value], shape: Shape) -> Value:
    return Value(shape, (None,) * len(shape))


RULES: dict[str, Rule] = {
    "reshape": _reshape,
    "flatten": _reshape,
    "permute": _permute,
    "expand": _expand,
    "full": _full,
    "scalar": _nothing,
    "arange": _nothing,
    "item": _item,
    "concat": _concat,
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
    "matmul": _matmul,
    "einsum": _einsum,
    "attention": _attention,
    "linear": _linear,
    "convolution": _convolution,
    "mean": _reduce,
    "sum": _reduce,
    "amax": _reduce,
    "amin": _reduce,
    "variance": _reduce,
    "vector_norm": _reduce,
    "logsumexp": _reduce,
    "weight_norm": _weight_norm,
    "embedding": _embedding,
    "layer_norm": _last_norm,
    "rms_norm": _last_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
}


# --- layers ------------------------------------------------------------------------------------------------------------

LayerRule = Callable[[Labels, Node, list[Value], Shape, nn.Module], Value]


def _own(labels: Labels, node: Node, layer: nn.Module, name: str) -> Value | None:
    return labels.tensor(node.path, name) if getattr(layer, name, None) is not None else None


def _linear_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight = labels.tensor(node.path, "weight")
    found = _linear_on(labels, node, inputs[0], weight, _own(labels, node, layer, "bias"), shape, node.path)
    if weight.axes[0] is not None:
        labels.produced.append((node.path, weight.axes[0]))
    labels.count("layer", node.path, "out_features", None, weight.axes[0])
    labels.count("layer", node.path, "in_features", None, weight.axes[1])
    return found


def _conv_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight, bias = labels.tensor(node.path, "weight"), _own(labels, node, layer, "bias")
    groups, transposed = int(layer.groups), bool(layer.transposed)  # type: ignore[arg-type]
    x = inputs[0]
    found = _convolution_on(labels, node, x, weight, bias, shape, groups, transposed, node.path)
    produced = weight.axes[1 if transposed else 0]
    if produced is not None and not (groups > 1 and groups == int(layer.in_channels)):  # type: ignore[arg-type]
        labels.produced.append((node.path, produced))
    labels.count("layer", node.path, "in_channels", None, x.axes[1])
    labels.count("layer", node.path, "out_channels", None, found.axes[1])
    return found


def _batch_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    axis = inputs[0].axes[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        own = _own(labels, node, layer, name)
        if own is not None:
            axis = labels.same(axis, own.axes[0], f"{node.path} scales it")
    labels.count("layer", node.path, "num_features", None, axis)
    axes = list(inputs[0].axes)
    axes[1] = axis
    return Value(shape, tuple(axes))


def _last_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    x = inputs[0]
    n = len(layer.normalized_shape)  # type: ignore[arg-type]
    own = [o for o in (_own(labels, node, layer, name) for name in ("weight", "bias")) if o is not None]
    if n != 1:
        for value in own:
            labels.lock_all(value, f"{node.path} takes statistics over {n} dimensions")
        return Value(shape, _places_locked(labels, node, list(x.axes), n))
    axis = x.axes[-1]
    for value in own:
        axis = labels.same(axis, value.axes[0], f"{node.path} scales it")
    if axis is not None:
        labels.statistics.append(_edge(node, 0, len(shape) - 1, axis))
        labels.count("layer", node.path, "normalized_shape", 0, axis)
    return Value(shape, (*x.axes[:-1], axis))


def _group_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    axis = inputs[0].axes[1]
    for name in ("weight", "bias"):
        own = _own(labels, node, layer, name)
        if own is not None:
            axis = labels.same(axis, own.axes[0], f"{node.path} scales it")
    axis = _whole_groups(labels, node, axis, int(layer.num_groups), len(shape))  # type: ignore[arg-type]
    labels.count("layer", node.path, "num_channels", None, axis)
    return Value(shape, _places_locked(labels, node, [inputs[0].axes[0], axis, *inputs[0].axes[2:]], len(shape) - 2))


def _embedding_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight = labels.tensor(node.path, "weight")
    labels.lock(weight.axes[0], "its rows are looked up by number")
    labels.lock_all(inputs[0], "they are places, not channels")
    if weight.axes[1] is not None:
        labels.produced.append((node.path, weight.axes[1]))
    labels.count("layer", node.path, "embedding_dim", None, weight.axes[1])
    return Value(shape, (*[None] * len(inputs[0].shape), weight.axes[1]))


def _prelu_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    weight = labels.tensor(node.path, "weight")
    axes = list(inputs[0].axes)
    if weight.axes[0] is not None:
        axes[1] = labels.same(axes[1], weight.axes[0], f"{node.path} scales it")
        labels.count("layer", node.path, "num_parameters", None, axes[1])
    return Value(shape, tuple(axes))


def _flatten_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    return _reshape(labels, node, inputs, shape)


def _softmax_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    dim = int(layer.dim) % len(shape)  # type: ignore[arg-type]
    labels.lock(inputs[0].axes[dim], f"{node.path} runs along it")
    return Value(shape, tuple(None if d == dim else axis for d, axis in enumerate(inputs[0].axes)))


def _pool_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    n = 1 if kind_of(layer) in ("AdaptiveAvgPool1d", "MaxPool1d", "InstanceNorm1d") else 2
    return Value(shape, _places_locked(labels, node, list(inputs[0].axes), n))


def _pixel_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    axes = list(inputs[0].axes)
    axis, r = axes[-3], int(layer.upscale_factor)  # type: ignore[arg-type]
    axes[-3] = None if axis is None else labels.tie_all(axis.reshape(-1, r * r))
    return Value(shape, _places_locked(labels, node, axes, 2))


def _instance_norm_layer(labels: Labels, node: Node, inputs: list[Value], shape: Shape, layer: nn.Module) -> Value:
    n = len(shape) - 2
    found = _batch_norm_layer(labels, node, inputs, shape, layer)
    return Value(shape, _places_locked(labels, node, list(found.axes), n))


LAYERS: dict[str, LayerRule] = {
    "Linear": _linear_layer,
    **{f"Conv{n}d": _conv_layer for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": _conv_layer for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": _batch_norm_layer for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": _instance_norm_layer for n in (1, 2)},
    "LayerNorm": _last_norm_layer,
    "RMSNorm": _last_norm_layer,
    "GroupNorm": _group_norm_layer,
    "Embedding": _embedding_layer,
    "PReLU": _prelu_layer,
    "Flatten": _flatten_layer,
    "Softmax": _softmax_layer,
    "LogSoftmax": _softmax_layer,
    "PixelShuffle": _pixel_layer,
    **dict.fromkeys(
        ("MaxPool1d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"),
        _pool_layer,
    ),
}

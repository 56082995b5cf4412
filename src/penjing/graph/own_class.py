"""A smaller network put back into the user's own class.

The graph says what changed: tensors have other shapes, constants other values. In a copy of the user's model the tensors are
replaced, the layers' sizes set, and where a forward method took a constant from an attribute (`num_heads`, `head_dim`), the
attribute of that value is set to the new one. Whether that was right is not argued but checked: both must compute the same in
float64. Where no such setting is found, the `Network` itself is the small network.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from penjing.errors import SurgeryError
from penjing.graph.network import MODULE, TENSOR, Network, Node
from penjing.graph.trace import answer_of, evaluating, in_order

TOLERANCE = 1e-9
_MAX_TRIALS = 12
_NETWORK_FAILS = "the network cannot be computed for inputs of these sizes"
_TORCH = ("torch.nn.", "torch.ao.")


@dataclass(frozen=True)
class _Setting:
    """An attribute of a layer of the user's and what it becomes."""

    path: str
    name: str
    position: int | None
    before: int
    after: int


def into_own_class(
    model: nn.Module, whole: Network, small: Network, inputs: Sequence[Tensor] | Mapping[str, Tensor]
) -> nn.Module:
    """A copy of the user's model that computes what the small network computes.

    Args:
        model: the user's model, not modified.
        whole: the network traced from it.
        small: one cut from `whole`, or loaded from the file of one: the same nodes with other constants.
        inputs: example inputs as they were traced.
    Returns: a module of the model's class with the small network's tensors.
    Raises: SurgeryError: the class computes its sizes in a way that attributes do not change, with the reason.
    """
    if len(whole.nodes) != len(small.nodes) or any(a.op != b.op for a, b in zip(whole.nodes, small.nodes, strict=True)):
        raise SurgeryError(
            "surgery: the small network's steps are not those of the model, so its class cannot hold it."
        )
    layers = list(_layer_settings(model, whole, small))
    near = list(_matching_settings(model, whole, small, above=False))
    far = list(_matching_settings(model, whole, small, above=True))

    def attempt(settings: list[_Setting]) -> nn.Module | str:
        candidate = copy.deepcopy(model)
        _take_tensors_(candidate, whole, small)
        for setting in [*layers, *settings]:
            _set_(candidate.get_submodule(setting.path), setting)
        difference = _difference(candidate, small, inputs)
        if isinstance(difference, str):
            return difference
        return candidate if difference <= TOLERANCE else f"it computes something else, by {difference:.2g} relative"

    reason = ""
    for number, settings in enumerate(_trials(model, near, far)):
        if number == _MAX_TRIALS:
            break
        found = attempt(settings)
        if isinstance(found, str):
            reason = reason or found
            continue
        for kind in _kinds(model, settings):  # a number that is the same by accident stays as it was
            fewer = [s for s in settings if _kind(model, s) != kind]
            other = attempt(fewer)
            if not isinstance(other, str):
                found, settings = other, fewer
        return found
    raise SurgeryError(
        f"surgery: {type(model).__name__} cannot hold the smaller network: {reason}. Its forward method takes a size from "
        "somewhere that is no attribute of the layer. The network as a graph is sound."
    )


def _trials(model: nn.Module, near: list[_Setting], far: list[_Setting]) -> Iterator[list[_Setting]]:
    """Which attributes to set: those of the layers that use a constant, none, those of the layers around too; then fewer."""
    yield near
    if near:
        yield []
    if far != near:
        yield far
    for kind in _kinds(model, near):
        yield [s for s in near if _kind(model, s) != kind]
    for kind in _kinds(model, near):
        yield [s for s in near if _kind(model, s) == kind]


def _kind(model: nn.Module, setting: _Setting) -> tuple[type, str]:
    return type(model.get_submodule(setting.path)), setting.name


def _kinds(model: nn.Module, settings: list[_Setting]) -> list[tuple[type, str]]:
    return list(dict.fromkeys(_kind(model, s) for s in settings))


def _layer_settings(model: nn.Module, whole: Network, small: Network) -> Iterator[_Setting]:
    """The sizes that layers of torch.nn hold as attributes."""
    for path, layer in whole.layers().items():
        other = small.get_submodule(path)
        mine = dict(model.named_modules(remove_duplicate=False)).get(path)
        for name, before in vars(layer).items():
            after = vars(other).get(name)
            if mine is None or name.startswith("_") or not hasattr(mine, name):
                continue
            if isinstance(before, int) and isinstance(after, int) and before != after:
                yield _Setting(path, name, None, before, after)
            elif isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after):
                for position, (b, a) in enumerate(zip(before, after, strict=True)):
                    if isinstance(b, int) and isinstance(a, int) and a != b:
                        yield _Setting(path, name, position, b, a)


def _matching_settings(model: nn.Module, whole: Network, small: Network, *, above: bool) -> Iterator[_Setting]:
    """Attributes of the user's layers that are a constant which changed in their forward method."""
    modules = dict(model.named_modules(remove_duplicate=False))
    changed: dict[str, dict[int, set[int]]] = {}
    kept: dict[str, set[int]] = {}
    for node, other in zip(whole.nodes, small.nodes, strict=True):
        scopes = [node.path if node.op == MODULE else node.scope]
        while above and scopes[-1]:
            scopes.append(scopes[-1].rpartition(".")[0])
        for before, after in _constants(node, other):
            for scope in scopes:
                if before != after:
                    changed.setdefault(scope, {}).setdefault(before, set()).add(after)
                else:
                    kept.setdefault(scope, set()).add(before)
    for scope, values in changed.items():
        layer = modules.get(scope)
        if layer is None or (
            type(layer).__module__.startswith(_TORCH[0]) and not isinstance(layer, nn.MultiheadAttention)
        ):
            continue
        for name, value in vars(layer).items():
            if name.startswith("_") or isinstance(value, bool):
                continue
            if isinstance(value, int) and len(values.get(value, ())) == 1:
                yield _Setting(scope, name, None, value, next(iter(values[value])))
            elif isinstance(value, (tuple, list)):
                for position, item in enumerate(value):
                    if isinstance(item, int) and len(values.get(item, ())) == 1:
                        yield _Setting(scope, name, position, item, next(iter(values[item])))


def _constants(node: Node, other: Node) -> Iterator[tuple[int, int]]:
    """Pairs of whole numbers in two nodes' settings, and of the ends of slices their lengths."""
    for name, before in node.settings.items():
        after = other.settings[name]
        for b, a in zip(*((v if isinstance(v, tuple) else (v,)) for v in (before, after)), strict=False):
            if isinstance(b, int) and isinstance(a, int) and not isinstance(b, bool):
                yield b, a
    if node.op == "slice" and all(isinstance(n.settings[k], int) for n in (node, other) for k in ("start", "end")):
        lengths = [n.settings["end"] - n.settings["start"] for n in (node, other)]
        yield lengths[0], lengths[1]


def _take_tensors_(model: nn.Module, whole: Network, small: Network) -> None:
    """Put the small network's tensors under their paths; what was one object stays one."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((module, name))
    modules = dict(model.named_modules(remove_duplicate=False))
    places = {(path, name) for path, layer in whole.layers().items() for name in _names(layer)}
    places |= {(n.path.rpartition(".")[0], n.path.rpartition(".")[2]) for n in whole.nodes if n.op == TENSOR}
    taken: dict[int, tuple[Tensor, Tensor]] = {}  # old and new, by the old one's id
    for path, name in sorted(places):
        holder = modules.get(path)
        old = None if holder is None else holder._parameters.get(name, holder._buffers.get(name))
        if old is not None:
            taken.setdefault(id(old), (old, getattr(small.get_submodule(path), name).detach().clone()))
    for key, (old, value) in taken.items():
        new = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
        for module, name in owners[key]:
            table: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
            table[name] = new


def _names(layer: nn.Module) -> list[str]:
    found = [*layer._parameters, *layer._buffers]
    if "parametrizations" in layer._modules:
        found += list(layer.parametrizations)  # type: ignore[arg-type]
    return found


def _set_(layer: nn.Module, setting: _Setting) -> None:
    if setting.position is None:
        setattr(layer, setting.name, setting.after)
        return
    value = getattr(layer, setting.name)
    items = list(value)
    items[setting.position] = setting.after
    setattr(layer, setting.name, items if isinstance(value, list) else tuple(items))


def _difference(candidate: nn.Module, small: Network, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> float | str:
    """The largest relative difference in float64, or why it cannot be computed.

    A forward method that computes some of it in float32 whatever it is given is compared in the model's own precision; it takes
    the same steps as the network, so there the answers must be the same bits.
    """
    longer = {symbol: 2 * size + 1 for symbol, size in small.hints.items()}
    found: float | str = 0.0
    for sizes in ({}, longer) if longer else ({},):
        found = _compare(candidate, small, inputs, torch.float64, sizes)
        if isinstance(found, float) and TOLERANCE < found < 1e-5:
            found = 0.0 if _compare(candidate, small, inputs, None, sizes) == 0.0 else found
        if found == _NETWORK_FAILS and sizes:
            return 0.0  # neither can be longer
        if isinstance(found, str) or not found <= TOLERANCE:
            return found
    return found


def _compare(
    candidate: nn.Module,
    small: Network,
    inputs: Sequence[Tensor] | Mapping[str, Tensor],
    dtype: torch.dtype | None,
    sizes: Mapping[str, int],
) -> float | str:
    args, kwargs = in_order(candidate, inputs)
    drawn = [x.cpu() for x in small.random_inputs(2, torch.Generator().manual_seed(0), dtype, sizes)]
    if len(drawn) != len(args) + len(kwargs):
        return "it takes other inputs"
    mine, theirs = copy.deepcopy(candidate).cpu(), copy.deepcopy(small).cpu()
    if dtype is not None:
        mine, theirs = mine.to(dtype), theirs.to(dtype)
    args = tuple(drawn[: len(args)])
    kwargs = dict(zip(kwargs, drawn[len(args) :], strict=True))
    try:
        with torch.no_grad(), evaluating(theirs):
            expected = pytree.tree_leaves(theirs(*drawn))
    except Exception:
        return _NETWORK_FAILS
    try:
        with torch.no_grad(), evaluating(mine):
            answers = [pytree.tree_leaves(answer_of(mine, args, kwargs)), expected]
    except Exception as error:  # whatever a forward method may raise on sizes that it did not expect
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    worst = 0.0
    pairs = zip(*([x for x in leaves if isinstance(x, Tensor)] for leaves in answers), strict=True)
    for one, other in pairs:
        if one.shape != other.shape:
            return f"its answer has the shape {tuple(one.shape)}"
        if not one.numel() or not one.is_floating_point():
            continue
        difference = float((one - other).abs().max()) / (float(other.abs().max()) or 1.0)
        worst = difference if difference != difference else max(worst, difference)
    return worst

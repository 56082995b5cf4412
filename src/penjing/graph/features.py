"""What layers inside a network answer, by the names that users know, without rewriting it.

In a `Network` a name is a layer's path, the path of a whole block ("layer2.1", what its last operation gives), or a node's
name. In any other module it is the path of a submodule, which is given a forward hook.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from penjing.errors import SettingError, nearest
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT, Network


@contextlib.contextmanager
def features(module: nn.Module, names: Iterable[str], where: str = "features") -> Iterator[dict[str, Tensor]]:
    """Within this context, every call of the module fills a dictionary with what the named layers gave, by name.

    Gradients flow through what is found there. Of a layer that is called several times it is the last call's.
    Raises: SettingError: no such layer, with the nearest names.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda value: found.__setitem__(name, value)

    names = list(dict.fromkeys(names))
    with contextlib.ExitStack() as stack:
        if isinstance(module, Network):
            by_node: dict[str, list[str]] = {}
            for name in names:
                by_node.setdefault(node_named(module, name, where), []).append(name)

            def keep_all(several: list[str]) -> Callable[[Tensor], None]:
                return lambda value: found.update(dict.fromkeys(several, value))

            stack.enter_context(module.seen({node: keep_all(several) for node, several in by_node.items()}))
        else:
            modules = dict(module.named_modules())
            for name in names:
                if name not in modules:
                    raise SettingError(f'{where}: there is no layer "{name}"; {nearest(name, list(modules)[1:])}.')
                stack.callback(modules[name].register_forward_hook(_hook(keep(name))).remove)
        yield found


def _hook(keep: Callable[[Tensor], None]) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        first = result[0] if isinstance(result, (tuple, list)) else result
        if not isinstance(first, Tensor):
            return None
        keep(first)
        if first is result:
            return first.clone()  # the next layer may change its input in place
        return type(result)((first.clone(), *result[1:])) if type(result) in (tuple, list) else None

    return hook


def node_named(network: Network, name: str, where: str = "features") -> str:
    """The node whose result a name means: a node, a layer, or the last node of a block.

    Raises: SettingError: there is none, with the nearest names.
    """
    nodes = [node for node in network.nodes if node.op not in (INPUT, EXIT, OUTPUT)]
    places = {node.name: node.path if node.op == MODULE else node.scope for node in nodes}
    inside = [n for n, place in places.items() if place == name or place.startswith(f"{name}.")]
    if inside:
        return inside[-1]
    if name in places:
        return name
    raise SettingError(f'{where}: there is no layer "{name}"; {nearest(name, layer_names(network))}.')


def layer_names(module: nn.Module) -> list[str]:
    """All paths that `features` understands: layers and blocks, in order of computation."""
    if not isinstance(module, Network):
        return [name for name, _ in module.named_modules() if name]
    last: dict[str, int] = {}
    for position, node in enumerate(module.nodes):
        place = node.path if node.op == MODULE else node.scope
        parts = place.split(".") if place else []
        for depth in range(1, len(parts) + 1):
            last[".".join(parts[:depth])] = position
    return sorted(last, key=lambda name: (last[name], name))


def layers_like(module: nn.Module, pattern: str, where: str = "features") -> list[str]:
    """The names that a pattern means, in order: "*" stands for anything within a part of a path, "encoder.layer.*".

    Raises: SettingError: none.
    """
    form = re.compile(r"[^.]+".join(re.escape(part) for part in pattern.split("*")))
    names = layer_names(module)
    found = [name for name in names if form.fullmatch(name)]
    if not found:
        raise SettingError(f'{where}: no layer is like "{pattern}"; {nearest(pattern, names)}.')
    return found

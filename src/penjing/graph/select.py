"""One language to choose layers, in every stage: names, globs and types.

"features.3"        the layer of that name
"features.*"        a glob over names (* matches dots too)
"type:Conv2d"       every layer of that torch.nn class; a glob too: "type:Conv*"
"!stem"             takes out what an earlier pattern put in; first in the list, it starts from all layers
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from penjing.errors import SettingError, nearest
from penjing.graph.modules import kind_of


def select(layers: Iterable[tuple[str, nn.Module]], patterns: Sequence[str], where: str = "layers") -> list[str]:
    """The names that the patterns choose, in the order of `layers`.

    Args:
        layers: (name, module) pairs to choose from.
        patterns: as in the module's docstring, read from left to right.
        where: the setting's name, for the error.
    Raises: SettingError: a pattern that matches nothing, with the nearest names.
    """
    named = list(layers)
    chosen: set[str] = {name for name, _ in named} if patterns and patterns[0].startswith("!") else set()
    for pattern in patterns:
        body = pattern.removeprefix("!")
        if body.startswith("type:"):
            found = {name for name, module in named if fnmatchcase(_type_name(module), body.removeprefix("type:"))}
            known: set[str] = {f"type:{_type_name(module)}" for _, module in named}
        else:
            found = {name for name, _ in named if fnmatchcase(name, body)}
            known = {name for name, _ in named}
        if not found:
            raise SettingError(f'{where}: no layer matches "{pattern}"; {nearest(body, known)}.')
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    return [name for name, _ in named if name in chosen]


def _type_name(module: nn.Module) -> str:
    return kind_of(module) or type(module).__name__

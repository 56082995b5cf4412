"""Sizes known only when the network runs: the number of samples, the length of a sequence, and what follows from them."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from penjing.errors import TraceError

BATCH = "batch"
"""The symbol of every input's first dimension."""

_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "min": lambda a, b: a if a <= b else b,
    "max": lambda a, b: a if a >= b else b,
}
FUNCTIONS = tuple(_FUNCTIONS)
"""Names of the functions in a `Size`. Their order is the file format: only append."""
MAX_TOKENS = 64


@dataclass(frozen=True)
class Size:
    """A whole number computed from symbols, in postfix order: ("s1", 4, "//", 1, "+") is s1 // 4 + 1.

    Attributes:
        tokens: whole numbers, names of symbols, names of functions of two numbers.
    """

    tokens: tuple[int | str, ...]

    def __post_init__(self) -> None:
        depth = 0
        for token in self.tokens:
            depth += -1 if token in _FUNCTIONS else 1
            if depth < 1:
                break
        if depth != 1 or len(self.tokens) > MAX_TOKENS:
            raise TraceError(f"graph: {self.tokens} is no size in postfix order of at most {MAX_TOKENS} parts.")

    @property
    def symbols(self) -> set[str]:
        """The symbols that it depends on."""
        return {token for token in self.tokens if isinstance(token, str) and token not in _FUNCTIONS}

    def value(self, symbols: Mapping[str, Any]) -> Any:
        """The number, given the symbols'. Raises: TraceError: a symbol without a value, or a division by zero."""
        stack: list[Any] = []
        try:
            for token in self.tokens:
                if token in _FUNCTIONS:
                    right, left = stack.pop(), stack.pop()
                    stack.append(_FUNCTIONS[token](left, right))
                else:
                    stack.append(symbols[token] if isinstance(token, str) else token)
        except (KeyError, ZeroDivisionError) as error:
            raise TraceError(f"graph: the size {self} cannot be computed ({error!r}).") from None
        return stack[0]

    def __str__(self) -> str:
        stack: list[str] = []
        for token in self.tokens:
            if token in _FUNCTIONS:
                right, left = stack.pop(), stack.pop()
                stack.append(f"({left} {token} {right})")
            else:
                stack.append(str(token))
        return stack[0]


def has_size(value: Any) -> bool:
    """Whether a setting contains a `Size`."""
    return isinstance(value, Size) or (isinstance(value, (tuple, list)) and any(has_size(item) for item in value))


def resolve(value: Any, symbols: Mapping[str, Any]) -> Any:
    """A setting with every `Size` replaced by its number."""
    if isinstance(value, Size):
        return value.value(symbols)
    if isinstance(value, tuple):
        return tuple(resolve(item, symbols) for item in value)
    return value

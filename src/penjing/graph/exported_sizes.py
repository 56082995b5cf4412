"""Sizes in an exported graph, numbers or expressions of sympy, as a `Network` holds them."""

from collections.abc import Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor

from penjing.errors import TraceError
from penjing.graph.sizes import BATCH, Size

MAX_LENGTH = 1 << 40
"""A length that is no limit."""
_FUNCTIONS = {
    "Add": "+",
    "Mul": "*",
    "FloorDiv": "//",
    "CleanDiv": "//",
    "IntTrueDiv": "//",
    "Mod": "%",
    "PythonMod": "%",
    "Max": "max",
    "Min": "min",
}
"""Names of sympy's and export's functions, and what a `Size` calls them."""
_MAX_POWER = 4


class ExportedSizes:
    """What is known of the sizes of one exported graph.

    Args:
        exported: the graph.
        marked_batch: a number of samples by which sizes are known that depend on it; None: sizes are symbolic.
    Attributes:
        limits: by symbol, the smallest and largest size that the graph is right for; 0: no limit.
    """

    def __init__(self, exported: torch.export.ExportedProgram, marked_batch: int | None = None) -> None:
        self._exported, self._marked_batch = exported, marked_batch
        self._symbols: dict[str, str] = {}  # by export's names
        self.limits: dict[str, tuple[int, int]] = {}

    def note_input(self, shape: Sequence[Any], example: Tensor, name: str) -> dict[str, int]:
        """Name the symbols of an input's shape, and note their limits.

        Returns: by symbol that is new, the size that the example has.
        Raises: TraceError: the graph is right for some numbers of samples only.
        """
        hints: dict[str, int] = {}
        for dim, size in enumerate(shape):
            if isinstance(size, int):
                continue
            symbol = str(size.node.expr)
            if symbol not in self._symbols and isinstance(size.node.expr, sympy.Symbol):
                self._symbols[symbol] = BATCH if dim == 0 else f"s{len(self._symbols)}"
                if dim:
                    hints[self._symbols[symbol]] = example.shape[dim]
        for dim, size in enumerate(shape):
            self._limit(size, name, dim)
        return hints

    def _limit(self, size: Any, name: str, dim: int) -> None:
        if not isinstance(size, torch.SymInt):
            return
        limits = self._exported.range_constraints.get(size.node.expr)
        if limits is None:
            return
        low = int(limits.lower) if limits.lower > 2 else 0  # export never says less than 2
        high = int(limits.upper) if limits.upper < MAX_LENGTH else 0
        if dim == 0 and (low or high):
            most = high or "any number"
            raise TraceError(
                f"trace: the forward method does something else for fewer than {low} or more than {most} samples in its input "
                f'"{name}"; a graph does the same for all.'
            )
        symbol = self._symbols.get(str(size.node.expr))
        if symbol is not None and (low or high):
            self.limits[symbol] = (low, high)

    def size(self, value: Any, where: str) -> int | Size:
        """A number in a shape: an int, or what it is computed from.

        Raises: TraceError: it depends on the data, or is computed by a function that a `Size` does not have.
        """
        if isinstance(value, torch.fx.Node):
            value = value.meta["val"]
        if isinstance(value, (int, bool)):
            if self._marked_batch and value and value % self._marked_batch == 0 and value < 1 << 62:
                times = value // self._marked_batch
                return Size((BATCH,) if times == 1 else (BATCH, times, "*"))
            return int(value)
        if not isinstance(value, torch.SymInt):
            raise TraceError(f"trace: {where} has a size that is a {type(value).__name__}.")
        expression = value.node.expr
        if isinstance(expression, (int, sympy.Integer)):
            return int(expression)
        return Size(tuple(self._tokens(expression, where)))

    def _tokens(self, expression: Any, where: str) -> list[int | str]:
        """A sympy expression in postfix order."""
        if isinstance(expression, sympy.Integer):
            return [int(expression)]
        if isinstance(expression, sympy.Symbol):
            if str(expression) not in self._symbols:
                raise TraceError(f"trace: {where} has a size that depends on the data; that cannot be held as a graph.")
            return [self._symbols[str(expression)]]
        name = type(expression).__name__
        if name == "Pow" and isinstance(expression.args[1], sympy.Integer) and 1 <= expression.args[1] <= _MAX_POWER:
            base = self._tokens(expression.args[0], where)
            return base + [*base, "*"] * (int(expression.args[1]) - 1)
        if name not in _FUNCTIONS:
            raise TraceError(f"trace: {where} has the size {expression}, which penjing cannot hold.")
        parts = sorted(expression.args, key=lambda p: p.is_number) if name in ("Add", "Mul") else expression.args
        tokens = self._tokens(parts[0], where)
        for part in parts[1:]:
            tokens += [*self._tokens(part, where), _FUNCTIONS[name]]
        return tokens

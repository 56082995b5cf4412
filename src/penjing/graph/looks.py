"""Gates that look at a map: the operations of a look, four to five of them, as one step of a program.

    mean of each row ── flatten ──┬── (concat) ── linear        one step: linear of [means of rows, tanh(state)]
    state ── tanh ────────────────┘

For a few samples on a CPU in float32, where no gradient is asked for, that is one call of machine code (`kernels.gates`); else
the same operations.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from penjing.graph.node import MODULE
from penjing.graph.program import Step

FEW = 4
"""Samples for which one call is faster than the operations, each of which may use several threads."""


def with_looks(program: Sequence[Step]) -> list[Step]:
    """The program with one step in the place of each look that stands in one piece and of which nobody else reads a part."""
    readers = Counter(name for step in program for name in step.node.inputs)
    made: list[Step] = []
    for step in program:
        made.append(step)
        length = _length_of_look(made, readers)
        if length:
            parts = made[-length:]
            made[-length:] = [_as_one(parts)]
    return made


def _length_of_look(program: Sequence[Step], readers: Counter[str]) -> int:
    """How many steps at the end of a program are a look, the layer included; 0 where it ends in none."""
    last = program[-1]
    if last.node.op != MODULE or len(last.node.inputs) != 1:
        return 0
    wanted = ["mean", "flatten"]
    if len(program) > 4 and program[-2].node.op == "concat":
        wanted += ["tanh", "concat"]
    parts = program[-len(wanted) - 1 : -1]
    if [step.node.op for step in parts] != wanted or any(
        step.has_size or step.gates != last.gates or readers[step.node.name] != 1 for step in parts
    ):
        return 0
    mean, flatten, *state = (step.node for step in parts)
    is_look = (
        mean.settings in ({"dims": (3,), "keepdim": False}, {"dims": [3], "keepdim": False})
        and flatten.settings == {"start_dim": 1}
        and flatten.inputs == (mean.name,)
        and last.node.inputs == (parts[-1].node.name,)
        and (not state or (state[1].inputs == (flatten.name, state[0].name) and state[1].settings == {"dim": 1}))
    )
    return len(parts) + 1 if is_look else 0


def _as_one(parts: Sequence[Step]) -> Step:
    """One step for a look."""
    last = parts[-1]
    state = parts[2].node.inputs if len(parts) > 3 else ()
    inside = {step.node.name for step in parts[:-1]}
    drop = tuple(dict.fromkeys(name for step in parts for name in step.drop if name not in inside))
    node = replace(last.node, inputs=(*parts[0].node.inputs, *state))
    return replace(last, node=node, drop=drop, calls=look)


def look(layer: nn.Module, x: Tensor, state: Tensor | None = None) -> Tensor:
    """layer([means of the rows of x, tanh(state)]), (batch, out).

    Args:
        layer: takes (batch, channels * rows + n), as a linear layer does.
        x: (batch, channels, rows, columns).
        state: (batch, n), or None for n = 0.
    Raises: what the layer raises: where shapes do not fit, it is called as it is.
    """
    if _is_one_call(layer, x, state):
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None and bias is not None
        n, channels, rows, columns = x.shape
        place, n_state = (0, 0) if state is None else (state.data_ptr(), state.shape[1])
        y = x.new_empty(n, len(weight))
        given = x.data_ptr(), place, weight.data_ptr(), bias.data_ptr(), y.data_ptr()
        _kernel()(*given, n, channels * rows, columns, n_state, len(weight))
        return y
    seen = x.mean(3).flatten(1)
    result: Tensor = layer(seen if state is None else torch.cat([seen, state.tanh()], 1))
    return result


def _is_one_call(layer: nn.Module, x: Tensor, state: Tensor | None) -> bool:
    """Whether machine code may do it: it looks at addresses, so everything has to be as large as it says."""
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if (
        weight is None
        or bias is None
        or torch.is_grad_enabled()
        or type(layer) is not nn.Linear
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or x.dim() != 4
        or not 0 < len(x) <= FEW
        or x.shape[3] == 0
        or torch.compiler.is_compiling()
    ):
        return False
    n, n_rows = len(x), x.shape[1] * x.shape[2]
    if state is not None:
        if state.dim() != 2 or len(state) != n or not _lies_plain(state):
            return False
        n_rows += state.shape[1]
    fits = weight.dim() == 2 and weight.shape[1] == n_rows and bias.shape == weight.shape[:1]
    return fits and _lies_plain(x) and _lies_plain(weight) and _lies_plain(bias)


def _lies_plain(tensor: Tensor) -> bool:
    """Whether it lies in the CPU's memory as float32, row by row."""
    own = type(tensor)
    return (
        (own is Tensor or own is nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
    )


@cache
def _kernel() -> Callable[..., None]:
    from penjing.kernels.gates import linear_of_row_means  # noqa: PLC0415  numba takes a moment, and few networks have gates

    kernel: Callable[..., None] = linear_of_row_means
    return kernel

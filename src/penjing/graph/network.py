"""The network that penjing works on: `torch.nn` modules under their own paths, and a list of nodes that says how they connect.

    input ── stem ── relu ── block ──┬── pool ── flatten ── linear ── exit 0
                                     └── block ── pool ── flatten ── linear ── output

A `Network` is an ordinary `nn.Module`: it trains, moves between devices, takes hooks, has the state-dict keys of the
network it was traced from. Because its structure is data, surgery can edit it and a file can hold it.

Exits and gates make the computation dynamic, see `program`: in evaluation a sample whose answer at an `exit` is sure enough
leaves, and what lies between a `take` and a `put` is computed for the samples whose `gate` is open. What a sample does not need
is not computed for it. Source: Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from penjing.errors import DataError, SettingError, TraceError
from penjing.graph.looks import with_looks
from penjing.graph.modules import MODULES, keeps_shape, kind_of
from penjing.graph.node import (
    ALWAYS,
    EXIT,
    INPUT,
    MODULE,
    NEVER,
    OUTPUT,
    TENSOR,
    ExitOutputs,
    Node,
    Outputs,
    answer_of,
    module_at,
    tensor_at,
)
from penjing.graph.ops import DTYPES, GATE
from penjing.graph.program import Step, compile_program, evaluated, needed, per_sample, weights_of
from penjing.graph.running import Alone, Constants, Router, Routes, Straight, Stretch, in_stretches, without_constants
from penjing.graph.sizes import BATCH, Size, resolve

CONSTANTS = "constants."
"""Where tensors live that forward methods make of literals alone."""
_HOLDS_PLACES = (
    "reshape",
    "expand",
    "resize",
    "full",
    "arange",
    "slice",
    "slice_scatter",
    "pad",
    "roll",
    "repeat",
    "index",
)
"""Operations with constants that may have come from the example's height and width."""
__all__ = [
    "ALWAYS",
    "CONSTANTS",
    "EXIT",
    "INPUT",
    "MODULE",
    "NEVER",
    "OUTPUT",
    "TENSOR",
    "ExitOutputs",
    "Network",
    "Node",
    "Outputs",
    "Routes",
    "module_at",
    "needed",
    "node_shapes",
    "set_module",
    "set_tensor",
    "tensor_at",
    "with_tensors",
    "without_data",
    "word_of",
]

_OWN = (
    "nodes",
    "_nodes",
    "_program",
    "_routed",
    "_rest",
    "_as_set",
    "_constants",
    "_straight",
    "_alone",
    "_per_sample",
    "_exits",
    "_parts",
    "at_any_places",
    "input_shapes",
    "hints",
    "limits",
)


class Network(nn.Module):
    """A network as nodes and modules.

    Args:
        nodes: in an order in which every node follows its inputs.
        modules: the modules that nodes call, by path.
        tensors: parameters and buffers that nodes read and that belong to none of the modules, by path.
        input_shapes: the shape of each input without the batch dimension; a `Size` where it may differ from call to call.
        hints: for every symbol in them the size it had in the example.
        limits: for symbols that may not have every size, the smallest and the largest; 0 where there is none.

    Calling it: inputs in order or by the names of the input nodes, each (batch, *input_shape).
    Returns, in evaluation, the answers, (batch, ...), each from the exit where the sample left;
    in training, without exits the answers, with exits `ExitOutputs`.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        modules: Mapping[str, nn.Module],
        input_shapes: Sequence[tuple[int | Size, ...]],
        hints: Mapping[str, int] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        limits: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self._nodes: tuple[Node, ...] = ()
        self._program: list[Step] = []
        self._routed: list[Step] = []
        self._rest: list[Step | Stretch] = []
        self._as_set: list[Step] = []
        self._constants: Constants | None = None
        self._straight: Straight | None = None
        self._alone: Alone | None = None
        self._per_sample: frozenset[str] = frozenset()
        self._exits: list[Node] = []
        self._parts = False
        self.at_any_places = True
        self.input_shapes = tuple(tuple(shape) for shape in input_shapes)
        self.hints = dict(hints or {})
        self.limits = dict(limits or {})
        for path, module in modules.items():
            set_module(self, path, module)
        for path, tensor in (tensors or {}).items():
            set_tensor(self, path, tensor)
        self.nodes = tuple(nodes)

    def __setattr__(self, name: str, value: Any) -> None:
        # a layer of the user's may have the name of one of these
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # --- structure ---------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in order of execution. Assigning checks them and prepares the program."""
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: Sequence[Node]) -> None:
        program = compile_program(nodes)
        self._exits = [node for node in nodes if node.op == EXIT]
        self._program = program
        self._routed = compile_program(evaluated(nodes)) if self._exits else program
        rest, self._constants = without_constants(self._routed, nodes)
        rest = with_looks(rest)
        inputs = [node.name for node in nodes if node.op == INPUT]
        self._rest = in_stretches(rest)
        self._straight = Straight.of(rest, inputs)
        self._as_set = self._routed
        self._parts = any(step.node.op in (EXIT, GATE) for step in self._routed)
        self._alone = Alone.of(rest, inputs[0]) if self._parts and len(self.input_shapes) == 1 else None
        self._nodes = tuple(nodes)
        self._per_sample = per_sample(nodes)
        weights = weights_of(nodes)
        self.at_any_places = not any(
            node.op in _HOLDS_PLACES or node.op.endswith("_scalar") for node in nodes if node.name not in weights
        )

    @property
    def exits(self) -> list[Node]:
        """The exit nodes, in order."""
        return list(self._exits)

    @property
    def gates(self) -> list[Node]:
        """The gates, in order."""
        return [node for node in self._nodes if node.op == GATE]

    def layers(self) -> dict[str, nn.Module]:
        """The modules that nodes call, by path, in order of first use."""
        return {node.path: self.get_submodule(node.path) for node in self._nodes if node.op == MODULE}

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a dotted path; names of modules may be those of this class's own methods."""
        return module_at(self, target)

    def consumers(self, name: str) -> list[Node]:
        """The nodes that take the result of node `name`."""
        return [node for node in self._nodes if name in node.inputs]

    def node_of(self, path: str) -> Node:
        """The one node that calls the module at `path`.

        Raises: TraceError: no node calls it, or several do.
        """
        found = [node for node in self._nodes if node.op == MODULE and node.path == path]
        if len(found) != 1:
            raise TraceError(f'network: the layer "{path}" must be called once, it is called {len(found)} times.')
        return found[0]

    def fresh_name(self, stem: str) -> str:
        """A node name that is not taken: `stem`, else `stem_1`, `stem_2` ..."""
        taken = {node.name for node in self._nodes}
        if stem not in taken:
            return stem
        return next(name for k in range(1, len(taken) + 2) if (name := f"{stem}_{k}") not in taken)

    def set_thresholds(self, thresholds: Iterable[float]) -> None:
        """Set the confidence at which samples leave, one number an exit, kept in float32 as the file keeps it."""
        values = iter([float(torch.tensor(float(t), dtype=torch.float32)) for t in thresholds])
        self.nodes = tuple(
            replace(node, settings={**node.settings, "threshold": next(values)}) if node.op == EXIT else node
            for node in self._nodes
        )

    @property
    def thresholds(self) -> list[float]:
        """The confidence at which samples leave, one number an exit."""
        return [float(node.settings["threshold"]) for node in self.exits]

    @property
    def answer_names(self) -> list[str]:
        """What the answers are called: by their labels, else "exit 0", "exit 1" ... "final"."""
        names = [str(node.settings.get("label") or f"exit {k}") for k, node in enumerate(self._exits)]
        return [*names, "width 1" if any(name.startswith("width") for name in names) else "final"]

    def leave_at(self, exit_at: int) -> None:
        """From now on every sample leaves at this exit, the number of exits for the final answer; nothing else is computed."""
        n = len(self._exits)
        if not 0 <= exit_at <= n:
            raise SettingError(f"network: it has the answers 0 to {n}, got {exit_at}.")
        self.set_thresholds([ALWAYS if k == exit_at else NEVER for k in range(n)])

    # --- computation -------------------------------------------------------------------------------------------------

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        if self.training and self._exits:
            return ExitOutputs(self._run(*self.bind(args, kwargs)))
        if self._straight is not None and (fixed := self._fixed()) is not None:
            if not (kwargs or self.limits) and tuple([x.shape[1:] for x in args]) == self.input_shapes:
                return self._straight.run(self, {**fixed, **dict(zip(self._straight.input_names, args, strict=True))})
            return self._straight.run(self, {**fixed, **self.bind(args, kwargs)[0]})
        if not self.training and self._parts:
            one = self._alone is not None and len(args) == 1 and args[0].shape == (1, *self.input_shapes[0])
            if one and not self.limits and (fixed := self._fixed()) is not None:
                assert self._alone is not None
                return self._alone.run(self, {**fixed, self._alone.input_name: args[0]})
            return self.route(*args, **kwargs).answers
        program = self._program if self.training else self._routed
        return self._run(*self.bind(args, kwargs), program)[-1]

    def _fixed(self) -> dict[str, Tensor] | None:
        """The constants of what remains of the program without them; None where the whole program has to be run."""
        if self._routed is not self._as_set:
            return None
        return {} if self._constants is None else self._constants.values(self)

    def all_answers(self, *args: Tensor, **kwargs: Tensor) -> ExitOutputs:
        """The answers of every exit and the final one for every sample; nobody leaves, and gates only choose."""
        return ExitOutputs(pytree.tree_leaves(self._run(*self.bind(args, kwargs))))

    def route(self, *args: Tensor, **kwargs: Tensor) -> Routes:
        """Compute with every sample on its own way, see `graph.running`, and tell which it was.

        A sample leaves at the first exit k where its confidence >= threshold_k, and is computed between a take and a put only
        where the gate is open. The order of the samples is kept.
        """
        values, sizes = self.bind(args, kwargs)
        numbers = {node.name: k for k, node in enumerate(self.exits)}
        end = self._routed[-1].node.name
        router = Router(self, numbers, numbers.get(end, len(numbers)), self._per_sample)
        fixed = self._fixed()
        return router.run(self._routed if fixed is None else self._rest, values, sizes, fixed)

    def _run(
        self, values: dict[str, Tensor], sizes: Mapping[str, int], program: Sequence[Step] | None = None
    ) -> list[Any]:
        answers: list[Any] = []
        for node, value in self.steps(values, sizes, program):
            if node.op in (EXIT, OUTPUT):
                answers.append(value)
        return answers

    def steps(
        self, values: dict[str, Tensor], sizes: Mapping[str, int], program: Sequence[Step] | None = None
    ) -> Iterator[tuple[Node, Any]]:
        """Compute node by node without leaving at exits: each node with its result. `values` starts as the inputs."""
        device = next(iter(values.values())).device
        for step in self._program if program is None else program:
            node = step.node
            if node.op == OUTPUT:
                yield node, answer_of(node, [values[name] for name in node.inputs])
            elif node.op == EXIT:
                yield node, values[node.inputs[0]]
            else:
                values[node.name] = step.apply(self, values, sizes, device)
                yield node, values[node.name]
            for name in step.drop:
                del values[name]

    def watched(
        self, edges: Mapping[tuple[str, int], Callable[[Tensor], Tensor]]
    ) -> contextlib.AbstractContextManager[None]:
        """Within this context, what nodes take goes through functions.

        Args:
            edges: by a node's name and the position among its inputs, what becomes of that input there and only there.
        """
        by_node: dict[str, dict[int, Callable[[Tensor], Tensor]]] = {}
        for (name, position), function in edges.items():
            by_node.setdefault(name, {})[position] = function
        return self._changed(lambda step: replace(step, edges=by_node.get(step.node.name)))

    def also_watched(
        self, edges: Mapping[str, Mapping[int, Callable[[Tensor], Tensor]]]
    ) -> contextlib.AbstractContextManager[None]:
        """As `watched`, by node, beside what is watched or replaced already."""
        return self._changed(lambda step: replace(step, edges={**(step.edges or {}), **edges.get(step.node.name, {})}))

    def seen(self, looks: Mapping[str, Callable[[Tensor], None]]) -> contextlib.AbstractContextManager[None]:
        """Within this context, functions are shown what nodes give, before anything changes it in place."""
        return self._changed(lambda step: replace(step, look=looks.get(step.node.name)))

    def replaced(self, functions: Mapping[str, Callable[..., Tensor]]) -> contextlib.AbstractContextManager[None]:
        """Within this context, these nodes compute something else of their inputs."""
        return self._changed(lambda step: replace(step, instead=functions.get(step.node.name)))

    @contextlib.contextmanager
    def _changed(self, change: Callable[[Step], Step]) -> Iterator[None]:
        before = self._program, self._routed
        self._program, self._routed = [change(step) for step in before[0]], [change(step) for step in before[1]]
        try:
            yield
        finally:
            self._program, self._routed = before

    def in_float64(self) -> "Network":
        """A copy on the CPU that computes in float64 throughout, its casts and the tensors that it creates included."""
        wide = with_tensors(self, lambda t: t.to("cpu", torch.float64 if t.is_floating_point() else t.dtype, copy=True))
        float64 = DTYPES.index(torch.float64)

        def widened(node: Node) -> Node:
            kind = node.settings.get("dtype")
            if kind is None or node.op == INPUT or not DTYPES[kind].is_floating_point:
                return node
            return replace(node, settings={**node.settings, "dtype": float64})

        wide.nodes = [widened(node) for node in wide.nodes]
        return wide

    def random_inputs(
        self,
        batch: int,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> list[Tensor]:
        """Inputs of the right shapes: standard normal, or whole numbers that occur among the example's.

        Args:
            dtype: of those that are not whole numbers; None: each its own.
            sizes: by symbol, lengths other than the example's.
        """
        found: list[Tensor] = []
        inputs = [node for node in self._nodes if node.op == INPUT]
        for node, shape in zip(inputs, self.input_shapes, strict=True):
            size = (batch, *resolve(shape, {**self.hints, **(sizes or {})}))
            kind = DTYPES[node.settings.get("dtype", 0)]
            if kind.is_floating_point:
                value = torch.randn(size, generator=generator, dtype=torch.float64)
                found.append(value.to(dtype or kind))
            else:
                low, high = node.settings.get("low", 0), node.settings.get("high", 1)
                found.append(torch.randint(low, high + 1, size, generator=generator).to(kind))
        return found

    def bind(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The inputs by the names of their nodes, and the sizes that they fix: what `steps` begins with.

        Raises: DataError: other inputs, or of another shape or size, than the network takes.
        """
        names = [node.name for node in self._nodes if node.op == INPUT]
        if len(args) + len(kwargs) != len(names) or set(kwargs) - set(names[len(args) :]):
            raise DataError(
                f"network: it takes the inputs {', '.join(names)}, got {len(args)} in order"
                f" and {', '.join(kwargs) or 'none'} by name."
            )
        values = dict(zip(names, args, strict=False)) | dict(kwargs)
        sizes: dict[str, int] = {}
        for name, shape in zip(names, self.input_shapes, strict=True):
            given = tuple(values[name].shape)
            fixed = [(s, g) for s, g in zip(shape, given[1:], strict=False) if not isinstance(s, Size)]
            if self.at_any_places:  # places may be more or fewer than in the example, channels not
                fixed = fixed[:1]
            fits = len(given) == len(shape) + 1 and all(s == g for s, g in fixed)
            if not fits:
                raise DataError(
                    f'network: its input "{name}" must have the shape (batch, {", ".join(map(str, shape))}),'
                    f" got {given}. Check what the loader yields."
                )
            for size, number in zip(shape, given[1:], strict=True):
                if isinstance(size, Size) and len(size.tokens) == 1:
                    sizes.setdefault(str(size.tokens[0]), number)
            sizes.setdefault(BATCH, given[0])
        for symbol, (low, high) in self.limits.items():
            if sizes.get(symbol, low) < low or (high and sizes.get(symbol, 0) > high):
                raise DataError(
                    f"network: the size {symbol} of its inputs must be {low or 1} to {high or 'any'}, got {sizes[symbol]}."
                )
        return {name: values[name] for name in names}, sizes

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_program", "_routed", "_rest", "_as_set", "_straight", "_alone", "_constants"):
            state[name] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.nodes = self._nodes

    def extra_repr(self) -> str:
        return f"{len(self._nodes)} nodes, {len(self.exits)} exits"


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at the dotted `path` below `root`, with empty modules in between where there are none."""
    *parents, last = path.split(".")
    for name in parents:
        child = root._modules.get(name)
        if child is None:
            child = root._modules[name] = nn.Module()
        root = child
    root._modules[last] = module


def set_tensor(root: nn.Module, path: str, tensor: Tensor) -> None:
    """Put a parameter or a buffer at the dotted `path` below `root`; a constant of the graph is no part of the state dict."""
    owner_path, _, name = path.rpartition(".")
    owner = root
    for part in owner_path.split(".") if owner_path else ():
        child = owner._modules.get(part)
        if child is None:
            child = owner._modules[part] = nn.Module()
        owner = child
    if isinstance(tensor, nn.Parameter):
        owner._parameters[name] = tensor
    else:
        owner._buffers[name] = tensor
    if path.startswith(CONSTANTS):
        owner._non_persistent_buffers_set.add(name)


def word_of(network: nn.Module, node: Node) -> str:
    """What a node does, in lower case: its operation, or the kind of layer that it calls; "" for a layer of no known kind."""
    return (kind_of(module_at(network, node.path)) or "" if node.op == MODULE else node.op).lower()


def with_tensors(network: Network, convert: Callable[[Tensor], Tensor], memo: dict[int, Any] | None = None) -> Network:
    """A copy with the same structure whose tensors are what `convert` makes of them; tied ones stay tied.

    Args:
        memo: parts of the copy that are there already, by the id of what they stand for.
    """
    memo = dict(memo or {})
    for tensor in [*network.parameters(), *network.buffers()]:
        made = convert(tensor.detach())
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return copy.deepcopy(network, memo)


def without_data(network: Network) -> Network:
    """A copy whose tensors have shapes but no values, on the meta device, in evaluation mode."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        if parametrize.is_parametrized(module):  # whose formula may need the numbers; the shapes do not
            kind = MODULES.get(str(kind_of(module)))
            if kind is not None:
                with torch.device("meta"):
                    memo[id(module)] = built = kind.build(kind.describe(module))
                    for name in (*module.parametrizations, *module._parameters):  # type: ignore[misc]
                        value = getattr(module, name)
                        if name not in built._parameters and isinstance(value, Tensor):  # of a class of the user's
                            built.register_parameter(name, nn.Parameter(torch.empty_like(value, device="meta"), False))
    return with_tensors(network, lambda tensor: torch.empty_like(tensor, device="meta"), memo).eval()


def node_shapes(network: Network, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """The shape of every node's result, for inputs of the example's sizes and `batch` samples; no numbers are computed."""
    try:
        return _shapes(without_data(network), batch)
    except (NotImplementedError, RuntimeError):  # an operation that needs numbers to tell its shape
        return _shapes(copy.deepcopy(network).eval(), batch)


def _shapes(network: Network, batch: int) -> dict[str, tuple[int, ...]]:
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    device = next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    if device.type == "meta":  # nothing to draw
        drawn = [x.to("meta") for x in network.random_inputs(1, torch.Generator(), dtype)]
        drawn = [torch.empty((batch, *x.shape[1:]), dtype=x.dtype, device="meta") for x in drawn]
    else:
        drawn = [x.to(device) for x in network.random_inputs(batch, torch.Generator(), dtype)]
    inputs = [node.name for node in network.nodes if node.op == INPUT]
    values = dict(zip(inputs, drawn, strict=True))
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    alike: dict[str, Callable[..., Tensor]] = {
        node.name: lambda x: x
        for node in network.nodes
        if node.op == MODULE and keeps_shape(network.get_submodule(node.path))
    }
    with torch.no_grad(), network.replaced(alike):
        for node, value in network.steps(values, {**network.hints, BATCH: batch}):
            if node.op == OUTPUT:
                shapes[node.name] = shapes[node.inputs[0]]
            else:
                shapes[node.name] = tuple(value.shape) if isinstance(value, Tensor) else ()
    return shapes

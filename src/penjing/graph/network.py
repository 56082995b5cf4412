"""The network that penjing works on: `torch.nn` modules under their own paths, and a list of nodes that says how they connect.

    input ── stem ── relu ── block ──┬── pool ── flatten ── linear ── exit 0
                                     └── block ── pool ── flatten ── linear ── output

A `Network` is an ordinary `nn.Module`: it trains, moves between devices, takes hooks, has the state-dict keys of the
network it was traced from. Because its structure is data, surgery can edit it and a file can hold it.

An `exit` node makes the computation dynamic. In evaluation a sample whose answer there is confident enough leaves: it
is taken out of every tensor that is still needed, and what follows is computed for the others only. When nobody is
left, nothing more is computed. Source: Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686; the confidence is
that of Huang et al. 2018 (MSDNet), arXiv:1703.09844, section 4.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from penjing.errors import DataError, TraceError
from penjing.graph.modules import MODULES, keeps_shape, kind_of
from penjing.graph.ops import DTYPES, OPERATIONS, apply_operation
from penjing.graph.sizes import BATCH, Size, has_size, resolve

INPUT, MODULE, TENSOR, EXIT, OUTPUT = "input", "module", "tensor", "exit", "output"
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
NEVER = 2.0
"""An exit threshold that no confidence reaches: the exit is there but nobody leaves."""


@dataclass(frozen=True)
class Node:
    """One step of the computation.

    Attributes:
        name: unique in the network; by it other nodes refer to this one's result.
        op: "input", "module", "tensor", "exit", "output", or the name of an operation in `graph.ops.OPERATIONS`.
        inputs: names of the nodes whose results it takes.
        path: dotted path of the module that it calls, or of the parameter or buffer that it reads.
        settings: constants of the operation. For an exit its `threshold`; for an output its `form` where the answer is not one
            tensor; for an input that is not float32 its `dtype`, and for whole numbers `low` and `high`, between which random
            ones may be drawn.
        scope: where it was traced, the path of the user's layer whose forward method computes it. Not part of a file.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    path: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    scope: str = field(default="", compare=False)


_OWN = (
    "nodes",
    "_nodes",
    "_program",
    "_straight",
    "_per_sample",
    "at_any_places",
    "input_shapes",
    "hints",
    "limits",
)


class Outputs(dict[str, Any]):
    """Answers by name, as attributes too; what a network returns whose model returns a dictionary or a dataclass."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the network's answers are {', '.join(self)}, not {name}") from None


pytree.register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    lambda values, names: Outputs(zip(names, values, strict=True)),
    serialized_type_name="penjing.Outputs",
)


class ExitOutputs(tuple[Tensor, ...]):
    """The answers of all exits, first exit first, final answer last; what a network with exits returns in training."""

    __slots__ = ()


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
        self._program: list[_Step] = []
        self._straight: _Straight | None = None
        self._per_sample: frozenset[str] = frozenset()
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
        self._program = _compile(nodes)
        self._straight = _Straight.of(self._program, next(node.name for node in nodes if node.op == INPUT))
        self._nodes = tuple(nodes)
        self._per_sample = _per_sample(nodes)
        self.at_any_places = not any(node.op in _HOLDS_PLACES or node.op.endswith("_scalar") for node in nodes)

    @property
    def exits(self) -> list[Node]:
        """The exit nodes, in order."""
        return [node for node in self._nodes if node.op == EXIT]

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

    # --- computation -------------------------------------------------------------------------------------------------

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        if self._straight is not None and self._straight.program is self._program:
            alone = len(args) == len(self.input_shapes) == 1 and not (kwargs or self.limits)
            if alone and args[0].shape[1:] == self.input_shapes[0]:
                return self._straight.run(self, {self._straight.input_name: args[0]})
            return self._straight.run(self, self.bind(args, kwargs)[0])
        if not any(step.node.op == EXIT for step in self._program):
            return self._run(*self.bind(args, kwargs))[-1]
        if self.training:
            return ExitOutputs(self._run(*self.bind(args, kwargs)))
        return self.route(*args, **kwargs)[0]

    def all_answers(self, *args: Tensor, **kwargs: Tensor) -> ExitOutputs:
        """The answers of every exit and the final one for every sample; nobody leaves."""
        return ExitOutputs(pytree.tree_leaves(self._run(*self.bind(args, kwargs))))

    def route(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute with samples leaving at their exits.

        A sample leaves at exit k where max softmax(answer_k) >= threshold_k.
        Returns: the answers, (batch, ...), and the exit of each sample, (batch,), int64; the number of exits for those
        that went all the way. The order of the samples is kept.
        """
        values, sizes = self.bind(args, kwargs)
        n = sizes[BATCH]
        device = next(iter(values.values())).device
        answer: Tensor | None = None
        left_at = torch.zeros(n, dtype=torch.int64, device=device)
        inside: Tensor | None = None  # indices of the samples still computed; None: all of them
        k = 0
        for step in self._program:
            node = step.node
            if node.op == EXIT:
                logits = values.pop(node.inputs[0]) if node.inputs[0] in step.drop else values[node.inputs[0]]
                leaves = logits.softmax(-1).amax(-1) >= node.settings["threshold"]
                count = int(leaves.sum())
                if count == len(logits) and inside is None:
                    return logits, torch.full_like(left_at, k)
                if count:
                    who = torch.arange(n, device=device) if inside is None else inside
                    answer = logits.new_empty(n, *logits.shape[1:]) if answer is None else answer
                    answer[who[leaves]] = logits[leaves]
                    left_at[who[leaves]] = k
                    if count == len(logits):
                        return answer, left_at
                    stays = torch.nonzero(~leaves).squeeze(1)
                    inside = who[stays]
                    values = {
                        name: value.index_select(0, stays)
                        if name in self._per_sample and len(value) == len(logits)
                        else value
                        for name in step.live_after
                        for value in (values[name],)
                    }
                    sizes = {**sizes, BATCH: len(stays)}
                k += 1
                continue
            if node.op == OUTPUT:
                final = values[node.inputs[0]]
                if inside is None:
                    return final, torch.full_like(left_at, k)
                assert answer is not None
                answer[inside] = final
                left_at[inside] = k
                return answer, left_at
            values[node.name] = step.apply(self, values, sizes, device)
            for name in step.drop:
                del values[name]
        raise TraceError("network: its last node must be an output.")

    def _run(self, values: dict[str, Tensor], sizes: Mapping[str, int]) -> list[Any]:
        answers: list[Any] = []
        for node, value in self.steps(values, sizes):
            if node.op in (EXIT, OUTPUT):
                answers.append(value)
        return answers

    def steps(self, values: dict[str, Tensor], sizes: Mapping[str, int]) -> Iterator[tuple[Node, Any]]:
        """Compute node by node without leaving at exits: each node with its result. `values` starts as the inputs."""
        device = next(iter(values.values())).device
        for step in self._program:
            node = step.node
            if node.op == OUTPUT:
                yield node, _answer(node, [values[name] for name in node.inputs])
            elif node.op == EXIT:
                yield node, values[node.inputs[0]]
            else:
                values[node.name] = step.apply(self, values, sizes, device)
                yield node, values[node.name]
            for name in step.drop:
                del values[name]

    @contextlib.contextmanager
    def watched(self, edges: Mapping[tuple[str, int], Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Within this context, what nodes take goes through functions.

        Args:
            edges: by a node's name and the position among its inputs, what becomes of that input there and only there.
        """
        before = self._program
        by_node: dict[str, dict[int, Callable[[Tensor], Tensor]]] = {}
        for (name, position), function in edges.items():
            by_node.setdefault(name, {})[position] = function
        self._program = [replace(step, edges=by_node.get(step.node.name)) for step in before]
        try:
            yield
        finally:
            self._program = before

    @contextlib.contextmanager
    def seen(self, looks: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
        """Within this context, functions are shown what nodes give, before anything changes it in place."""
        before = self._program
        self._program = [replace(step, look=looks.get(step.node.name)) for step in before]
        try:
            yield
        finally:
            self._program = before

    @contextlib.contextmanager
    def replaced(self, functions: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
        """Within this context, these nodes compute something else of their inputs."""
        before = self._program
        self._program = [replace(step, instead=functions.get(step.node.name)) for step in before]
        try:
            yield
        finally:
            self._program = before

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
        state["_program"] = state["_straight"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.nodes = self._nodes

    def extra_repr(self) -> str:
        return f"{len(self._nodes)} nodes, {len(self.exits)} exits"


def _answer(node: Node, values: Sequence[Tensor]) -> Any:
    form = node.settings.get("form")
    return values[0] if form is None else _formed(form, values)


def _formed(form: Any, values: Sequence[Tensor]) -> Any:
    """Put tensors into a structure: an index, None, or (kind, ...) with kind "tuple", "list", or "dict" and its names."""
    if form is None:
        return None
    if isinstance(form, int):
        return values[form]
    kind, *parts = form
    if kind == "dict":
        return Outputs({name: _formed(part, values) for name, part in zip(parts[::2], parts[1::2], strict=True)})
    items = [_formed(part, values) for part in parts]
    return tuple(items) if kind == "tuple" else items


@dataclass(frozen=True)
class _Step:
    """A node made ready: how to call it, which results nobody needs afterwards; for an exit, which ones somebody does."""

    node: Node
    module_of: Callable[[nn.Module], Callable[..., Tensor]] | None
    drop: tuple[str, ...]
    live_after: tuple[str, ...]
    has_size: bool
    edges: Mapping[int, Callable[[Tensor], Tensor]] | None = None
    instead: Callable[..., Tensor] | None = None
    look: Callable[[Tensor], None] | None = None

    def apply(
        self, network: nn.Module, values: Mapping[str, Tensor], sizes: Mapping[str, int], device: torch.device
    ) -> Tensor:
        result = self._result(network, values, sizes, device)
        if self.look is None:
            return result
        self.look(result)
        return result.clone()  # the next layer may change its input in place

    def _result(
        self, network: nn.Module, values: Mapping[str, Tensor], sizes: Mapping[str, int], device: torch.device
    ) -> Tensor:
        inputs = tuple(values[name] for name in self.node.inputs)
        if self.edges:
            inputs = tuple(self.edges[i](x) if i in self.edges else x for i, x in enumerate(inputs))
        if self.instead is not None:
            return self.instead(*inputs)
        if self.module_of is not None:
            return self.module_of(network)(*inputs)
        if self.node.op == TENSOR:
            return tensor_at(network, self.node.path)
        settings = self.node.settings
        if self.has_size:
            settings = {name: resolve(value, sizes) for name, value in settings.items()}
        return apply_operation(self.node.op, inputs, settings, device)


@dataclass(frozen=True)
class _Straight:
    """A program without exits as bare calls: for small networks the way from layer to layer is a good part of the time.

    Attributes:
        program: what it stands for.
        input_name: of the first input.
        calls: where the module lies or what function to call, the names of inputs and result, which results to drop then.
    """

    program: list[_Step]
    input_name: str
    calls: tuple[
        tuple[tuple[str, ...] | None, Callable[..., Tensor] | None, tuple[str, ...], str, tuple[str, ...]], ...
    ]
    output: Node

    @classmethod
    def of(cls, program: list[_Step], input_name: str) -> "_Straight | None":
        """None where there are exits, or sizes and devices that are known only when it runs."""
        calls: list[Any] = []
        for step in program[:-1]:
            node = step.node
            if node.op == MODULE:
                calls.append((tuple(node.path.split(".")), None, node.inputs, node.name, step.drop))
            elif node.op in OPERATIONS and not OPERATIONS[node.op].creates and not step.has_size:
                function = OPERATIONS[node.op].function
                bare = partial(function, **node.settings) if node.settings else function
                calls.append((None, bare, node.inputs, node.name, step.drop))
            else:
                return None
        return cls(program, input_name, tuple(calls), program[-1].node)

    def run(self, network: nn.Module, values: dict[str, Tensor]) -> Any:
        """The answer; `values` starts as the inputs."""
        for path, function, inputs, name, drop in self.calls:
            call: Any = function
            if path is not None:
                call = network
                for part in path:
                    call = call._modules[part]
            if len(inputs) == 1:
                values[name] = call(values.pop(inputs[0]) if drop else values[inputs[0]])
            else:
                values[name] = call(*[values[source] for source in inputs])
                for done in drop:
                    del values[done]
        return _answer(self.output, [values[name] for name in self.output.inputs])


def _compile(nodes: Sequence[Node]) -> list[_Step]:
    """Check the order and find each result's last use.

    Raises: TraceError: a node before its inputs, with too many or too few of them, a name twice, no input, or no output at
        the end.
    """
    last_use: dict[str, int] = {}
    known: set[str] = set()
    for position, node in enumerate(nodes):
        if node.name in known:
            raise TraceError(f'network: two nodes are called "{node.name}".')
        if node.op == OUTPUT and position < len(nodes) - 1:
            raise TraceError(f'network: the node "{node.name}" is an output, so it must be the last one.')
        _check_arity(node)
        for name in node.inputs:
            if name not in known:
                raise TraceError(f'network: the node "{node.name}" takes "{name}", which is not computed before it.')
            last_use[name] = position
        if node.op != EXIT:  # nobody can take the result of an exit
            known.add(node.name)
    if not nodes or nodes[-1].op != OUTPUT or not any(node.op == INPUT for node in nodes):
        raise TraceError("network: it must have an input and end in an output.")
    steps: list[_Step] = []
    live: dict[str, None] = {}
    for position, node in enumerate(nodes):
        drop = tuple(name for name in dict.fromkeys(node.inputs) if last_use[name] == position)
        for name in drop:
            del live[name]
        if node.name in last_use:
            live[node.name] = None
        if node.op == INPUT:
            continue
        module_of = partial(module_at, path=node.path) if node.op == MODULE else None
        sized = any(has_size(value) for value in node.settings.values())
        steps.append(_Step(node, module_of, drop, tuple(live) if node.op == EXIT else (), sized))
    return steps


def _per_sample(nodes: Sequence[Node]) -> frozenset[str]:
    """The nodes whose results depend on the inputs; what parameters and constants give is the same for all samples."""
    found: set[str] = set()
    for node in nodes:
        if node.op == INPUT or found.intersection(node.inputs):
            found.add(node.name)
    return frozenset(found)


def needed(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that an input, an exit or the output is or depends on."""
    wanted: set[str] = set()
    for node in reversed(nodes):
        if node.op in (INPUT, EXIT, OUTPUT) or node.name in wanted:
            wanted.update(node.inputs)
    return [node for node in nodes if node.op in (INPUT, EXIT, OUTPUT) or node.name in wanted]


def _check_arity(node: Node) -> None:
    expected: int | None
    if node.op in OPERATIONS:
        expected = OPERATIONS[node.op].n_inputs
    elif node.op in (INPUT, MODULE, TENSOR, EXIT, OUTPUT):
        expected = None if node.op in (MODULE, OUTPUT) else int(node.op == EXIT)
    else:
        raise TraceError(f'network: the node "{node.name}" has the unknown operation "{node.op}".')
    if len(node.inputs) != (expected if expected is not None else max(1, len(node.inputs))):
        number = "one or more" if expected is None else expected
        raise TraceError(
            f'network: the node "{node.name}" ({node.op}) takes {number} inputs, it has {len(node.inputs)}.'
        )


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


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at the dotted `path` below `root`. Raises: TraceError: there is none."""
    found: nn.Module | None = root
    for name in path.split(".") if path else ():
        found = found._modules.get(name) if found is not None else None
    if found is None:
        raise TraceError(f'network: there is no module "{path}".')
    return found


def tensor_at(root: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at the dotted `path` below `root`. Raises: TraceError: there is none."""
    owner_path, _, name = path.rpartition(".")
    owner = module_at(root, owner_path)
    found: Any = owner._parameters.get(name)
    found = owner._buffers.get(name) if found is None else found
    found = getattr(owner, name, None) if found is None else found  # under a parametrization
    if not isinstance(found, Tensor):
        raise TraceError(f'network: there is no parameter or buffer "{path}".')
    return found


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

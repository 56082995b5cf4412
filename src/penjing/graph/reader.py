"""Walks an exported graph and collects the nodes and modules of a `Network`."""

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.graph.exported_sizes import ExportedSizes
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import CONSTANTS, INPUT, MODULE, OUTPUT, TENSOR, Network, Node, needed
from penjing.graph.ops import DTYPES
from penjing.graph.readers import IN_LAYER, READERS, REBUILT
from penjing.graph.views import Views

RANDOM = ("rand", "normal", "bernoulli", "multinomial", "uniform", "exponential", "poisson")
RECURRENT = ("LSTM", "GRU", "LSTMCell", "GRUCell")
COUNTER = "num_batches_tracked"
MAX_CONSTANT = 1 << 24
"""Elements of the largest constant that is computed while reading."""


@dataclass(frozen=True)
class Result:
    """The result of the node of that name."""

    name: str


@dataclass(frozen=True)
class Stored:
    """The user's parameter or buffer at that path."""

    path: str


Value = Result | Stored | Tensor | tuple[Any, ...]
"""What an fx node stands for; a tensor is a constant, a tuple the results of an operation that has several."""


class Reader:
    """Reads one exported graph.

    Args:
        model: the user's module, for its layers and tensors; they are copied.
        exported: its graph.
        prefix: what the exported paths have before the model's own.
        marked_batch: a number of samples by which sizes are known that depend on it; None: sizes are symbolic.
    """

    def __init__(
        self,
        model: nn.Module,
        exported: torch.export.ExportedProgram,
        prefix: str = "",
        marked_batch: int | None = None,
    ) -> None:
        self.model = model
        self.exported = exported
        self.prefix = prefix
        self.sizes = ExportedSizes(exported, marked_batch)
        self.size = self.sizes.size
        self.nodes: list[Node] = []
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.memo: dict[int, Any] = {}  # copies of tensors, so that tied ones stay tied
        self.values: dict[torch.fx.Node, Value] = {}
        self.views = Views(self)
        self.calls: dict[str, torch.fx.Node] = {}  # by the call's key in the module stack, its last step so far
        self.opened: dict[str, int] = {}
        self.read_at: dict[str, str] = {}  # by path, the node that reads the tensor
        self.constants: dict[int, tuple[Tensor, str]] = {}
        self.taken: set[str] = set()
        self.owners = dict(model.named_modules(remove_duplicate=False))

    # --- the whole -------------------------------------------------------------------------------------------------

    def network(self, examples: Sequence[Tensor]) -> Network:
        """The network; `examples` are the inputs in order."""
        shapes, hints = self._placeholders(examples)
        for node in self.exported.graph.nodes:
            if node.op == "call_function":
                self.read(node)
            elif node.op == "output":
                self._output(node)
        self._drop_unused()
        network = Network(self.nodes, self.modules, shapes, hints, self._own_tensors(), self.sizes.limits)
        own = {path: layer.training for path, layer in self.modules.items()}
        network.train(self.model.training)
        for path, training in own.items():
            self.modules[path].train(training)  # a frozen batch norm stays frozen
        return network

    def _placeholders(self, examples: Sequence[Tensor]) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
        signature = self.exported.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
            raise TraceError(
                f"trace: the forward method changes {', '.join(changed)}; a network whose answer depends on earlier calls, "
                "or that changes its inputs, cannot be held as a graph."
            )
        shapes: list[tuple[Any, ...]] = []
        hints: dict[str, int] = {}
        inputs = set(signature.user_inputs)  # each of these is made anew when it is asked for
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        given = iter(examples)
        for node in self.exported.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in inputs:
                if isinstance(node.meta.get("val"), Tensor):
                    shapes.append(self._input(node, next(given), hints))
            elif node.name in stored:
                self.values[node] = Stored(self.own_path(stored[node.name]))
            elif node.name in constants:
                held = self.exported.constants[constants[node.name]]
                self.values[node] = held.detach().clone()
        return shapes, hints

    def _input(self, node: torch.fx.Node, example: Tensor, hints: dict[str, int]) -> tuple[Any, ...]:
        value = node.meta["val"]
        if value.dim() == 0:
            raise TraceError(f'trace: the input "{node.name}" must have a batch dimension, it is a single number.')
        hints |= self.sizes.note_input(value.shape, example, node.name)
        if isinstance(self.size(value.shape[0], node.name), int):
            raise TraceError(
                f'trace: the model works only for {value.shape[0]} samples at a time in its input "{node.name}": its forward '
                "method fixes the size of the batch. Take it from the input's shape instead."
            )
        settings: dict[str, Any] = {}
        if value.dtype != torch.float32:
            settings["dtype"] = self.dtype(value.dtype, node.name)
        if not value.dtype.is_floating_point and example.numel():
            settings |= {"low": int(example.min()), "high": int(example.max())}
        self.add(node, Node(node.name, INPUT, settings=settings))
        return tuple(self.size(size, f'the input "{node.name}"') for size in value.shape[1:])

    def _output(self, node: torch.fx.Node) -> None:
        specs = self.exported.graph_signature.output_specs
        results = [
            value
            for spec, value in zip(specs, node.args[0], strict=True)  # type: ignore[arg-type]
            if spec.kind == torch.export.graph_signature.OutputKind.USER_OUTPUT
        ]
        spec = self.exported.call_spec.out_spec
        assert spec is not None
        names: list[str] = []
        leaves: list[int | None] = []
        for value in results:
            if value is None:
                leaves.append(None)
            elif isinstance(value, torch.fx.Node) and isinstance(value.meta.get("val"), Tensor):
                leaves.append(len(names))
                names.append(self.name(self.value(value), "the output"))
            else:
                raise TraceError(
                    f"trace: {type(self.model).__name__} must return tensors, it returns a {type(value).__name__}."
                )
        if not names:
            raise TraceError(f"trace: {type(self.model).__name__} returns no tensor.")
        form = _form(spec, iter(leaves), type(self.model).__name__)
        settings = {} if form == 0 else {"form": form}
        self.nodes.append(Node(self.fresh("output"), OUTPUT, tuple(names), settings=settings))

    def _drop_unused(self) -> None:
        self.nodes = needed(self.nodes)
        used = {node.path for node in self.nodes if node.op == MODULE}
        self.modules = {path: module for path, module in self.modules.items() if path in used}

    def _own_tensors(self) -> dict[str, Tensor]:
        """The tensors that nodes read and that are none of a module's that nodes call."""
        found: dict[str, Tensor] = {}
        for node in self.nodes:
            if node.op == TENSOR:
                owner, _, name = node.path.rpartition(".")
                held = self.modules.get(owner)
                if held is None or getattr(held, name, None) is not self.tensors[node.path]:
                    found[node.path] = self.tensors[node.path]
        return found

    # --- one fx node -----------------------------------------------------------------------------------------------

    def read(self, node: torch.fx.Node) -> None:
        """Read one call of a function. Raises: TraceError: it cannot be read, with the layer it comes from."""
        try:
            self._read(node)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(f"trace: {node.target} in {self.where(node)} could not be read ({error!r}).") from error

    def _read(self, node: torch.fx.Node) -> None:
        if node.target is operator.getitem:
            items = self.values.get(node.args[0])  # type: ignore[arg-type]
            if isinstance(items, tuple):
                found = items[node.args[1]]  # type: ignore[index]
                self.values[node] = found(node) if callable(found) else found
                self.views.note(node)
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            self._higher_order(node)
            return
        where = self.where(node)
        op = node.target._schema.name.removeprefix("aten::")
        if op in (
            "sym_size",
            "_assert_tensor_metadata",
            "_assert_async",
            "sym_constrain_range_for_size",
            "_assert_scalar",
        ):
            return
        if op.startswith(RANDOM) or ("dropout" in op and node.args[-1] is True):
            raise TraceError(
                f"trace: {op} in {where} draws random numbers, in evaluation too. A graph cannot hold that."
            )
        if self._fold(node) or self._in_layer(node, op) or (op in REBUILT and REBUILT[op](self, node)):
            pass
        elif op.removesuffix("_") in READERS or op in READERS:
            reader = READERS.get(op) or READERS[op.removesuffix("_")]
            reader(self, node, where)
        else:
            raise TraceError(f"trace: the operation {op} in {where} is not known to penjing yet. Please report it.")
        self.views.note(node)
        if node.target._schema.is_mutable and not isinstance(self.values.get(node), Tensor):
            self.views.write_back(node.args[0], self.values[node], where)  # type: ignore[arg-type]

    def _higher_order(self, node: torch.fx.Node) -> None:
        """Blocks under torch.no_grad and the like are read as if their contents stood here."""
        name = getattr(node.target, "__name__", str(node.target))
        if isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool, bool)):
            return  # arithmetic of sizes; whoever uses it finds the expression
        if name == "wrap_with_autocast":
            raise TraceError(
                f"trace: {self.where(node)} computes under torch.autocast. Take that out; train with mixed precision instead."
            )
        bodies = [a for a in node.args if isinstance(a, torch.fx.Node) and a.op == "get_attr"]
        if name != "wrap_with_set_grad_enabled" or len(bodies) != 1:
            raise TraceError(f"trace: {name} in {self.where(node)} is not supported.")
        body: Any = getattr(bodies[0].graph.owning_module, str(bodies[0].target))
        outer = list(node.args[node.args.index(bodies[0]) + 1 :])
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                argument = outer.pop(0)
                if isinstance(argument, torch.fx.Node) and argument in self.values:
                    self.values[inner] = self.value(argument)
            elif inner.op == "call_function":
                self.read(inner)
            elif inner.op == "output":
                results = inner.args[0] if isinstance(inner.args[0], (tuple, list)) else (inner.args[0],)
                found = tuple(self.values.get(result) for result in results)
                learns = name != "wrap_with_set_grad_enabled" or node.args[0]
                self.values[node] = found if learns else tuple(self._detached(node, value) for value in found)

    def _detached(self, node: torch.fx.Node, value: Any) -> Any:
        return self.emit(node, "detach", value) if isinstance(value, (Result, Stored)) else value

    def _fold(self, node: torch.fx.Node) -> bool:
        """Compute at once what depends on literals alone."""
        constant = True

        def held(argument: torch.fx.Node) -> Any:
            nonlocal constant
            value = self.value(argument) if argument in self.values else argument.meta.get("val")
            if not isinstance(value, (Tensor, int, float, bool)):
                constant = False
            return value

        target: Any = node.target
        name = target._schema.name.removeprefix("aten::")
        result = node.meta.get("val")
        if name in ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like") and isinstance(
            result, Tensor
        ):
            if not self._is_fixed(result):
                return False
            fill = {"zeros": 0, "ones": 1}.get(name.replace("new_", "").replace("_like", ""))
            value = fill if fill is not None else node.args[-1]
            if not isinstance(value, (int, float, bool)):
                return False
            self.values[node] = torch.full(tuple(result.shape), value, dtype=result.dtype)
            return True
        args = torch.fx.map_arg(node.args, held)
        kwargs = torch.fx.map_arg(node.kwargs, held)
        if not constant or not isinstance(result, Tensor) or not self._is_fixed(result):
            return False
        if torch.Tag.nondeterministic_seeded in target.tags:
            return False
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if name == "to" and any(isinstance(a, torch.device) for a in args):
            args = tuple(torch.device("cpu") if isinstance(a, torch.device) else a for a in args)
        with torch.no_grad():
            self.values[node] = target(*args, **kwargs)
        return True

    def _is_fixed(self, result: Tensor) -> bool:
        """Whether a result's sizes are known and not too large."""
        fixed = all(isinstance(self.size(size, "a constant"), int) for size in result.shape)
        return fixed and result.numel() <= MAX_CONSTANT

    # --- layers ------------------------------------------------------------------------------------------------------

    def _in_layer(self, node: torch.fx.Node, op: str) -> bool:
        """The step of a layer that stays as it is, e.g. a convolution in a `nn.Conv2d`."""
        stack = node.meta.get("nn_module_stack") or {}
        call, path = next(reversed(stack), ""), self.scope(node)
        layer = self.owners.get(path)
        kind = kind_of(layer) if layer is not None else None
        if layer is None or kind is None or not path or op.removesuffix("_") not in IN_LAYER.get(kind, ()):
            return False
        if kind in RECURRENT:
            return self._recurrent(node, path, layer)
        padded = getattr(layer, "padding_mode", "zeros") != "zeros"
        if "pad" in op and not (padded and call not in self.calls):
            return False  # a hook's
        tensors = [a for a in node.args if isinstance(a, torch.fx.Node) and a in self.values]
        own = [a for a in tensors if isinstance(self.values[a], Stored)]
        inputs = [a for a in tensors if a not in own]
        if padded and "conv" in op and call in self.calls and inputs == [self.calls[call]]:  # reflect, then convolve
            self.values[node] = self.value(inputs[0])
            del self.calls[call]
            return True
        if len(inputs) != 1 or any(not self._belongs(a, layer) for a in own):
            return False
        if own and len(own) != sum(t is not None for t in self._tensors_of(layer)):
            return False
        if not own and "pad" not in op and any(t is not None for t in self._tensors_of(layer)):
            return False  # its weight is computed: a parametrization, or weight norm as a hook
        if "pad" in op and "parametrizations" in layer._modules:
            return False
        self._hold(path, layer)
        self.call_module(node, path, inputs[0])
        if "pad" in op:
            self.calls[call] = node
        return True

    def _hold(self, path: str, layer: nn.Module) -> None:
        """Copy a layer that stays as it is."""
        if path in self.modules:
            return
        held = copy.deepcopy(layer, self.memo)
        held._forward_hooks.clear()  # what they compute is in the graph
        held._forward_pre_hooks.clear()
        if hasattr(held, "inplace"):
            held.inplace = False  # type: ignore[assignment]
        self.modules[path] = held

    def _recurrent(self, node: torch.fx.Node, path: str, layer: nn.Module) -> bool:
        """A recurrent layer that starts from zeros, as its own call without a state does."""
        states = [a for x in node.args[1:2] for a in (x if isinstance(x, (list, tuple)) else [x])]
        if not all(isinstance(state, torch.fx.Node) and self._is_zero(state) for state in states):
            return False
        self._hold(path, layer)
        self.call_module(node, path, node.args[0])  # type: ignore[arg-type]
        whole = self.values[node]
        is_lstm, is_cell = isinstance(layer, (nn.LSTM, nn.LSTMCell)), isinstance(layer, nn.RNNCellBase)
        if is_cell and not is_lstm:
            return True
        places = [(0,), (1,)] if is_cell or not is_lstm else [(0,), (1, 0), (1, 1)]  # lstm answers (y, (h, c))

        def at(place: tuple[int, ...]) -> Any:
            def read(item: torch.fx.Node) -> Any:
                value = whole
                for index in place:
                    value = self.emit(item, "item", value, index=index)
                return value

            return read

        self.values[node] = tuple(at(place) for place in places)
        return True

    def _is_zero(self, node: torch.fx.Node) -> bool:
        value = self.values.get(node)
        if isinstance(value, Tensor):
            return not bool(value.any())
        made = next((n for n in reversed(self.nodes) if isinstance(value, Result) and n.name == value.name), None)
        return made is not None and made.op == "full" and made.settings["value"] == 0

    def _tensors_of(self, layer: nn.Module) -> list[Tensor | None]:
        return [
            *layer._parameters.values(),
            *(b for name, b in layer._buffers.items() if name != COUNTER),
        ]

    def _belongs(self, argument: torch.fx.Node, layer: nn.Module) -> bool:
        value = self.values[argument]
        assert isinstance(value, Stored)
        tensor = self.original(value.path)
        return any(tensor is mine for mine in self._tensors_of(layer))

    def call_module(self, node: torch.fx.Node, path: str, source: torch.fx.Node) -> None:
        """Add a node that calls the module at `path`."""
        name = path.replace(".", "_")
        self.opened[name] = self.opened.get(name, 0) + 1
        if self.opened[name] > 1:
            name = f"{name}_call{self.opened[name]}"
        self.add(node, Node(name, MODULE, (self.name(self.value(source), self.where(node)),), path))

    def rebuilt(
        self, node: torch.fx.Node, kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Any], source: Any
    ) -> bool:
        """Make a `torch.nn` module of an operation whose tensors are one owner's, under its path.

        Args:
            tensors: the operation's tensor arguments by their names in the module; None where it has none.
        Returns: whether that is possible: the tensors must be stored under one path, by these names.
        """
        stored = {name: self.values.get(t) for name, t in tensors.items() if t is not None}
        if not stored or any(not isinstance(value, Stored) for value in stored.values()):
            return False
        owners = {value.path.rpartition(".")[0] for value in stored.values()}  # type: ignore[union-attr]
        path = owners.pop()
        if owners or not path or any(value.path != f"{path}.{name}" for name, value in stored.items()):  # type: ignore[union-attr]
            return False
        mine = self.owners[path]
        if any(True for _ in mine.children()) or (kind_of(mine) is not None and kind_of(mine) != kind):
            return False
        layer = MODULES[kind].build(settings)
        others = {**mine._parameters, **mine._buffers}
        if any(others.get(name) is not None for name in {*layer._parameters, *layer._buffers} - {*stored, COUNTER}):
            return False  # it has, say, a bias that this operation does not add
        for name in tensors:
            held = self.copied(stored[name].path) if name in stored else None  # type: ignore[union-attr]
            if name in layer._buffers:
                layer._buffers[name] = held
            elif held is None or isinstance(held, nn.Parameter):
                layer._parameters[name] = held
            else:
                return False  # a buffer where the module has a parameter
        known = self.modules.get(path)
        if known is None:
            if COUNTER in layer._buffers and COUNTER in mine._buffers:
                layer._buffers[COUNTER] = copy.deepcopy(mine._buffers[COUNTER], self.memo)
            self.modules[path] = layer.train(mine.training)
        elif kind_of(known) != kind or MODULES[kind].describe(known) != MODULES[kind].describe(layer):
            return False
        self.call_module(node, path, source)
        return True

    # --- values ------------------------------------------------------------------------------------------------------

    def value(self, node: torch.fx.Node) -> Value:
        """What an fx node stands for now; a view of something that was changed since is read again."""
        return self.values[self.views.up_to_date(node)]

    def stored_path(self, node: torch.fx.Node) -> str | None:
        """Where the user's parameter or buffer lies that an fx node stands for; None: it stands for none."""
        held = self.values.get(node)
        return held.path if isinstance(held, Stored) else None

    def name(self, value: Any, where: str) -> str:
        """The name of the node that gives a value; tensors get one when they are first needed."""
        if isinstance(value, Result):
            return value.name
        if isinstance(value, Stored):
            return self._tensor_node(value.path, self.copied(value.path))
        if isinstance(value, Tensor):
            held = self.constants.get(id(value))
            if held is None:
                path = f"{CONSTANTS}{len(self.constants)}"
                self.constants[id(value)] = held = (value, path)  # keeps it alive, so that ids stay unique
            return self._tensor_node(held[1], value.contiguous())
        raise TraceError(f"trace: {where} takes {value!r}, which is not a tensor.")

    def result(self, value: Any, where: str) -> Result:
        """A value as the result of a node."""
        return Result(self.name(value, where))

    def _tensor_node(self, path: str, tensor: Tensor) -> str:
        if path not in self.read_at:
            self.tensors[path] = tensor
            name = self.fresh(path.replace(".", "_"))
            self.nodes.append(Node(name, TENSOR, (), path))
            self.read_at[path] = name
        return self.read_at[path]

    def original(self, path: str) -> Tensor:
        """The user's tensor at a path."""
        owner, _, name = path.rpartition(".")
        found: Tensor = getattr(self.owners[owner], name)
        return found

    def copied(self, path: str) -> Tensor:
        """The copy of the user's tensor at a path."""
        found: Tensor = copy.deepcopy(self.original(path), self.memo)
        return found

    def own_path(self, path: str) -> str:
        """A path in the exported graph as one in the user's model."""
        return path.removeprefix(self.prefix) if path != self.prefix.rstrip(".") else ""

    def where(self, node: torch.fx.Node) -> str:
        """The layer whose forward method an fx node comes from, for messages."""
        path = self.scope(node)
        name = type(self.owners.get(path, self.model)).__name__
        return f'layer "{path}" ({name})' if path else name

    def scope(self, node: torch.fx.Node) -> str:
        """The path of that layer."""
        stack = node.meta.get("nn_module_stack") or {}
        return self.own_path(stack[next(reversed(stack))][0].split("@")[0]) if stack else ""

    def dtype(self, dtype: torch.dtype, where: str) -> int:
        """The number of a type of tensors. Raises: TraceError: a graph may not have it."""
        if dtype not in DTYPES:
            raise TraceError(f"trace: {where} has numbers of type {dtype}, which are not supported.")
        return DTYPES.index(dtype)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def emit(self, node: torch.fx.Node, op: str, *sources: Any, **settings: Any) -> Result:
        """Add an operation; sources are fx nodes, values, or names of nodes. Returns: its result."""
        names = tuple(self._source(source, node) for source in sources)
        name = self.fresh(node.name)
        self.nodes.append(Node(name, op, names, settings=settings, scope=self.scope(node)))
        result = Result(name)
        self.values[node] = result
        return result

    def _source(self, source: Any, node: torch.fx.Node) -> str:
        where = f"{node.target} in {self.where(node)}"
        if isinstance(source, torch.fx.Node):
            if source not in self.values:
                raise TraceError(f"trace: {where} takes {source}, which is not a tensor.")
            return self.name(self.value(source), where)
        return source if isinstance(source, str) else self.name(source, where)

    def add(self, source: torch.fx.Node, node: Node) -> None:
        """Add a node as the result of an fx node."""
        node = replace(node, name=self.fresh(node.name))
        self.nodes.append(node)
        self.values[source] = Result(node.name)

    def fresh(self, stem: str) -> str:
        """A name for a node; a layer may be called like an operation, an input or the output."""
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name


def _form(spec: Any, leaves: Any, model: str) -> Any:
    """The structure of the answer, as `Network` writes it."""
    if spec.is_leaf():
        return next(leaves)
    children = spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs
    kind, context = spec.type, spec.context
    if kind in (tuple, list) or getattr(context, "_fields", None) is not None:  # a named tuple unpacks like a tuple
        return ("list" if kind is list else "tuple", *(_form(child, leaves, model) for child in children))
    if kind is type(None):
        return None
    names: Any = (
        context[0]
        if isinstance(context, (list, tuple)) and context and isinstance(context[0], (list, tuple))
        else context
    )
    if isinstance(names, (list, tuple)) and len(names) == len(children) and all(isinstance(n, str) for n in names):
        parts = [_form(child, leaves, model) for child in children]
        return ("dict", *(item for pair in zip(names, parts, strict=True) for item in pair))
    raise TraceError(
        f"trace: {model} returns a {getattr(kind, '__name__', kind)}; tensors, tuples, lists, dictionaries with words as keys "
        "and dataclasses of tensors are supported."
    )

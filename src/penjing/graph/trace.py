"""From a user's `nn.Module` to a `Network`: its graph by `torch.export`, with the nodes mapped back to its modules.

The modules that `graph.ops.MODULES` lists stay modules, under their own paths, so that batch norm and dropout still know
training from evaluation and state-dict keys survive. What a forward method computes by itself becomes an operation.
"""

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.graph.network import INPUT, MODULE, OUTPUT, Network, Node
from penjing.graph.ops import MODULES, kind_of

_SIMPLE = {
    "relu": "relu",
    "relu_": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
    "silu": "silu",
    "silu_": "silu",
    "hardswish": "hardswish",
    "hardswish_": "hardswish",
    "hardsigmoid": "hardsigmoid",
}
_ARITHMETIC = {
    "add": ("add", "add_scalar"),
    "add_": ("add", "add_scalar"),
    "mul": ("multiply", "multiply_scalar"),
    "mul_": ("multiply", "multiply_scalar"),
    "sub": ("subtract", None),
    "sub_": ("subtract", None),
}


def trace(model: nn.Module, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Network:
    """Read a module's graph.

    Args:
        model: any module whose operations are in `graph.ops`; it is not modified. A `Network` is copied.
        inputs: example inputs of `forward`, in order or by name, each (batch, ...). Their batch size does not matter.
    Returns: a network with copies of the model's modules, which computes the same, in training and in evaluation.
    Raises: TraceError: what could not be read, and in which layer.
    """
    if isinstance(model, Network):
        return copy.deepcopy(model)
    args = () if isinstance(inputs, Mapping) else tuple(inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    order = list(inspect.signature(model.forward).parameters)  # the network takes them in the model's order
    kwargs = {name: kwargs[name] for name in sorted(kwargs, key=lambda n: order.index(n) if n in order else len(order))}
    exported = _export(model, args, kwargs)
    network = _Reader(model, exported).network([*args, *kwargs.values()])
    _check(model, network, args, kwargs)
    return network


def _export(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    frozen = copy.deepcopy(model).eval()

    def two(x: Tensor) -> Tensor:
        # a batch of one would be taken for a constant
        return torch.cat([x[:1], x[:1]]).to(where)

    arguments = tuple(two(x) for x in args)
    keywords = {name: two(x) for name, x in kwargs.items()}
    shapes = torch.export.ShapesCollection()  # by tensor, because forward may take *args
    for x in (*arguments, *keywords.values()):
        shapes[x] = {0: torch.export.Dim.AUTO}
    for name in ("torch.export", "torch._subclasses.fake_tensor"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they have to say is in the error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sizes = shapes.dynamic_shapes(frozen, arguments, keywords)
            return torch.export.export(frozen, arguments, keywords, dynamic_shapes=sizes, strict=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TraceError(
            f"trace: {_innermost(frozen, error)} could not be read by torch.export: {reason.rstrip('.')}. "
            "The forward method must not branch on the data, and the example batch must fit it."
        ) from error


def _innermost(model: nn.Module, error: BaseException) -> str:
    """The layer in whose forward method an error was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    frame = error.__traceback__
    while frame is not None:
        found = names.get(id(frame.tb_frame.f_locals.get("self")), found)
        frame = frame.tb_next
    layer = type(model.get_submodule(found)).__name__
    return f'layer "{found}" ({layer})' if found else layer


def _check(model: nn.Module, network: Network, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    """Never a wrong network: both must answer the example batch alike."""
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    original, copied = copy.deepcopy(model).eval(), copy.deepcopy(network).eval()
    with torch.no_grad():
        expected = original(*(x.to(where) for x in args), **{name: x.to(where) for name, x in kwargs.items()})
        if not isinstance(expected, Tensor):
            raise TraceError(
                f"trace: {type(model).__name__} must return one tensor, it returns a {type(expected).__name__}. "
                "Wrap it in a module that returns the logits."
            )
        try:
            found = copied(*(x.to(where) for x in args), **{name: x.to(where) for name, x in kwargs.items()})
        except (RuntimeError, TypeError) as error:
            raise TraceError(
                f"trace: the graph read from {type(model).__name__} does not run ({error}). Please report this network."
            ) from error
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise TraceError(
            f"trace: {type(model).__name__} answers {tuple(expected.shape)} in {expected.dtype}, the graph read from it"
            f" {tuple(found.shape)} in {found.dtype}. Please report this network."
        )
    if not torch.allclose(expected, found, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise TraceError(
            f"trace: the graph read from {type(model).__name__} does not compute what the model computes "
            f"(largest difference {float((expected - found).abs().max()):.3g}). Please report this network."
        )


class _Reader:
    """Walks one exported graph and collects nodes and modules."""

    def __init__(self, model: nn.Module, exported: torch.export.ExportedProgram) -> None:
        self.model = model
        self.exported = exported
        self.nodes: list[Node] = []
        self.modules: dict[str, nn.Module] = {}
        self.results: dict[torch.fx.Node, str] = {}
        self.opened: dict[str, int] = {}
        self.calls: dict[str, torch.fx.Node] = {}  # by the call's key in the module stack, its last step so far
        self.taken: set[str] = set()

    def network(self, examples: Sequence[Tensor]) -> Network:
        inputs = set(self.exported.graph_signature.user_inputs)
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in inputs:
                    self._add(node, Node(node.name, INPUT))
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
        network = Network(self.nodes, self.modules, [tuple(x.shape[1:]) for x in examples])
        own = {path: layer.training for path, layer in self.modules.items()}
        network.train(self.model.training)
        for path, training in own.items():
            self.modules[path].train(training)  # a frozen batch norm stays frozen
        return network

    def _add(self, source: torch.fx.Node, node: Node) -> None:
        node = replace(node, name=self._fresh(node.name))
        self.nodes.append(node)
        self.results[source] = node.name

    def _fresh(self, stem: str) -> str:
        """A name for a node; a layer may be called like an operation, an input or the output."""
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name

    def _output(self, node: torch.fx.Node) -> None:
        outputs = node.args[0]
        if not isinstance(outputs, (tuple, list)) or len(outputs) != 1:
            raise TraceError(
                f"trace: {type(self.model).__name__} must return one tensor, it returns {len(outputs)}. "  # type: ignore[arg-type]
                "Wrap it in a module that returns the logits."
            )
        self.nodes.append(Node(self._fresh("output"), OUTPUT, (self._source(outputs[0], "the output"),)))

    def _source(self, value: Any, where: str) -> str:
        if not isinstance(value, torch.fx.Node) or value not in self.results:
            raise TraceError(
                f"trace: {where} takes {value!r}, which is not the result of a layer "
                "(a parameter or constant used outside its layer); this is not supported yet."
            )
        return self.results[value]

    def _call(self, node: torch.fx.Node) -> None:
        if str(node.target).startswith("aten.sym_size"):
            return
        stack = node.meta.get("nn_module_stack") or {}
        call = next(reversed(stack), "")
        path = _path(stack[call][0]) if stack else ""
        layer = self.model.get_submodule(path)
        kind = kind_of(layer)
        if kind is not None and path:
            self._call_layer(node, path, layer, call)
        elif kind is not None:  # the model itself is one layer
            raise TraceError("trace: the model is a single layer; put it into a torch.nn.Sequential.")
        else:
            self._call_function(node, f'layer "{path}" ({type(layer).__name__})')
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            self.results[node.args[0]] = self.results[node]  # type: ignore[index]  # whoever reads it later sees the change

    def _call_layer(self, node: torch.fx.Node, path: str, layer: nn.Module, call: str) -> None:
        tensors = [arg for arg in node.args if isinstance(arg, torch.fx.Node) and arg in self.results]
        if call in self.calls and tensors == [
            self.calls[call]
        ]:  # the next step of the same call: reflect, then convolve
            self.results[node] = self.results[tensors[0]]
            self.calls[call] = node
            return
        if len(tensors) != 1 or not isinstance(node.target, torch._ops.OpOverload):
            raise TraceError(
                f'trace: the layer "{path}" ({type(layer).__name__}) computes more than one step; not supported yet.'
            )
        name = path.replace(".", "_")
        self.opened[name] = self.opened.get(name, 0) + 1
        if self.opened[name] > 1:
            name = f"{name}_call{self.opened[name]}"
        if path not in self.modules:
            self.modules[path] = copy.deepcopy(layer)
            if hasattr(layer, "inplace"):
                self.modules[path].inplace = False  # type: ignore[assignment]
        self._add(node, Node(name, MODULE, (self.results[tensors[0]],), path))
        self.calls[call] = node

    def _call_function(self, node: torch.fx.Node, where: str) -> None:
        target = node.target
        op = target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else str(target)
        reader = _READERS.get(op)
        if reader is None and op in _SIMPLE:
            self._add(node, Node(node.name, _SIMPLE[op], (self._source(node.args[0], where),)))
        elif reader is None and op in _ARITHMETIC:
            self._arithmetic(node, op, where)
        elif reader is None:
            raise TraceError(
                f"trace: the operation {op} in {where} is not supported yet. "
                "Known are convolution, linear, batch norm, pooling, activations, add, multiply, concat, flatten and mean."
            )
        else:
            reader(self, node, where)

    def _arithmetic(self, node: torch.fx.Node, op: str, where: str) -> None:
        tensor_op, scalar_op = _ARITHMETIC[op]
        left, right = node.args[:2]
        if isinstance(right, (int, float)) and scalar_op:
            self._add(node, Node(node.name, scalar_op, (self._source(left, where),), settings={"value": float(right)}))
        elif isinstance(left, torch.fx.Node) and not node.kwargs:
            if _shape(left)[1:] != _shape(right)[1:]:
                raise TraceError(
                    f"trace: {op} in {where} combines shapes {_shape(left)} and {_shape(right)}; "
                    "broadcasting is not supported yet."
                )
            self._add(node, Node(node.name, tensor_op, (self._source(left, where), self._source(right, where))))
        else:
            raise TraceError(f"trace: {op} in {where} with these arguments is not supported yet.")

    def one(self, node: torch.fx.Node, op: str, where: str, **settings: Any) -> None:
        """Add an operation of one tensor."""
        self._add(node, Node(node.name, op, (self._source(node.args[0], where),), settings=settings))


def _path(entry: str) -> str:
    return entry.split("@")[0]


def _shape(node: Any) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape) if isinstance(node, torch.fx.Node) else ()


def _arg(node: torch.fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])


def _flatten(reader: _Reader, node: torch.fx.Node, where: str) -> None:
    before, after = _shape(node.args[0]), _shape(node)
    tail = 1
    for size in before[1:]:
        tail *= size
    if len(after) == 2 and after[1] == tail and after[0] == before[0]:
        reader.one(node, "flatten", where, start_dim=1)
    elif tuple(before) == tuple(after):
        reader.results[node] = reader._source(node.args[0], where)
    else:
        raise TraceError(f"trace: the reshape from {tuple(before)} to {tuple(after)} in {where} is not supported yet.")


def _pool(op: str) -> Callable[[_Reader, torch.fx.Node, str], None]:
    def read(reader: _Reader, node: torch.fx.Node, where: str) -> None:
        kernel = _pair(node.args[1])
        stride = _pair(_arg(node, 2, "stride", None) or kernel)
        if len(node.args) > 4:
            raise TraceError(f"trace: {op} in {where} with dilation, ceil_mode or a divisor is not supported yet.")
        reader.one(node, op, where, kernel_size=kernel, stride=stride, padding=_pair(_arg(node, 3, "padding", 0)))

    return read


def _mean(reader: _Reader, node: torch.fx.Node, where: str) -> None:
    rank = len(_shape(node.args[0]))
    dims = tuple(int(d) for d in _arg(node, 1, "dim", None) or range(rank))
    _keeps_samples_apart(dims, rank, "mean", where)
    reader.one(node, "mean", where, dims=dims, keepdim=bool(_arg(node, 2, "keepdim", False)))


def _keeps_samples_apart(dims: Sequence[int], rank: int, op: str, where: str) -> None:
    if any(d % rank == 0 for d in dims):
        raise TraceError(
            f"trace: {op} in {where} runs along the batch dimension; each sample must be computed by itself. "
            "Move that step behind the network."
        )


def _dropout(kind: str) -> Callable[[_Reader, torch.fx.Node, str], None]:
    def read(reader: _Reader, node: torch.fx.Node, where: str) -> None:
        if kind == "Dropout2d" and len(_shape(node)) != 4:
            raise TraceError(
                f"trace: channel dropout of a result of shape {_shape(node)} in {where} is not supported yet."
            )
        path = f"functional_{node.name}"
        while path in reader.modules:
            path += "_"
        reader.modules[path] = MODULES[kind].build({"p": float(node.args[1])})  # type: ignore[arg-type]
        reader.modules[path].train(reader.model.training)
        reader._add(node, Node(node.name, MODULE, (reader._source(node.args[0], where),), path))

    return read


def _concat(reader: _Reader, node: torch.fx.Node, where: str) -> None:
    parts = tuple(reader._source(part, where) for part in node.args[0])  # type: ignore[union-attr]
    dim = int(_arg(node, 1, "dim", 0))
    _keeps_samples_apart([dim], len(_shape(node)), "concat", where)
    reader._add(node, Node(node.name, "concat", parts, settings={"dim": dim}))


def _softmax(op: str) -> Callable[[_Reader, torch.fx.Node, str], None]:
    def read(reader: _Reader, node: torch.fx.Node, where: str) -> None:
        dim = int(_arg(node, 1, "dim", 1))
        _keeps_samples_apart([dim], len(_shape(node)), op, where)
        reader.one(node, op, where, dim=dim)

    return read


def _same(reader: _Reader, node: torch.fx.Node, where: str) -> None:
    reader.results[node] = reader._source(node.args[0], where)


_READERS: dict[str, Callable[[_Reader, torch.fx.Node, str], None]] = {
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    "_unsafe_view": _flatten,
    "contiguous": _same,
    "detach_": _same,
    "alias": _same,
    "adaptive_avg_pool2d": lambda r, n, w: r.one(n, "adaptive_avg_pool2d", w, output_size=_pair(n.args[1])),
    "max_pool2d": _pool("max_pool2d"),
    "avg_pool2d": _pool("avg_pool2d"),
    "mean": _mean,
    "dropout": _dropout("Dropout"),
    "feature_dropout": _dropout("Dropout2d"),
    "cat": _concat,
    "softmax": _softmax("softmax"),
    "log_softmax": _softmax("log_softmax"),
    "gelu": lambda r, n, w: r.one(n, "gelu", w, approximate=str(n.kwargs.get("approximate", "none"))),
    "leaky_relu": lambda r, n, w: r.one(n, "leaky_relu", w, negative_slope=float(_arg(n, 1, "negative_slope", 0.01))),
}

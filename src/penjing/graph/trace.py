"""From a user's `nn.Module` to a `Network`: its graph by `torch.export`, with the nodes mapped back to its modules.

    example inputs ── torch.export ── fx graph ── reading (one rule an operation, see `readers`) ── Network ── checked

Layers that `graph.modules.MODULES` lists stay modules, under their own paths, so that batch norm and dropout still know
training from evaluation and state-dict keys survive. What a forward method computes by itself becomes an operation, what it
computes of literals alone becomes a constant.
"""

import contextlib
import copy
import dataclasses
import inspect
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from penjing.errors import TraceError
from penjing.graph.garbage import collector_paused
from penjing.graph.network import Network
from penjing.graph.reader import Reader

MARKED_BATCH = 1021
"""A number of samples that is a factor of no other size."""
_MAX_MARKED = 1 << 28
_Exported = tuple[torch.export.ExportedProgram, int | None]
"""A graph, and the number of samples by which its sizes are known; None where they are symbolic."""
_Way = Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], _Exported]


class _MarkedError(TraceError):
    """What went wrong with a marked batch; another way may say it better."""


def trace(model: nn.Module, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Network:
    """Read a module's graph.

    Args:
        model: any module that `torch.export` can read and whose operations are in `graph.ops`; it is not modified. A
            `Network` is copied.
        inputs: example inputs of `forward`, in order or by name, each (batch, ...). Their batch size does not matter; the
            lengths of sequences may differ later where the model allows it.
    Returns: a network with copies of the model's modules, which computes the same. It is read in evaluation mode: dropout and
        batch norm are layers and train as they did, but what a forward method itself does only in training (stochastic depth,
        noise, auxiliary answers, dropout inside attention) is not in it.
    Raises: TraceError: what could not be read, and in which layer.
    """
    if isinstance(model, Network):
        return copy.deepcopy(model)
    if not isinstance(model, nn.Module):
        raise TraceError(f"trace: the model must be a torch.nn.Module, got {type(model).__name__}.")
    _refuse_wrappers(model)
    with collector_paused():
        return _traced(model, inputs)


def _traced(model: nn.Module, inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> Network:
    args, kwargs = in_order(model, inputs)
    with evaluating(model), _custom_functions() as custom:
        before = _state(model)
        expected = _first_answer(model, args, kwargs)
        steady = _alike(expected, _first_answer(model, args, kwargs))
        changed = sorted({name for name, value in _state(model).items() if before.get(name) != value})
    whole, prefix = (_Plain(model), "model.") if _has_dataclass(expected) else (model, "")
    errors: list[TraceError] = []
    for export in _ways([*args, *kwargs.values()]):
        try:
            with evaluating(model):
                exported, marked = export(whole, args, kwargs)
            network = _checked(model, Reader(model, exported, prefix, marked), expected, args, kwargs)
            if not steady:
                what = f"it changes {', '.join(changed[:3])}" if changed else "it draws random numbers"
                raise TraceError(
                    f"trace: {type(model).__name__} answers the same input differently at the second call: {what}. "
                    "A graph keeps nothing between calls."
                )
            if custom:
                _check_gradients(model, network, args, kwargs, custom)
            return network
        except TraceError as error:
            errors.append(error)
    raise next((e for e in errors if not isinstance(e, _MarkedError)), errors[0])


def _ways(examples: Sequence[Tensor]) -> list[_Way]:
    """How to export, the fastest first; the next one is tried where one fails."""
    marked = [_marked_export] if all(x[0].numel() * MARKED_BATCH < _MAX_MARKED for x in examples) else []
    if any(x.dim() in (2, 3) for x in examples):  # a sequence, perhaps
        return [partial(_export, with_lengths=True), partial(_export, with_lengths=False), *marked]
    return [*marked, partial(_export, with_lengths=False)]


def _checked(
    model: nn.Module, reader: Reader, expected: Any, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
) -> Network:
    network = reader.network([*args, *kwargs.values()])
    _check(model, network, expected, args, kwargs)
    return network


@contextlib.contextmanager
def _custom_functions() -> Iterator[list[str]]:
    """The names of the torch.autograd.Functions that are applied within; their backward is in no graph."""
    found: list[str] = []
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        found.append(cls.__name__)
        return original.__get__(None, cls)(*args, **kwargs)

    function: Any = torch.autograd.Function
    function.apply = classmethod(apply)
    try:
        yield found
    finally:
        function.apply = original


def _check_gradients(
    model: nn.Module,
    network: Network,
    args: tuple[Tensor, ...],
    kwargs: Mapping[str, Tensor],
    custom: Sequence[str],
) -> None:
    """Both must learn alike."""
    left, right = (_gradients(m, args, kwargs) for m in (model, network))
    for name in left if right else ():
        one, other = left[name], right.get(name)
        scale = float(one.abs().max())
        other = torch.zeros_like(one) if other is None else other
        if not torch.allclose(one, other, rtol=1e-2, atol=1e-3 * scale + 1e-8, equal_nan=True):
            raise TraceError(
                f'trace: the gradient of "{name}" is another one in the graph than in the model, because '
                f"{', '.join(dict.fromkeys(custom))} has a backward of its own, which a graph cannot hold."
            )


def _gradients(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By parameter, the gradient of a weighted sum of the answers for one sample; empty where nothing can learn."""
    with evaluating(model), torch.enable_grad():
        answer = model(*(_one(x) for x in args), **{name: _one(x) for name, x in kwargs.items()})
        leaves = [x for x in pytree.tree_leaves(_plain(answer)) if isinstance(x, Tensor) and x.requires_grad]
        if not leaves:
            return {}
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sums = [
            (x * torch.arange(1, x.numel() + 1, device=x.device).reshape(x.shape).cos()).sum().double() for x in leaves
        ]
        found = torch.autograd.grad(torch.stack(sums).sum(), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def _one(x: Tensor) -> Tensor:
    """The first sample; a copy, because forward may change it."""
    return x[:1].clone()


def _state(model: nn.Module) -> dict[str, tuple[int, int]]:
    """What a forward method may keep something in, by name: which object it is, and how often it was written to."""
    found: dict[str, tuple[int, int]] = {}
    for path, module in model.named_modules():
        held = {**vars(module), **module._parameters, **module._buffers}
        for name, value in held.items():
            if not name.startswith("_"):
                version = value._version if isinstance(value, Tensor) and not value.is_inference() else 0
                found[f"{path}.{name}" if path else name] = (id(value), version)
    return found


def _alike(one: Any, other: Any) -> bool:
    pairs = zip(*(pytree.tree_leaves(_plain(answer)) for answer in (one, other)), strict=True)
    return all(
        torch.allclose(a, b, equal_nan=True) for a, b in pairs if isinstance(a, Tensor) and a.layout == torch.strided
    )


class _Plain(nn.Module):
    """A model whose answer is a dataclass that `torch.export` does not know: answers with a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _plain(self.model(*args, **kwargs))


def _plain(answer: Any) -> Any:
    if type(answer) in (dict, list, tuple):
        items = answer.items() if isinstance(answer, dict) else enumerate(answer)
        plain = {key: _plain(value) for key, value in items}
        return plain if isinstance(answer, dict) else type(answer)(plain.values())
    if dataclasses.is_dataclass(answer) and not pytree.is_namedtuple_instance(answer) and not isinstance(answer, dict):
        return {f.name: _plain(getattr(answer, f.name)) for f in dataclasses.fields(answer)}
    return answer


def _has_dataclass(answer: Any) -> bool:
    parts = list(answer.values()) if type(answer) is dict else list(answer) if type(answer) in (tuple, list) else []
    unknown = dataclasses.is_dataclass(answer) and type(answer) not in pytree.SUPPORTED_NODES
    return unknown or any(_has_dataclass(part) for part in parts)


def _refuse_wrappers(model: nn.Module) -> None:
    for wrapper in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        if isinstance(model, wrapper):
            raise TraceError(f"trace: the model is wrapped in {type(model).__name__}. Give its .module instead.")
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise TraceError(
            "trace: the model is compiled by torch.compile. Give the module that was compiled (._orig_mod)."
        )
    if isinstance(model, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise TraceError(f"trace: a {type(model).__name__} has lost its layers. Give the module that it was made from.")
    for name, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, torch._dynamo.OptimizedModule, nn.DataParallel)):
            raise TraceError(
                f'trace: the layer "{name}" is a {type(module).__name__}, which cannot be read. Put the original in its place.'
            )
        if "quantized" in type(module).__module__.split("."):
            raise TraceError(
                f'trace: the layer "{name}" ({type(module).__name__}) is quantized. Give the float model; penjing quantizes.'
            )
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise TraceError(f'trace: "{name}" of a lazy layer has no size yet. Call the model once before.')
        if tensor.is_meta:
            raise TraceError(f'trace: "{name}" is on the meta device and has no numbers. Load the weights first.')


def in_order(
    model: nn.Module, inputs: Sequence[Tensor] | Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The inputs as forward takes them, few samples each, on the model's device."""
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    args = () if isinstance(inputs, Mapping) else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    for name, x in [*enumerate(args), *kwargs.items()]:
        if not isinstance(x, Tensor):
            raise TraceError(f"trace: the example input {name} must be a tensor, got {type(x).__name__}.")
        if not x.dim():
            raise TraceError(f"trace: the example input {name} must have a batch dimension, it is a single number.")
        if x.is_meta or not len(x):
            raise TraceError(f"trace: the example input {name} has no {'numbers' if x.is_meta else 'samples'}.")
    order = list(inspect.signature(model.forward).parameters)  # the network takes them in the model's order
    kwargs = {name: kwargs[name] for name in sorted(kwargs, key=lambda n: order.index(n) if n in order else len(order))}

    def two(x: Tensor) -> Tensor:
        # a batch of one would be taken for a constant
        return torch.cat([x[:1], x[-1:]]).detach().to(where)

    return tuple(two(x) for x in args), {name: two(x) for name, x in kwargs.items()}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards every module as it was: attributes and buffers too."""
    tables = ("_parameters", "_buffers", "_modules")
    before = [
        (module, {name: copy.copy(value) if name in tables else value for name, value in vars(module).items()})
        for module in model.modules()
    ]
    buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
    model.eval()
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        with torch.no_grad():
            for buffer, version, value in buffers:
                if buffer._version != version:
                    buffer.copy_(value)


class _ParametersStay(TorchDispatchMode):
    """Stops a forward method before it writes to a parameter: that could not be undone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._name_of = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters() if p.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for place, value in zip(func._schema.arguments, args, strict=False):
                written = place.alias_info is not None and place.alias_info.is_write
                name = self._name_of.get(value.untyped_storage().data_ptr()) if written else None
                if name is not None:
                    raise TraceError(
                        f"trace: the forward method changes the parameter {name} in place; "
                        "a network whose answer depends on earlier calls cannot be held as a graph."
                    )
        return func(*args, **(kwargs or {}))


def answer_of(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Any:
    """What the model answers, dataclasses as dictionaries."""
    return _plain(model(*args, **kwargs))


def _first_answer(model: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> Any:
    """What the model says of one sample: the graph is read from two, so what depends on their number shows."""
    try:
        with torch.no_grad(), _ParametersStay(model):
            return model(*(_one(x) for x in args), **{n: _one(x) for n, x in kwargs.items()})
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"trace: {_innermost(model, error)} cannot compute the example inputs: {_first_line(error)}. "
            f"They have the shapes {', '.join(str(tuple(x.shape)) for x in [*args, *kwargs.values()])}."
        ) from error


def _marked_export(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> _Exported:
    """Export for a number of samples that can be told from every other size: twice as fast as with a symbolic one.

    No numbers are computed for them. Whether every size that depends on the batch was recognised shows when the network is
    compared with the model for another number of samples.
    """

    def many(x: Tensor) -> Tensor:
        return torch.empty(MARKED_BATCH, *x.shape[1:], dtype=x.dtype, device=x.device)

    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            inputs = tuple(many(x) for x in args), {name: many(x) for name, x in kwargs.items()}
            return torch.export.export(model, *inputs, strict=False), MARKED_BATCH
    except Exception as error:
        raise _MarkedError(_why_not(model, error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export's own log says in many lines what is in its error too."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _export(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], with_lengths: bool) -> _Exported:
    shapes = torch.export.ShapesCollection()  # by tensor, because forward may take *args
    for x in (*args, *kwargs.values()):
        free = {0: torch.export.Dim.AUTO}
        if with_lengths and x.dim() in (2, 3):
            free[1] = torch.export.Dim.AUTO
        shapes[x] = free
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            sizes = shapes.dynamic_shapes(model, args, kwargs)
            return torch.export.export(model, args, kwargs, dynamic_shapes=sizes, strict=False), None
    except Exception as error:
        raise TraceError(_why_not(model, error)) from error


def _why_not(model: nn.Module, error: Exception) -> str:
    return (
        f"trace: {_innermost(model, error)} could not be read by torch.export: {_first_line(error)}. "
        "The forward method must not branch on the data, and the example batch must fit it."
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


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


def _check(
    model: nn.Module, network: Network, expected: Any, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
) -> None:
    """Never a wrong network: both must answer the example alike."""
    name = type(model).__name__
    with evaluating(network), torch.no_grad():
        try:
            found = network(*(_one(x) for x in (*args, *kwargs.values())))
        except Exception as error:
            raise TraceError(
                f"trace: the graph read from {name} does not run ({_first_line(error)}). Please report this network."
            ) from error
    left = [x for x in pytree.tree_leaves(_plain(expected)) if isinstance(x, Tensor)]
    right = [x for x in pytree.tree_leaves(found) if isinstance(x, Tensor)]
    if len(left) != len(right):
        raise TraceError(f"trace: {name} answers with {len(left)} tensors, the graph read from it with {len(right)}.")
    for one, other in zip(left, right, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise TraceError(
                f"trace: {name} answers {tuple(one.shape)} in {one.dtype}, the graph read from it {tuple(other.shape)} in"
                f" {other.dtype}. Either the forward method depends on the number of samples, or this is a fault of penjing's."
            )
        scale = float(one.abs().max()) if one.numel() and one.is_floating_point() else 1.0
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-5 * max(1.0, scale), equal_nan=True):
            raise TraceError(
                f"trace: the graph read from {name} does not compute what the model computes "
                f"(largest difference {float((one - other).abs().max()):.3g}). Please report this network."
            )

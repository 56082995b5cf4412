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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from penjing.errors import DataError, TraceError
from penjing.graph.ops import OPERATIONS, apply_operation

INPUT, MODULE, EXIT, OUTPUT = "input", "module", "exit", "output"
NEVER = 2.0
"""An exit threshold that no confidence reaches: the exit is there but nobody leaves."""


@dataclass(frozen=True)
class Node:
    """One step of the computation.

    Attributes:
        name: unique in the network; by it other nodes refer to this one's result.
        op: "input", "module", "exit", "output", or the name of an operation in `graph.ops.OPERATIONS`.
        inputs: names of the nodes whose results it takes.
        path: dotted path of the module it calls, for op "module".
        settings: constants of the operation; for an exit its `threshold`.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    path: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


_OWN = ("nodes", "_nodes", "_program", "input_shapes")


class ExitOutputs(tuple[Tensor, ...]):
    """The answers of all exits, first exit first, final answer last; what a network with exits returns in training."""

    __slots__ = ()


class Network(nn.Module):
    """A network as nodes and modules.

    Args:
        nodes: in an order in which every node follows its inputs.
        modules: the modules that nodes call, by path.
        input_shapes: the shape of each input without the batch dimension.

    Calling it: inputs in order or by the names of the input nodes, each (batch, *input_shape).
    Returns, in evaluation, the answers, (batch, ...), each from the exit where the sample left;
    in training, without exits the answers, with exits `ExitOutputs`.
    """

    def __init__(
        self, nodes: Sequence[Node], modules: Mapping[str, nn.Module], input_shapes: Sequence[tuple[int, ...]]
    ) -> None:
        super().__init__()
        self._nodes: tuple[Node, ...] = ()
        self._program: list[_Step] = []
        self.input_shapes = tuple(tuple(shape) for shape in input_shapes)
        for path, module in modules.items():
            set_module(self, path, module)
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
        self._nodes = tuple(nodes)

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

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | ExitOutputs:
        if not any(step.node.op == EXIT for step in self._program):
            return self._run(self._bind(args, kwargs))[-1]
        if self.training:
            return ExitOutputs(self._run(self._bind(args, kwargs)))
        return self.route(*args, **kwargs)[0]

    def all_answers(self, *args: Tensor, **kwargs: Tensor) -> ExitOutputs:
        """The answers of every exit and the final one for every sample; nobody leaves."""
        return ExitOutputs(self._run(self._bind(args, kwargs)))

    def route(self, *args: Tensor, **kwargs: Tensor) -> tuple[Tensor, Tensor]:
        """Compute with samples leaving at their exits.

        A sample leaves at exit k where max softmax(answer_k) >= threshold_k.
        Returns: the answers, (batch, ...), and the exit of each sample, (batch,), int64; the number of exits for those
        that went all the way. The order of the samples is kept.
        """
        values = self._bind(args, kwargs)
        n = next(iter(values.values())).shape[0]
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
                    values = {name: values[name].index_select(0, stays) for name in step.live_after}
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
            values[node.name] = step.apply(self, values)
            for name in step.drop:
                del values[name]
        raise TraceError("network: its last node must be an output.")

    def _run(self, values: dict[str, Tensor]) -> list[Tensor]:
        answers: list[Tensor] = []
        for step in self._program:
            if step.node.op in (EXIT, OUTPUT):
                answers.append(values[step.node.inputs[0]])
            else:
                values[step.node.name] = step.apply(self, values)
            for name in step.drop:
                del values[name]
        return answers

    def _bind(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = [node.name for node in self._nodes if node.op == INPUT]
        if len(args) + len(kwargs) != len(names) or set(kwargs) - set(names[len(args) :]):
            raise DataError(
                f"network: it takes the inputs {', '.join(names)}, got {len(args)} in order"
                f" and {', '.join(kwargs) or 'none'} by name."
            )
        values = dict(zip(names, args, strict=False)) | dict(kwargs)
        for name, shape in zip(names, self.input_shapes, strict=True):
            given = tuple(values[name].shape[1:])
            if len(given) != len(shape) or (len(given) and given[0] != shape[0]):
                raise DataError(
                    f'network: its input "{name}" must have the shape (batch, {", ".join(map(str, shape))}),'
                    f" got {tuple(values[name].shape)}. Check what the loader yields."
                )
        return values

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_program"] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._program = _compile(self._nodes)

    def extra_repr(self) -> str:
        return f"{len(self._nodes)} nodes, {len(self.exits)} exits"


@dataclass(frozen=True)
class _Step:
    """A node made ready: how to call it, which results nobody needs afterwards; for an exit, which ones somebody does."""

    node: Node
    module_of: Callable[[nn.Module], Callable[..., Tensor]] | None
    drop: tuple[str, ...]
    live_after: tuple[str, ...]

    def apply(self, network: nn.Module, values: Mapping[str, Tensor]) -> Tensor:
        inputs = tuple(values[name] for name in self.node.inputs)
        if self.module_of is not None:
            return self.module_of(network)(*inputs)
        return apply_operation(self.node.op, inputs, self.node.settings)


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
        steps.append(_Step(node, module_of, drop, tuple(live) if node.op == EXIT else ()))
    return steps


def _check_arity(node: Node) -> None:
    if node.op in OPERATIONS:
        expected = OPERATIONS[node.op].n_inputs
    elif node.op in (INPUT, MODULE, EXIT, OUTPUT):
        expected = int(node.op != INPUT)
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


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at the dotted `path` below `root`. Raises: TraceError: there is none."""
    found: nn.Module | None = root
    for name in path.split(".") if path else ():
        found = found._modules.get(name) if found is not None else None
    if found is None:
        raise TraceError(f'network: there is no module "{path}".')
    return found


def node_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """The shape of every node's result for one sample, the batch dimension included as 1; found by computing it."""
    shapes: dict[str, tuple[int, ...]] = {}
    parameter = next(network.parameters(), torch.zeros(()))
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    training = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            names = [node.name for node in network.nodes if node.op == INPUT]
            values = {
                name: torch.zeros(1, *shape, dtype=dtype, device=parameter.device)
                for name, shape in zip(names, network.input_shapes, strict=True)
            }
            shapes.update({name: tuple(value.shape) for name, value in values.items()})
            for step in network._program:
                if step.node.op in (EXIT, OUTPUT):
                    shapes[step.node.name] = shapes[step.node.inputs[0]]
                else:
                    values[step.node.name] = step.apply(network, values)
                    shapes[step.node.name] = tuple(values[step.node.name].shape)
    finally:
        for module, before in training:
            module.training = before
    return shapes

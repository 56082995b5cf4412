"""Nodes made ready to run: in which order, what is needed until when, and what lies on whose way.

Two things make a sample's way its own. At an *exit* it leaves when its answer is sure enough. Between a `take` and a `put` it
is computed only where its *gate* is open:

    x ──┬── take ── convolution ── ReLU ── put ── y        y = inside where the gate is open, else x
        ├── linear ── gate (to take and put)
        └──────────────────────────────────┘

`graph.running` computes it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.graph.node import ALWAYS, EXIT, INPUT, MODULE, NEVER, OUTPUT, TENSOR, Node, module_at, tensor_at
from penjing.graph.ops import GATE, OPERATIONS, PUT, TAKE, apply_operation
from penjing.graph.sizes import has_size, resolve


@dataclass(frozen=True)
class Step:
    """A node made ready.

    Attributes:
        node: the node.
        module_of: finds the layer that it calls.
        drop: results that nobody needs afterwards.
        live_after: for an exit, the results that somebody does.
        has_size: its settings have sizes that are known only now.
        gates: between which takes and puts it lies, outermost first.
        overwrites: a put that may write into what was outside: nobody else has it, and nobody needs it afterwards.
        calls: of several nodes that have become one step, a function that takes the layer and then the inputs.
        edges, instead, look: see `Network.watched`, `replaced`, `seen`.
    """

    node: Node
    module_of: Callable[[nn.Module], Callable[..., Tensor]] | None
    drop: tuple[str, ...]
    live_after: tuple[str, ...]
    has_size: bool
    gates: tuple[str, ...] = ()
    overwrites: bool = False
    calls: Callable[..., Tensor] | None = None
    edges: Mapping[int, Callable[[Tensor], Tensor]] | None = None
    instead: Callable[..., Tensor] | None = None
    look: Callable[[Tensor], None] | None = None

    def apply(
        self, network: nn.Module, values: Mapping[str, Tensor], sizes: Mapping[str, int], device: torch.device
    ) -> Tensor:
        """The node's result."""
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
            layer = self.module_of(network)
            return layer(*inputs) if self.calls is None else self.calls(layer, *inputs)
        if self.node.op == TENSOR:
            return tensor_at(network, self.node.path)
        settings = self.node.settings
        if self.has_size:
            settings = {name: resolve(value, sizes) for name, value in settings.items()}
        return apply_operation(self.node.op, inputs, settings, device)


def compile_program(nodes: Sequence[Node]) -> list[Step]:
    """Check the order and find each result's last use.

    Raises: TraceError: a node before its inputs, with too many or too few of them, a name twice, no input, or no output at
        the end; a gate that is none, an exit or the output between a take and its put.
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
    inside = gates_around(nodes)
    some_gates = any(inside.values())
    steps: list[Step] = []
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
        live_after = tuple(live) if node.op == EXIT else ()
        if some_gates and any(inside[name] for name in live_after):
            raise TraceError(
                f'network: the exit "{node.name}" is between a take and its put, where not every sample comes.'
            )
        overwrites = node.op == PUT and node.inputs[1] in drop and _is_own(node.inputs[1], nodes)
        steps.append(Step(node, module_of, drop, live_after, sized, inside[node.name], overwrites))
    return steps


_MAKE_NEW = ("add", "relu", "concat", "multiply", "subtract")
"""Operations whose results share no memory with anything."""


def _is_own(name: str, nodes: Sequence[Node]) -> bool:
    """Whether a result shares its memory with no other result: its operation makes a new one, and so do those that read it."""
    for node in nodes:
        if node.name == name and node.op not in _MAKE_NEW:
            return False
        if name in node.inputs and node.op not in (*_MAKE_NEW, "mean", TAKE, PUT):
            return False
    return True


def gates_around(nodes: Sequence[Node]) -> dict[str, tuple[str, ...]]:
    """By node, the gates between whose take and put it lies, outermost first: it is computed only where all are open.

    Raises: TraceError: a take or a put without a gate, a put whose inside comes from elsewhere, results of two different ways
        that meet without a put, an exit or the output on a way that not everybody goes.
    """
    if not any(node.op in (TAKE, PUT) for node in nodes):
        return dict.fromkeys((node.name for node in nodes), ())
    by_name = {node.name: node for node in nodes}
    samples = per_sample(nodes)
    found: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        ways = [found[name] for name in node.inputs if name in samples]
        longest = max(ways, key=len, default=())
        if node.op in (TAKE, PUT):
            gate = node.inputs[-1]
            if by_name[gate].op != GATE:
                raise TraceError(
                    f'network: the node "{node.name}" ({node.op}) must have a gate as its last input, it has "{gate}".'
                )
            before = found[gate]
            outside = [found[name] for name in node.inputs[node.op == PUT : -1] if name in samples]
            if any(way != before for way in outside) or (node.op == PUT and found[node.inputs[0]] != (*before, gate)):
                raise TraceError(
                    f'network: the node "{node.name}" puts back what was not taken by the gate "{gate}" there.'
                    if node.op == PUT
                    else f'network: the node "{node.name}" takes from other samples than the gate "{gate}" looks at.'
                )
            found[node.name] = (*before, gate) if node.op == TAKE else before
            continue
        if any(way != longest for way in ways):
            raise TraceError(
                f'network: the node "{node.name}" takes results of some samples and of others; take or put them first.'
            )
        if longest and node.op in (EXIT, OUTPUT):
            raise TraceError(f'network: "{node.name}" is between a take and its put, where not every sample comes.')
        found[node.name] = longest
    return found


def per_sample(nodes: Sequence[Node]) -> frozenset[str]:
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


def evaluated(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that evaluation has to compute, each as late as possible: right before the first answer that needs it.

    Exits that nobody can reach are not computed. An exit at which everybody leaves is the output.
    """
    order = {node.name: position for position, node in enumerate(nodes)}
    by_name = {node.name: node for node in nodes}
    done: set[str] = set()
    found: list[Node] = [node for node in nodes if node.op == INPUT]
    done.update(node.name for node in found)
    for answer in nodes:
        if answer.op not in (EXIT, OUTPUT) or (answer.op == EXIT and answer.settings["threshold"] >= NEVER):
            continue
        stack, new = list(answer.inputs), set()
        while stack:
            name = stack.pop()
            if name not in done and name not in new:
                new.add(name)
                stack += by_name[name].inputs
        found += [by_name[name] for name in sorted(new, key=order.__getitem__)]
        done |= new
        if answer.op == EXIT and answer.settings["threshold"] <= ALWAYS:
            found.append(Node(answer.name, OUTPUT, answer.inputs))
            return found
        found.append(answer)
    return found


def in_order_of_answers(nodes: Sequence[Node]) -> list[Node]:
    """The same nodes, each right before the first answer that needs it: exits come as early as they can."""
    reachable = [replace(node, settings={"threshold": 0.0}) if node.op == EXIT else node for node in nodes]
    order = [node.name for node in evaluated(reachable)]
    by_name = {node.name: node for node in nodes}
    return [by_name[name] for name in order]


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


def weights_of(nodes: Sequence[Node]) -> set[str]:
    """The nodes that make weights of convolutions and linear layers out of parameters: they know nothing of places."""
    if not any(node.op in ("convolution", "linear") for node in nodes):
        return set()
    samples = per_sample(nodes)
    found: set[str] = set()
    for node in reversed(nodes):
        if node.op in ("convolution", "linear"):
            found.update(name for name in node.inputs[1:] if name not in samples)
        elif node.name in found:
            found.update(node.inputs)
    return found

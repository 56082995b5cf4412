"""Nodes made ready to run: in evaluation only what somebody needs, and each sample only where it has to go.

Two things make a sample's way its own. At an *exit* it leaves when its answer is sure enough. Between a `take` and a `put` it
is computed only where its *gate* is open:

    x ──┬── take ── convolution ── ReLU ── put ── y        y = inside where the gate is open, else x
        ├── linear ── gate (to take and put)
        └──────────────────────────────────┘

Whoever does not go on is taken out of the tensors, so nothing is computed for it; where nobody goes on, nothing at all is
computed. The order of the samples is kept. In training, and where all answers are asked for, everything is computed for
everybody and gates choose.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.graph.node import (
    ALWAYS,
    EXIT,
    INPUT,
    MODULE,
    NEVER,
    OUTPUT,
    TENSOR,
    Node,
    answer_of,
    confidence,
    module_at,
    tensor_at,
)
from penjing.graph.ops import GATE, OPERATIONS, PUT, TAKE, apply_operation
from penjing.graph.sizes import BATCH, has_size, resolve


class Routes(NamedTuple):
    """What a network answered and which way each sample went.

    Attributes:
        answers: (batch, ...).
        left_at: (batch,), int64: the exit at which each sample left; the number of exits for those that went all the way.
        opened: by gate, (batch,), bool: whose gate was open; False for those that did not come so far.
    """

    answers: Tensor
    left_at: Tensor
    opened: dict[str, Tensor]


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
        edges, instead, look: see `Network.watched`, `replaced`, `seen`.
    """

    node: Node
    module_of: Callable[[nn.Module], Callable[..., Tensor]] | None
    drop: tuple[str, ...]
    live_after: tuple[str, ...]
    has_size: bool
    gates: tuple[str, ...] = ()
    overwrites: bool = False
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
            return self.module_of(network)(*inputs)
        if self.node.op == TENSOR:
            return tensor_at(network, self.node.path)
        settings = self.node.settings
        if self.has_size:
            settings = {name: resolve(value, sizes) for name, value in settings.items()}
        return apply_operation(self.node.op, inputs, settings, device)


BareCall = tuple[tuple[str, ...] | None, Callable[..., Any] | None, tuple[str, ...], str, tuple[str, ...]]
"""A module's path or a function, the names of inputs and result, the results that nobody needs afterwards."""


def _bare(step: Step) -> BareCall | None:
    """A step as a bare call; None where sizes and devices are known only when it runs, or where it is none."""
    node = step.node
    if node.op == MODULE:
        return tuple(node.path.split(".")), None, node.inputs, node.name, step.drop
    if node.op not in OPERATIONS or node.op in (GATE, TAKE, PUT) or OPERATIONS[node.op].creates or step.has_size:
        return None
    function = OPERATIONS[node.op].function
    return None, partial(function, **node.settings) if node.settings else function, node.inputs, node.name, step.drop


def _make(calls: Sequence[BareCall], network: nn.Module, values: dict[str, Tensor]) -> None:
    """Call one after another; `values` has what they need and gets what they give."""
    for path, function, inputs, name, drop in calls:
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


@dataclass(frozen=True)
class Straight:
    """A program in which all samples go one way, as bare calls: in small networks the way between layers is half of the time.

    Attributes:
        input_name: of the first input.
        calls: the calls; output: what is made of the results in the end.
    """

    input_name: str
    calls: tuple[BareCall, ...]
    output: Node

    @classmethod
    def of(cls, program: Sequence[Step], input_name: str) -> "Straight | None":
        """None where samples may part, or where there are sizes and devices that are known only when it runs."""
        calls: list[BareCall] = []
        for step in program[:-1]:
            call = None if step.gates else _bare(step)
            if call is None:
                return None
            calls.append(call)
        return cls(input_name, tuple(calls), program[-1].node)

    def run(self, network: nn.Module, values: dict[str, Tensor]) -> Any:
        """The answer; `values` starts as the inputs."""
        _make(self.calls, network, values)
        return answer_of(self.output, [values[name] for name in self.output.inputs])


@dataclass(frozen=True)
class Alone:
    """A program with exits and gates for a single sample, as bare calls: whatever parts samples is then a jump.

    Attributes:
        input_name: of the first input.
        segments: a gate that must be open, or None; calls; then what ends them: an operation, its inputs and its name, for
            gates of one node of logits (name, column, rule) of each, for an exit its node.
    """

    input_name: str
    segments: tuple[tuple[str | None, tuple[BareCall, ...], str, tuple[str, ...], str, Any], ...]

    @classmethod
    def of(cls, program: Sequence[Step], input_name: str) -> "Alone | None":
        """None where sizes or devices are known only when it runs, or several tensors are answered."""
        segments: list[tuple[str | None, tuple[BareCall, ...], str, tuple[str, ...], str, Any]] = []
        calls: list[BareCall] = []
        gate: str | None = None
        for step in program:
            node = step.node
            here = step.gates[-1] if step.gates else None  # it is looked at only where the outer ones are open
            if here != gate and calls:
                segments.append((gate, tuple(calls), "", (), "", None))
                calls = []
            gate = here
            if node.op == TAKE:  # whoever comes here is taken
                calls.append((None, _same, node.inputs[:1], node.name, ()))
            elif node.op == GATE:
                own = (node.name, node.settings["column"], node.settings["rule"])
                if segments and not calls and segments[-1][2:4] == (GATE, node.inputs) and segments[-1][0] == gate:
                    segments[-1] = (*segments[-1][:5], (*segments[-1][5], own))
                else:
                    segments.append((gate, tuple(calls), GATE, node.inputs, node.name, (own,)))
                    calls = []
            elif node.op in (PUT, EXIT, OUTPUT):
                if node.settings.get("form") is not None:
                    return None
                segments.append((gate, tuple(calls), node.op, node.inputs, node.name, node))
                calls = []
            else:
                call = _bare(step)
                if call is None:
                    return None
                calls.append(call)
        return cls(input_name, tuple(segments))

    def run(self, network: nn.Module, values: dict[str, Any]) -> Tensor:
        """The answer to one sample; `values` starts as the inputs and the constants."""
        is_open: dict[str, bool] = {}
        for gate, calls, op, inputs, name, more in self.segments:
            if gate is not None and not is_open.get(gate):
                continue
            if calls:
                _make(calls, network, values)
            if op == PUT:
                values[name] = values[inputs[0] if is_open[inputs[2]] else inputs[1]]
            elif op == GATE:
                own = values[inputs[0]][0].tolist()
                for opened, column, rule in more:
                    is_open[opened] = own[column] > 0 if rule == "above" else own.index(max(own)) == column
            elif op == EXIT:
                answer: Tensor = values[inputs[0]]
                if float(confidence(more, answer)) >= more.settings["threshold"]:
                    return answer
            elif op == OUTPUT:
                final: Tensor = values[inputs[0]]
                return final
        raise TraceError("network: its last node must be an output.")


def _same(x: Tensor) -> Tensor:
    return x


class Constants:
    """Weights that are computed of parameters alone, slices above all: computed once, as long as the parameters stay the same.

    Args:
        steps: the nodes that compute them, in order.
        wanted: those of them that the rest of a program reads.
    """

    def __init__(self, steps: Sequence[Step], wanted: Sequence[str]) -> None:
        self._steps, self._wanted = tuple(steps), tuple(wanted)
        self._paths = [step.node.path.rpartition(".") for step in steps if step.node.op == TENSOR]
        self._held: list[tuple[dict[str, Any], str, Tensor, int, int]] = []
        self._values: dict[str, Tensor] | None = None

    def values(self, network: nn.Module) -> dict[str, Tensor] | None:
        """The weights by name; None where gradients are wanted or representations stand between: nothing can be kept then."""
        if torch.is_grad_enabled():
            return None
        if self._values is not None and all(
            held.get(key) is tensor and tensor._version == version and tensor.data_ptr() == place
            for held, key, tensor, version, place in self._held
        ):
            return self._values
        self._values, self._held = None, []
        for owner_path, _, key in self._paths:
            owner = module_at(network, owner_path)
            held: dict[str, Any] = owner._parameters if owner._parameters.get(key) is not None else owner._buffers
            tensor = held.get(key)
            if tensor is None or tensor.is_inference():
                return None
            self._held.append((held, key, tensor, tensor._version, tensor.data_ptr()))
        found: dict[str, Tensor] = {}
        for step in self._steps:
            found[step.node.name] = step.apply(network, found, {}, torch.device("cpu"))
        self._values = {name: found[name].detach().contiguous() for name in self._wanted}
        return self._values


def without_constants(program: list[Step], nodes: Sequence[Node]) -> tuple[list[Step], Constants | None]:
    """A program without the steps that compute weights of convolutions and linear layers of parameters alone, and those."""
    weights = weights_of(nodes)
    if not weights:
        return program, None
    found: dict[str, Step] = {}
    for step in program:
        node = step.node
        if node.name not in weights or step.has_size:
            continue
        if node.op == TENSOR or (
            node.op in OPERATIONS and not OPERATIONS[node.op].creates and all(name in found for name in node.inputs)
        ):
            found[node.name] = step
    if all(step.node.op == TENSOR for step in found.values()):
        return program, None
    rest = [step for step in program if step.node.name not in found]
    read = {name for step in rest for name in step.node.inputs}
    wanted = [name for name in found if name in read]
    return rest, Constants(list(found.values()), wanted)


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


class Router:
    """One batch on its way through a program, each sample where it has to go.

    Args:
        numbers: by exit, its number among all exits of the network.
        last: the number of the output, or of the exit that stands for it.
        samples: the nodes whose results have a row for each sample.
    """

    def __init__(self, network: nn.Module, numbers: Mapping[str, int], last: int, samples: frozenset[str]) -> None:
        self._network, self._numbers, self._last, self._samples = network, numbers, last, samples
        self._own = ""  # the result of the last put, if that is a tensor which nobody else has

    def run(
        self,
        program: Sequence[Step],
        values: dict[str, Any],
        sizes: Mapping[str, int],
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Routes:
        """Compute. `values` starts as the inputs; `fixed` are weights that the program does not compute itself."""
        fixed = fixed or {}
        values = {**fixed, **values}
        n = sizes[BATCH]
        device = next(iter(values.values())).device
        answers: Tensor | None = None
        left_at = torch.full((n,), self._last, dtype=torch.int64, device=device)
        way = _Way(torch.arange(n, device=device), {}, n)
        for step in program:
            node = step.node
            if node.op == EXIT:
                logits = values[node.inputs[0]]
                for name in step.drop:
                    del values[name]
                leaves = confidence(node, logits) >= node.settings["threshold"]
                count = int(leaves.sum())
                if not count:
                    continue
                if count == n:
                    return Routes(logits, left_at.fill_(self._numbers[node.name]), way.opened)
                leaving = way.going[leaves]
                answers = logits.new_empty(n, *logits.shape[1:]) if answers is None else answers
                answers[leaving] = logits[leaves]
                left_at[leaving] = self._numbers[node.name]
                if count == len(logits):
                    return Routes(answers, left_at, way.opened)
                stays = torch.nonzero(~leaves).squeeze(1)
                way.going = way.going[stays]
                values = {
                    name: values[name].index_select(0, stays)
                    if name in self._samples and len(values[name]) == len(logits)
                    else values[name]
                    for name in step.live_after
                }
                values.update(fixed)
                sizes = {**sizes, BATCH: len(stays)}
                continue
            if node.op == OUTPUT:
                if answers is None:
                    return Routes(answer_of(node, [values[name] for name in node.inputs]), left_at, way.opened)
                answers[way.going] = values[node.inputs[0]]
                return Routes(answers, left_at, way.opened)
            if step.gates or node.op in (GATE, TAKE, PUT):
                values[node.name] = self._gated(step, values, sizes, way, device)
            else:
                values[node.name] = step.apply(self._network, values, sizes, device)
            for name in step.drop:
                del values[name]
        raise TraceError("network: its last node must be an output.")

    def _gated(
        self, step: Step, values: Mapping[str, Any], sizes: Mapping[str, int], way: "_Way", device: torch.device
    ) -> Tensor | None:
        """The result of a step on a way that not everybody goes; None where nobody came."""
        node = step.node
        inputs = [values[name] for name in node.inputs]
        if node.op == PUT:
            inside, outside, gate = inputs
            if inside is None or outside is None:
                self._own = node.name if self._own == node.inputs[1] else self._own
                return outside
            if len(inside) == len(outside):
                return inside
            who = gate.nonzero().squeeze(1)
            is_own = step.overwrites or (self._own == node.inputs[1] and node.inputs[1] in step.drop)
            self._own = node.name
            if is_own and not torch.is_grad_enabled():
                return outside.index_copy_(0, who, inside)
            return outside.index_copy(0, who, inside)
        if any(value is None for value in inputs):
            return None
        if node.op == TAKE:
            x, gate = inputs
            count = int(gate.sum())
            return x if count == len(gate) else x.index_select(0, gate.nonzero().squeeze(1)) if count else None
        if step.gates and step.has_size:
            sizes = {**sizes, BATCH: len(way.rows(step.gates))}
        found = step.apply(self._network, values, sizes, device)
        if node.op == GATE:
            found = found > 0
            way.note(step, found)
        return found


@dataclass
class _Way:
    """Which samples are where.

    Attributes:
        going: numbers of those that have not left at an exit.
        opened: see `Routes`.
        n: how many there were.
    """

    going: Tensor
    opened: dict[str, Tensor]
    n: int

    def rows(self, gates: Sequence[str]) -> Tensor:
        """The numbers of the samples for which all these gates are open."""
        found = self.going
        for gate in gates:
            found = found[self.opened[gate][found]]
        return found

    def note(self, step: Step, is_open: Tensor) -> None:
        """Write down for whom the gate of a step is open."""
        everybody = torch.zeros(self.n, dtype=torch.bool, device=is_open.device)
        everybody[self.rows(step.gates)] = is_open
        self.opened[step.node.name] = everybody

"""Programs at work: in evaluation only what somebody needs, and each sample only where it has to go.

Whoever does not go on is taken out of the tensors, so nothing is computed for it; where nobody goes on, nothing at all is
computed. The order of the samples is kept. In training, and where all answers are asked for, everything is computed for
everybody and gates choose.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.graph.node import EXIT, MODULE, OUTPUT, TENSOR, Node, answer_of, confidence, module_at
from penjing.graph.ops import GATE, OPERATIONS, PUT, TAKE
from penjing.graph.program import Step, weights_of
from penjing.graph.sizes import BATCH


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


BareCall = tuple[tuple[str, ...] | None, Callable[..., Any] | None, tuple[str, ...], str, tuple[str, ...]]
"""A module's path or a function, or a function that takes the module first; the names of inputs and result; the results that
nobody needs afterwards."""


def _bare(step: Step) -> BareCall | None:
    """A step as a bare call; None where sizes and devices are known only when it runs, or where it is none."""
    node = step.node
    if node.op == MODULE:
        return tuple(node.path.split(".")), step.calls, node.inputs, node.name, step.drop
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
            if function is not None:
                call = partial(function, call)
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
        input_names: of the inputs, in order.
        calls: the calls; output: what is made of the results in the end.
    """

    input_names: tuple[str, ...]
    calls: tuple[BareCall, ...]
    output: Node

    @classmethod
    def of(cls, program: Sequence[Step], input_names: Sequence[str]) -> "Straight | None":
        """None where samples may part, or where there are sizes and devices that are known only when it runs."""
        calls: list[BareCall] = []
        for step in program[:-1]:
            call = None if step.gates else _bare(step)
            if call is None:
                return None
            calls.append(call)
        return cls(tuple(input_names), tuple(calls), program[-1].node)

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


@dataclass(frozen=True)
class Stretch:
    """Steps one after another between which no samples part, as bare calls.

    Attributes:
        gates: see `Step`; where the last one is shut for everybody, nothing is called.
        calls: the calls.
    """

    gates: tuple[str, ...]
    calls: tuple[BareCall, ...]


def in_stretches(program: Sequence[Step]) -> list[Step | Stretch]:
    """A program with as few pieces as possible: stretches, and the steps that need to know who is there."""
    found: list[Step | Stretch] = []
    pairs = [(step, _bare(step)) for step in program]
    for gates, group in groupby(pairs, lambda pair: None if pair[1] is None else pair[0].gates):
        if gates is None:
            found += [step for step, _ in group]
        else:
            found.append(Stretch(gates, tuple(call for _, call in group if call is not None)))
    return found


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
        program: Sequence[Step | Stretch],
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
        way = _Way(n, device)
        for step in program:
            if isinstance(step, Stretch):
                if not step.gates or way.somebody_at(step.gates[-1], values):
                    _make(step.calls, self._network, values)
                continue
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
                way.keep(stays)
                values = {
                    name: _rows(values[name], stays)
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
                values.pop(name, None)  # what nobody came to is not there
        raise TraceError("network: its last node must be an output.")

    def _gated(
        self, step: Step, values: Mapping[str, Any], sizes: Mapping[str, int], way: "_Way", device: torch.device
    ) -> Tensor | None:
        """The result of a step on a way that not everybody goes; None where nobody came."""
        node = step.node
        inputs: list[Any] = [values.get(name) for name in node.inputs]
        if node.op == PUT:
            inside, outside, is_open = inputs
            if inside is None or outside is None:
                self._own = node.name if self._own == node.inputs[1] else self._own
                return outside
            if len(inside) == len(outside):
                return inside
            who = way.places(node.inputs[2], is_open)
            is_own = step.overwrites or (self._own == node.inputs[1] and node.inputs[1] in step.drop)
            self._own = node.name
            return _with_rows(outside, who, inside, in_place=is_own and not torch.is_grad_enabled())
        if any(value is None for value in inputs):
            return None
        if node.op == TAKE:
            x, is_open = inputs
            who = way.places(node.inputs[1], is_open)
            return x if len(who) == len(is_open) else _rows(x, who) if len(who) else None
        if step.gates and step.has_size:
            sizes = {**sizes, BATCH: len(way.rows(step.gates))}
        found = step.apply(self._network, values, sizes, device)
        if node.op == GATE:
            found = found > 0
            way.note(step, found)
        return found


def _rows(x: Tensor, who: Tensor) -> Tensor:
    """Some samples, in the layout that the tensor has; `index_select` makes all of them lie row by row."""
    if _is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, who).permute(0, 3, 1, 2)
    return x.index_select(0, who)


def _with_rows(x: Tensor, who: Tensor, rows: Tensor, in_place: bool) -> Tensor:
    """The tensor with other values for some samples, in the same layout."""
    last = _is_channels_last(x)
    if last:
        x, rows = x.permute(0, 2, 3, 1), rows.permute(0, 2, 3, 1)
    found = x.index_copy_(0, who, rows) if in_place else x.index_copy(0, who, rows)
    return found.permute(0, 3, 1, 2) if last else found


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class _Way:
    """Which samples are where.

    Attributes:
        going: numbers of those that have not left at an exit.
        opened: see `Routes`.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.going = torch.arange(n, device=device)
        self.opened: dict[str, Tensor] = {}
        self._n = n
        self._places: dict[str, Tensor] = {}

    def keep(self, stays: Tensor) -> None:
        """The others have left at an exit."""
        self.going = self.going[stays]
        self._places = {}

    def places(self, gate: str, is_open: Tensor) -> Tensor:
        """In which rows a gate is open, of the samples that came to it."""
        if gate not in self._places:
            self._places[gate] = is_open.nonzero().squeeze(1)
        return self._places[gate]

    def somebody_at(self, gate: str, values: Mapping[str, Any]) -> bool:
        """Whether a gate is open for anybody."""
        is_open = values.get(gate)
        return is_open is not None and len(self.places(gate, is_open)) > 0

    def rows(self, gates: Sequence[str]) -> Tensor:
        """The numbers of the samples for which all these gates are open."""
        found = self.going
        for gate in gates:
            found = found[self.opened[gate][found]]
        return found

    def note(self, step: Step, is_open: Tensor) -> None:
        """Write down for whom the gate of a step is open."""
        if not step.gates and len(is_open) == self._n:
            self.opened[step.node.name] = is_open
            return
        everybody = torch.zeros(self._n, dtype=torch.bool, device=is_open.device)
        everybody[self.rows(step.gates)] = is_open
        self.opened[step.node.name] = everybody

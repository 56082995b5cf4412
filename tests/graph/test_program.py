"""Each sample is computed where it has to be and nowhere else, and answers as if everything had been computed."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import SettingError, TraceError
from penjing.graph import NEVER, Network, Node
from penjing.graph.network import ALWAYS, EXIT, INPUT, MODULE, OUTPUT
from penjing.graph.node import CONFIDENCES
from penjing.graph.ops import GATE, PUT, TAKE, gate
from penjing.measurement import macs_of_answers, macs_of_samples, macs_to_exits, macs_without_exits

CLASSES = 3
ABOVE, LARGEST = {"column": 0, "rule": "above"}, {"column": 1, "rule": "largest"}


def gated() -> Network:
    """A gate, within it another one, an exit, then the second of two ways or nothing; the input outlives all of them."""
    modules = {
        "outer": nn.Linear(4, 1),
        "body": nn.Linear(4, 4),
        "inner": nn.Linear(4, 1),
        "core": nn.Linear(4, 4),
        "exits.0": nn.Linear(4, CLASSES),
        "which": nn.Linear(4, 2),
        "way": nn.Linear(4, 4),
        "head": nn.Linear(4, CLASSES),
    }
    nodes = [
        Node("x", INPUT),
        Node("outer_logit", MODULE, ("x",), "outer"),
        Node("outer", GATE, ("outer_logit",), settings=ABOVE),
        Node("taken", TAKE, ("x", "outer")),
        Node("body", MODULE, ("taken",), "body"),
        Node("inner_logit", MODULE, ("body",), "inner"),
        Node("inner", GATE, ("inner_logit",), settings=ABOVE),
        Node("body_taken", TAKE, ("body", "inner")),
        Node("core", MODULE, ("body_taken",), "core"),
        Node("body_put", PUT, ("core", "body", "inner")),
        Node("put", PUT, ("body_put", "x", "outer")),
        Node("linear_0", MODULE, ("put",), "exits.0"),
        Node("exit_0", EXIT, ("linear_0",), settings={"threshold": 0.5}),
        Node("which_logits", MODULE, ("put",), "which"),
        Node("which", GATE, ("which_logits",), settings=LARGEST),
        Node("put_taken", TAKE, ("put", "which")),
        Node("way", MODULE, ("put_taken",), "way"),
        Node("way_put", PUT, ("way", "x", "which")),
        Node("sum", "add", ("way_put", "put")),
        Node("head", MODULE, ("sum",), "head"),
        Node("output", OUTPUT, ("head",)),
    ]
    return Network(nodes, modules, [(4,)]).eval()


def by_hand(network: Network, x: Tensor, threshold: float) -> tuple[Tensor, list[int], list[list[bool]]]:
    """Sample by sample, with ifs."""
    layer = network.get_submodule
    answers, left, opened = [], [], []
    for one in x:
        outer = float(layer("outer")(one)) > 0
        inner = which = False
        value = one
        if outer:
            value = layer("body")(one)
            inner = float(layer("inner")(value)) > 0
            if inner:
                value = layer("core")(value)
        early = layer("exits.0")(value)
        if float(early.softmax(0).max()) >= threshold:
            answers.append(early)
            left.append(0)
        else:
            which = int(layer("which")(value).argmax()) == 1
            way = layer("way")(value) if which else one
            answers.append(layer("head")(way + value))
            left.append(1)
        opened.append([outer, inner, which])
    return torch.stack(answers), left, opened


@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([0.0, 0.4, 0.5, 0.7, 1.1, NEVER]))
def test_each_sample_answers_as_if_it_were_alone(seed: int, batch: int, threshold: float) -> None:
    torch.manual_seed(seed)
    network = gated()
    network.set_thresholds([threshold])
    x = torch.randn(batch, 4)
    with torch.no_grad():
        answers, left, opened = by_hand(network, x, float(torch.tensor(threshold)))
        found = network.route(x)
        alone = torch.cat([network(x[i : i + 1]) for i in range(batch)])
    torch.testing.assert_close(found.answers, answers)
    torch.testing.assert_close(alone, answers)
    assert network._alone is not None and found.left_at.tolist() == left
    nobody = torch.zeros(batch, dtype=torch.bool)
    for k, name in enumerate(("outer", "inner", "which")):
        assert found.opened.get(name, nobody).tolist() == [gates[k] for gates in opened]


@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([0.0, 0.5, NEVER]))
def test_only_who_has_to_is_computed_and_counted(seed: int, batch: int, threshold: float) -> None:
    torch.manual_seed(seed)
    network = gated()
    network.set_thresholds([threshold])
    rows: dict[str, int] = {}

    def count(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: rows.__setitem__(path, rows.get(path, 0) + len(args[0]))

    for path, layer in network.layers().items():
        layer.register_forward_pre_hook(count(path))
    x = torch.randn(batch, 4)
    with torch.no_grad():
        way = network.route(x)
    computed = dict(rows)
    with torch.no_grad():
        _, left, opened = by_hand(network, x, float(torch.tensor(threshold)))
    go_on = batch - left.count(0)
    expected = {"outer": batch, "body": sum(o for o, _, _ in opened), "core": sum(i for _, i, _ in opened)}
    expected |= {"inner": expected["body"], "exits.0": batch if threshold < NEVER else 0}
    expected |= {"which": go_on, "way": sum(w for _, _, w in opened), "head": go_on}
    assert computed == {path: n for path, n in expected.items() if n}
    cost = {path: layer.in_features * layer.out_features for path, layer in network.layers().items()}  # type: ignore[operator]
    assert int(macs_of_samples(network, way.left_at, way.opened).sum()) == sum(
        cost[path] * n for path, n in computed.items()
    )


def test_macs_of_all_ways() -> None:
    network = gated()
    assert macs_to_exits(network) == [4 + 16 + 4 + 16 + 12, 4 + 16 + 4 + 16 + 12 + 8 + 16 + 12]
    assert macs_of_answers(network) == [4 + 16 + 4 + 16 + 12, 4 + 16 + 4 + 16 + 8 + 16 + 12]
    assert macs_without_exits(network) == 16 + 16 + 16 + 12  # neither the exit nor what gates look at


def test_leaving_at_one_answer_computes_nothing_else() -> None:
    network = gated()
    x = torch.randn(5, 4)
    every = network.all_answers(x)
    for k in (0, 1):
        network.leave_at(k)
        with torch.no_grad():
            way = network.route(x)
        torch.testing.assert_close(way.answers, every[k])
        assert way.left_at.tolist() == [k] * 5
    assert "linear_0" not in [step.node.name for step in network._routed]
    network.set_thresholds([ALWAYS])
    assert [step.node.name for step in network._routed][-2:] == ["linear_0", "exit_0"]
    with pytest.raises(SettingError, match="has the answers 0 to 1, got 2"):
        network.leave_at(2)


def test_what_an_exit_does_not_need_is_computed_after_it() -> None:
    modules = {
        "a": nn.Linear(4, 4),
        "late": nn.Linear(4, 4),
        "exits.0": nn.Linear(4, CLASSES),
        "head": nn.Linear(4, CLASSES),
    }
    nodes = [
        Node("x", INPUT),
        Node("a", MODULE, ("x",), "a"),
        Node("late", MODULE, ("a",), "late"),  # written before the exit, needed after it
        Node("linear_0", MODULE, ("a",), "exits.0"),
        Node("exit_0", EXIT, ("linear_0",), settings={"threshold": 0.0}),
        Node("head", MODULE, ("late",), "head"),
        Node("output", OUTPUT, ("head",)),
    ]
    network = Network(nodes, modules, [(4,)]).eval()
    calls: list[str] = []
    network.get_submodule("late").register_forward_hook(lambda *_: calls.append("late"))
    assert network.route(torch.randn(3, 4)).left_at.tolist() == [0, 0, 0] and not calls
    assert macs_to_exits(network) == [16 + 12, 16 + 12 + 16 + 12]


def test_confidences_are_those_of_their_definitions() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 1e-12]])
    found = {name: measure(p.log()) for name, measure in CONFIDENCES.items()}
    torch.testing.assert_close(found["largest"], torch.tensor([0.7, 1 / 3, 0.5]))
    torch.testing.assert_close(found["margin"], torch.tensor([0.5, 0.0, 0.0]), atol=1e-6, rtol=0)
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    expected = [1 - entropy / math.log(3), 0.0, 1 - math.log(2) / math.log(3)]
    torch.testing.assert_close(found["entropy"], torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_gate_is_hard_forward_and_soft_backward() -> None:
    logits = torch.tensor([[2.0, -1.0], [-0.5, 3.0]], requires_grad=True)
    is_open = gate(logits, 0, "above")
    assert is_open.tolist() == [1.0, 0.0]
    is_open.sum().backward()
    p = torch.sigmoid(logits.detach()[:, 0])
    torch.testing.assert_close(logits.grad, torch.stack([p * (1 - p), torch.zeros(2)], 1))
    logits.grad = None
    largest = gate(logits, 1, "largest")
    assert largest.tolist() == [0.0, 1.0]
    largest.sum().backward()
    q = logits.detach().softmax(1)
    torch.testing.assert_close(logits.grad, torch.stack([-q[:, 0] * q[:, 1], q[:, 1] * (1 - q[:, 1])], 1))


def test_in_training_both_ways_are_computed_and_the_gate_learns() -> None:
    network = gated().train()
    answers = network(torch.randn(8, 4))
    torch.stack([answer.square().sum() for answer in answers]).sum().backward()
    for path in ("outer", "inner", "which"):
        assert float(network.get_submodule(path).weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"put": ("body", "x", "body")}, 'must have a gate as its last input, it has "body"'),
        ({"put": ("y2", "x", "g")}, 'puts back what was not taken by the gate "g"'),
        ({"sum": ("body", "x")}, '"sum" takes results of some samples and of others'),
        ({"output": ("body",)}, '"output" is between a take and its put'),
        ({"exit": ("body",)}, '"exit" is between a take and its put'),
    ],
)
def test_ways_that_do_not_fit_together_are_refused(change: dict[str, tuple[str, ...]], message: str) -> None:
    nodes = [
        Node("x", INPUT),
        Node("y2", "relu", ("x",)),
        Node("g", GATE, ("x",), settings=ABOVE),
        Node("taken", TAKE, ("x", "g")),
        Node("body", "relu", ("taken",)),
        Node("put", PUT, ("body", "x", "g")),
        Node("sum", "add", ("put", "x")),
        Node("exit", EXIT, ("sum",), settings={"threshold": 0.5}),
        Node("output", OUTPUT, ("sum",)),
    ]
    Network(nodes, {}, [(3,)])
    changed = [Node(n.name, n.op, change.get(n.name, n.inputs), settings=n.settings) for n in nodes]
    with pytest.raises(TraceError, match=message):
        Network(changed, {}, [(3,)])

"""A network is a module with a list of nodes; an exit really saves the work behind it."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import TraceError
from penjing.graph import NEVER, ExitOutputs, Network, Node, insert_after, node_shapes, replace_node
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT

CLASSES = 3


def _chain() -> Network:
    """input -> a -> exit 0 -> b -> exit 1 -> c + a -> output; the shortcut outlives both exits."""
    modules = {
        "a": nn.Linear(4, 6),
        "exits.0": nn.Linear(6, CLASSES),
        "b": nn.Linear(6, 6),
        "exits.1": nn.Linear(6, CLASSES),
        "c": nn.Linear(6, 6),
        "head": nn.Linear(6, CLASSES),
    }
    nodes = [
        Node("x", INPUT),
        Node("a", MODULE, ("x",), "a"),
        Node("linear_0", MODULE, ("a",), "exits.0"),
        Node("exit_0", EXIT, ("linear_0",), settings={"threshold": NEVER}),
        Node("b", MODULE, ("a",), "b"),
        Node("relu", "relu", ("b",)),
        Node("linear_1", MODULE, ("relu",), "exits.1"),
        Node("exit_1", EXIT, ("linear_1",), settings={"threshold": NEVER}),
        Node("c", MODULE, ("relu",), "c"),
        Node("sum", "add", ("c", "a")),
        Node("head", MODULE, ("sum",), "head"),
        Node("output", OUTPUT, ("head",)),
    ]
    return Network(nodes, modules, [(4,)]).eval()


def _expected(network: Network, x: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, list[int]]:
    """Decide for each sample by itself, from the answers of all exits."""
    answers = network.all_answers(x)
    chosen, places = [], []
    for i in range(len(x)):
        sure = [float(a[i].softmax(0).max()) >= t for a, t in zip(answers, [*thresholds, -1.0], strict=True)]
        places.append(sure.index(True))
        chosen.append(answers[places[-1]][i])
    return torch.stack(chosen) if chosen else answers[-1], places


@given(
    st.integers(0, 2**32),
    st.integers(0, 9),
    st.lists(st.sampled_from([-1.0, 0.0, 0.36, 0.4, 0.45, 0.5, 0.6, 1.0, NEVER]), min_size=2, max_size=2),
)
def test_route_decides_for_each_sample_by_itself(seed: int, n: int, thresholds: list[float]) -> None:
    torch.manual_seed(seed)
    network = _chain()
    network.set_thresholds(thresholds)
    x = 3 * torch.randn(n, 4)
    with torch.no_grad():
        answers, places, _ = network.route(x)
        expected, expected_places = _expected(network, x, network.thresholds)
        torch.testing.assert_close(answers, expected)
        assert places.tolist() == expected_places
        assert places.dtype == torch.int64
        torch.testing.assert_close(network(x), expected)
        for i in range(n):
            alone, place, _ = network.route(x[i : i + 1])
            torch.testing.assert_close(alone[0], expected[i])
            assert place.tolist() == expected_places[i : i + 1]


def _watch(network: Network) -> dict[str, list[int]]:
    """The batch sizes of every call of every layer."""
    seen: dict[str, list[int]] = {path: [] for path in network.layers()}
    for path, layer in network.layers().items():
        layer.register_forward_hook(lambda _, args, __, path=path: seen[path].append(len(args[0])))
    return seen


def test_layers_behind_an_exit_see_only_who_stays() -> None:
    network = _chain()
    x = 3 * torch.randn(64, 4)
    first, second, _ = (a.detach().softmax(-1).amax(-1) for a in network.all_answers(x))
    t0, t1 = float(first.median()), float(second[first < first.median()].median())
    network.set_thresholds([t0, t1])
    after_first = int((first < t0).sum())
    after_second = int(((first < t0) & (second < t1)).sum())
    assert 0 < after_second < after_first < 64
    seen = _watch(network)
    network(x)
    assert seen == {
        "a": [64],
        "exits.0": [64],
        "b": [after_first],
        "exits.1": [after_first],
        "c": [after_second],
        "head": [after_second],
    }


@pytest.mark.parametrize(
    ("thresholds", "called"),
    [
        ([0.0, NEVER], ["a", "exits.0"]),
        ([NEVER, 0.0], ["a", "b", "exits.1"]),
        ([NEVER, NEVER], ["a", "b", "c", "head"]),
    ],
)
def test_nothing_is_computed_when_everybody_has_left(thresholds: list[float], called: list[str]) -> None:
    network = _chain()
    network.set_thresholds(thresholds)
    seen = _watch(network)
    network(torch.randn(5, 4))
    assert {path: sizes for path, sizes in seen.items() if sizes} == {path: [5] for path in called}


def test_threshold_is_reached_by_equal_confidence() -> None:
    network = _chain()
    with torch.no_grad():
        network.get_submodule("exits.0").weight.zero_()
        network.get_submodule("exits.0").bias.copy_(torch.tensor([0.0, 0.0, -math.inf]))  # confidence: exactly 1/2
    x = torch.randn(3, 4)
    network.set_thresholds([0.5, NEVER])
    assert network.route(x)[1].tolist() == [0, 0, 0]
    network.set_thresholds([0.5 + 2**-24, NEVER])
    assert network.route(x)[1].tolist() == [2, 2, 2]


def test_answers_that_are_not_numbers_do_not_leave() -> None:
    network = _chain()
    with torch.no_grad():
        network.get_submodule("exits.0").bias.fill_(math.nan)
    network.set_thresholds([0.0, 0.0])
    assert network.route(torch.randn(3, 4))[1].tolist() == [1, 1, 1]


def test_thresholds_are_kept_as_the_file_keeps_them() -> None:
    network = _chain()
    network.set_thresholds([0.1, 0.9])
    assert network.thresholds == [float(torch.tensor(t, dtype=torch.float32)) for t in (0.1, 0.9)]


def test_training_gives_all_answers() -> None:
    network = _chain().train()
    x = torch.randn(4, 4)
    answers = network(x)
    assert isinstance(answers, ExitOutputs)
    assert isinstance(answers, tuple)
    assert [tuple(a.shape) for a in answers] == [(4, CLASSES)] * 3
    for found, expected in zip(answers, network.eval().all_answers(x), strict=True):
        assert torch.equal(found, expected)
    sum(a.sum() for a in answers).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_copies_compute_the_same_and_share_nothing() -> None:
    network = _chain()
    network.set_thresholds([0.45, 0.45])
    again = copy.deepcopy(network)
    x = torch.randn(9, 4)
    assert torch.equal(network(x), again(x))
    again.set_thresholds([NEVER, NEVER])
    assert network.thresholds == [float(torch.tensor(0.45))] * 2
    with torch.no_grad():
        again.get_submodule("a").weight.zero_()
    assert network.get_submodule("a").weight.abs().sum() > 0


def test_shapes_are_found_without_changing_the_network() -> None:
    network = _chain().train()
    network.get_submodule("b").eval()
    modes = [module.training for module in network.modules()]
    shapes = node_shapes(network)
    assert shapes["x"] == (1, 4)
    assert shapes["relu"] == (1, 6)
    assert shapes["exit_1"] == shapes["output"] == (1, CLASSES)
    assert [module.training for module in network.modules()] == modes


def test_a_layer_is_replaced_by_a_chain() -> None:
    network = _chain()
    x = torch.randn(3, 4)
    before = network.all_answers(x)[-1]
    deep = replace_node(network, "b", {"first": nn.Identity(), "second": copy.deepcopy(network.get_submodule("b"))})
    assert [n.path for n in deep.nodes if n.path.startswith("b")] == ["b.first", "b.second"]
    assert torch.equal(deep.all_answers(x)[-1], before)
    assert "b" in network.layers()
    with pytest.raises(TraceError, match='"nothing" must be called once, it is called 0 times'):
        replace_node(network, "nothing", {})


def test_no_layer_is_put_in_the_place_of_another() -> None:
    from penjing.errors import SurgeryError

    network = _chain()
    head = [Node("new", MODULE, ("a",), "exits.0")]
    with pytest.raises(SurgeryError, match=r'a layer "exits.0" in the network already'):
        insert_after(network, "a", head, {"exits.0": nn.Linear(6, CLASSES)})
    with pytest.raises(SurgeryError, match='no node "nowhere"'):
        insert_after(network, "nowhere", [], {})


X, Y = Node("x", INPUT), Node("y", OUTPUT, ("x",))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "must have an input and end in an output"),
        ([X], "must have an input and end in an output"),
        ([Node("r", "relu", ("x",)), X, Y], 'takes "x", which is not computed before it'),
        ([X, Node("x", "relu", ("x",)), Y], 'two nodes are called "x"'),
        ([X, Node("r", "relu", ("x", "x")), Y], "takes 1 inputs, it has 2"),
        ([X, Node("a", "add", ("x",)), Y], "takes 2 inputs, it has 1"),
        ([X, Node("c", "concat", (), settings={"dim": 1}), Y], "takes one or more inputs, it has 0"),
        ([X, Node("e", EXIT, settings={"threshold": 1.0}), Y], "takes 1 inputs, it has 0"),
        ([X, Node("m", "evaluate", ("x",)), Y], 'unknown operation "evaluate"'),
        ([X, Node("z", OUTPUT, ("x",)), Y], "must be the last one"),
        (
            [X, Node("e", EXIT, ("x",), settings={"threshold": 1.0}), Node("r", "relu", ("e",)), Y],
            'takes "e", which is not computed',
        ),
    ],
)
def test_nodes_that_make_no_network_are_refused(nodes: list[Node], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        Network(nodes, {}, [(3,)])

"""Surgery: the smaller network computes what the larger one does without the removed channels."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from penjing.errors import SurgeryError
from penjing.graph import (
    Network,
    Node,
    Removal,
    channel_groups,
    fold_batch_norms,
    node_shapes,
    provable,
    prove_removal,
    push_biases,
    remove_channels,
)
from penjing.graph.network import EXIT, INPUT, MODULE, OUTPUT
from penjing.representation import Codebook, Mask, represent_

SIDE = 4


class Builder:
    """Puts a network together, step by step."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.nodes = [Node(f"x{i}", INPUT) for i in range(len(shapes))]
        self.input_shapes = shapes
        self.modules: dict[str, nn.Module] = {}

    def layer(self, layer: nn.Module, source: str, path: str = "") -> str:
        path = path or f"{type(layer).__name__.lower()}{len(self.modules)}"
        self.modules.setdefault(path, layer)
        return self.op(MODULE, source, path=path)

    def op(self, op: str, *sources: str, path: str = "", **constants: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(Node(name, op, sources, path, constants))
        return name

    def network(self, source: str) -> Network:
        self.op(OUTPUT, source)
        return Network(self.nodes, self.modules, self.input_shapes)


def _shaken(network: Network) -> Network:
    """Statistics and scales that are not 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for tensor in (module.running_mean, module.weight, module.bias):
                    if tensor is not None:
                        tensor.normal_()
                if module.running_var is not None:
                    module.running_var.uniform_(0.5, 2)
    return network


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Convolutions of all kinds, norms, shortcuts, concatenations, pools, an exit, and a head with or without places."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    build = Builder((3, SIDE, SIDE))
    found: list[tuple[str, int, int]] = [("x0", 3, SIDE)]  # node, channels, side
    for _ in range(draw(st.integers(1, 9))):
        source, channels, side = found[draw(st.integers(max(0, len(found) - 3), len(found) - 1))]
        alike = [f for f in found if f[1:] == (channels, side)]
        beside = [f for f in found if f[2] == side]
        kind = draw(
            st.sampled_from(
                ["conv", "conv", "depthwise", "grouped", "norm", "relu", "add", "concat", "pool", "again", "again"]
            )
        )
        if kind == "conv":
            out, kernel = draw(st.integers(2, 5)), draw(st.sampled_from([1, 3]))
            layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=draw(st.booleans()))
            found.append((build.layer(layer, source), out, side))
        elif kind == "depthwise":
            out = channels * draw(st.integers(1, 2))
            layer = nn.Conv2d(channels, out, 3, padding=1, groups=channels, bias=draw(st.booleans()))
            found.append((build.layer(layer, source), out, side))
        elif kind == "grouped" and channels % 2 == 0:
            layer = nn.Conv2d(channels, 4, 1, groups=2)
            found.append((build.layer(layer, source), 4, side))
        elif kind == "norm":
            layer = nn.BatchNorm2d(channels, affine=draw(st.booleans()))
            found.append((build.layer(layer, source), channels, side))
        elif kind == "relu":
            found.append((build.op("relu", source), channels, side))
        elif kind == "add":
            other = draw(st.sampled_from(alike))[0]
            found.append(
                (build.op(draw(st.sampled_from(["add", "multiply", "subtract"])), source, other), channels, side)
            )
        elif kind == "concat":
            other, more, _ = draw(st.sampled_from(beside))
            found.append((build.op("concat", source, other, dim=draw(st.sampled_from([1, -3]))), channels + more, side))
        elif kind == "pool" and side > 1:
            constants = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
            op = draw(st.sampled_from(["max_pool2d", "avg_pool2d"]))
            found.append((build.op(op, source, **constants), channels, side // 2))
        elif kind == "again":
            paths = [
                (path, m)
                for path, m in build.modules.items()
                if channels == (m.num_features if isinstance(m, nn.BatchNorm2d) else m.in_channels)
            ]
            if paths:
                path, layer = draw(st.sampled_from(paths))
                out = channels if isinstance(layer, nn.BatchNorm2d) else layer.out_channels
                found.append((build.layer(layer, source, path), out, side))
    source, channels, side = found[-1]
    if draw(st.booleans()):
        pooled = build.op("mean", source, dims=(2, -1), keepdim=False)
        build.op(EXIT, build.layer(nn.Linear(channels, 2), pooled), threshold=0.5)
    if draw(st.booleans()):
        flat, width = build.op("flatten", source, start_dim=1), channels * side * side
    else:
        flat, width = build.layer(nn.Flatten(), build.layer(nn.AdaptiveAvgPool2d(1), source)), channels
    hidden = build.layer(nn.Linear(width, 4), flat)
    if draw(st.booleans()):
        hidden = build.layer(nn.BatchNorm1d(4), hidden)
    return _shaken(build.network(build.layer(nn.Linear(4, 2), build.op("relu", hidden)))).eval()


def _inputs(network: Network, n: int = 3) -> list[Tensor]:
    return [torch.randn(n, *shape, dtype=torch.float64) for shape in network.input_shapes]


@settings(max_examples=120)
@given(network=networks(), data=st.data())
def test_small_network_is_the_large_one_without_the_channels(
    network: Network, data: st.DataObject, some: Callable, silenced: Callable
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    grouping = channel_groups(network)
    chosen = some(grouping.groups, data.draw)
    removal = grouping.removal(chosen)
    assert removal.n_channels == sum(map(len, chosen.values()))
    assert not removal.survivors
    assert prove_removal(network, removal).error <= 1e-9
    small = remove_channels(network, removal)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    if chosen:
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in network.parameters())
    large, small = silenced(network, grouping, chosen).double(), small.double()
    inputs = _inputs(network)
    for expected, found in zip(large.all_answers(*inputs), small.all_answers(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(networks())
def test_every_producer_is_in_a_group_or_kept_for_a_reason(network: Network) -> None:
    grouping = channel_groups(network)
    produced = {path for group in grouping.groups for path in group.producers}
    for path, layer in network.layers().items():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups < layer.in_channels):
            assert path in produced or grouping.kept[path]
    cells = [
        (place.path, place.name, place.dim, index)
        for group in grouping.groups
        for place in group.places
        for index in place.indices.tolist()
    ]
    assert len(cells) == len(set(cells))
    assert len({group.name for group in grouping.groups}) == len(grouping.groups)


def test_groups_of_a_shortcut_and_a_concatenation() -> None:
    build = Builder((3, SIDE, SIDE))
    a = build.layer(nn.Conv2d(3, 4, 1), "x0", "a")
    b = build.layer(nn.BatchNorm2d(4), build.layer(nn.Conv2d(4, 4, 1), a, "b"), "norm")
    both = build.op("add", a, b)
    c = build.layer(nn.Conv2d(3, 2, 1), "x0", "c")
    joined = build.op("flatten", build.op("concat", both, c, dim=1), start_dim=1)
    grouping = channel_groups(build.network(build.layer(nn.Linear(6 * SIDE**2, 2), joined, "head")))
    assert {g.name: g.n_channels for g in grouping.groups} == {"a + b": 4, "c": 2}
    assert set(grouping.group("a + b").layers) == {"a", "b", "head", "norm"}
    assert grouping.group("a + b").producers == ("a", "b")
    (place,) = (p for p in grouping.group("c").places if p.path == "head")
    assert place.dim == 1
    assert not place.produces
    assert place.indices[place.channels == 1].tolist() == list(range(5 * SIDE**2, 6 * SIDE**2))
    assert grouping.kept == {"head": "it is an output of the network"}
    with pytest.raises(SurgeryError, match=r'no group "b"; Known: a \+ b, c'):
        grouping.group("b")
    with pytest.raises(SurgeryError, match=r'"c" has the channels 0 to 1, got \[2\]'):
        grouping.removal({"c": [2]})


def test_one_weight_for_two_inputs_keeps_them_together() -> None:
    build = Builder((3, SIDE, SIDE))
    a, b = (build.layer(nn.Conv2d(3, 4, 1), "x0", path) for path in "ab")
    normed = [build.layer(nn.BatchNorm2d(4), each, "norm") for each in (a, b)]
    mixed = [build.layer(nn.Conv2d(4, 5, 1), each, "shared") for each in normed]
    pooled = build.op("mean", build.op("concat", *mixed, dim=1), dims=(2, 3), keepdim=False)
    network = _shaken(build.network(build.layer(nn.Linear(10, 2), pooled, "head")))
    grouping = channel_groups(network)
    assert {g.name: g.n_channels for g in grouping.groups} == {"a + b": 4, "shared": 5}
    removal = grouping.removal({"a + b": [2], "shared": [0]})
    assert prove_removal(network, removal).error <= 1e-9
    small = remove_channels(network, removal)
    assert small.get_submodule("shared").weight.shape == (4, 3, 1, 1)
    assert small.get_submodule("head").in_features == 8


def test_an_activation_called_twice_ties_nothing() -> None:
    build = Builder((3,))
    a = build.layer(nn.ReLU(), build.layer(nn.Linear(3, 4), "x0", "a"), "relu")
    b = build.layer(nn.ReLU(), build.layer(nn.Linear(4, 4), a, "b"), "relu")
    groups = channel_groups(build.network(build.layer(nn.Linear(4, 2), b, "head"))).groups
    assert [g.name for g in groups] == ["a", "b"]


def test_what_mixes_channels_stays_whole_and_says_why() -> None:
    for op, constants, reason in (
        ("softmax", {"dim": 1}, r"n2 \(softmax\) runs along it"),
        ("local_response_norm", {"size": 3, "alpha": 1.0, "beta": 0.5, "k": 1.0}, "mixes channels"),
        ("concat", {"dim": 2}, "it is an output"),
    ):
        build = Builder((3, SIDE, SIDE))
        mixed = build.op(op, build.layer(nn.Conv2d(3, 4, 1), "x0", "a"), **constants)
        grouping = channel_groups(build.network(build.op("flatten", mixed, start_dim=1)))
        assert grouping.groups == ()
        assert re.search(reason, grouping.kept["a"])


def test_a_mean_over_channels_is_over_those_that_stay() -> None:
    build = Builder((3, SIDE, SIDE))
    mean = build.op("mean", build.layer(nn.Conv2d(3, 4, 1), "x0", "a"), dims=(1,), keepdim=True)
    network = build.network(mean)
    grouping = channel_groups(network)
    removal = grouping.removal({"a": [0, 2]})
    assert prove_removal(network, removal).changed == (mean,)
    x = torch.randn(2, 3, SIDE, SIDE)
    expected = network.get_submodule("a")(x)[:, [1, 3]].mean(1, keepdim=True)
    torch.testing.assert_close(remove_channels(network, removal)(x), expected)


def test_linear_along_another_dimension_locks_it_alone() -> None:
    build = Builder((3, SIDE, 8))
    a = build.layer(nn.Conv2d(3, 4, 1), "x0", "a")
    mixed = build.op("add", a, build.layer(nn.Linear(8, 8), a, "along"))
    pooled = build.op("sum", mixed, dims=(2, 3), keepdim=False)
    grouping = channel_groups(build.network(build.layer(nn.Linear(4, 2), pooled, "head")))
    assert {g.name: g.n_channels for g in grouping.groups} == {"a": 4}
    assert "has no channels to lose" in grouping.kept["along"]


def test_the_last_channel_cannot_go() -> None:
    build = Builder((3, SIDE, SIDE))
    pooled = build.op("mean", build.layer(nn.Conv2d(3, 4, 1), "x0", "a"), dims=(2, 3), keepdim=False)
    network = build.network(build.layer(nn.Linear(4, 2), pooled, "head"))
    grouping = channel_groups(network)
    with pytest.raises(SurgeryError, match="all 4 channels of a would be removed; leave it at least one"):
        grouping.removal({"a": [0, 1, 2, 3]})
    assert remove_channels(network, grouping.removal({"a": [1, 2, 3]})).get_submodule("a").out_channels == 1


def test_an_unsound_removal_is_not_proved() -> None:
    build = Builder((3, SIDE, SIDE))
    a = build.layer(nn.Conv2d(3, 4, 1), "x0", "a")
    pooled = build.op("mean", build.layer(nn.BatchNorm2d(4), a, "norm"), dims=(2, 3), keepdim=False)
    network = build.network(build.layer(nn.Linear(4, 2), pooled, "head"))
    grouping = channel_groups(network)
    first, second = (grouping.removal({"a": [k]}) for k in (0, 1))
    crossed = [two if one.path == "head" else one for one, two in zip(first.slices, second.slices, strict=True)]
    with pytest.raises(SurgeryError, match="differs from the one with them forced to zero"):
        prove_removal(network, replace(first, slices=tuple(crossed)))
    with pytest.raises(SurgeryError, match=r"cannot be computed|says of itself"):
        prove_removal(network, replace(first, slices=tuple(s for s in first.slices if s.path != "head")))
    with torch.no_grad():
        network.get_submodule("head").weight[0, 3] = float("nan")
    with pytest.raises(SurgeryError, match="by nan relative"):
        prove_removal(network, first)


def test_representations_are_cut_with_their_layer() -> None:
    build = Builder((3, SIDE, SIDE))
    pooled = build.op("mean", build.layer(nn.Conv2d(3, 6, 3), "x0", "a"), dims=(2, 3), keepdim=False)
    network = build.network(build.layer(nn.Linear(6, 2), pooled, "head")).eval()
    a, head = network.get_submodule("a"), network.get_submodule("head")
    represent_(a, "weight", Mask(torch.rand(6, 3, 3, 3) < 0.5))
    represent_(head, "weight", Codebook(torch.randint(0, 4, (2, 6)), torch.randn(4)))
    removal = channel_groups(network).removal({"a": [1, 4]})
    prove_removal(network, removal)
    small = remove_channels(network, removal)
    keep = [0, 2, 3, 5]
    assert torch.equal(small.get_submodule("a").weight, a.weight[keep])
    assert torch.equal(small.get_submodule("head").weight, head.weight[:, keep])
    assert a.weight.shape == (6, 3, 3, 3)


def test_a_foreign_parametrization_is_refused() -> None:
    build = Builder((3,))
    hidden = build.layer(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), "x0", "a")
    network = build.network(build.layer(nn.Linear(4, 2), hidden, "head"))
    with pytest.raises(SurgeryError, match="_WeightNorm of weight has no method sliced"):
        remove_channels(network, channel_groups(network).removal({"a": [0]}))


@settings(max_examples=60)
@given(networks())
def test_folding_norms_and_pushing_biases_change_nothing(network: Network) -> None:
    network = network.double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded, stayed = fold_batch_norms(network)
    pushed, without = push_biases(folded)
    norms = [p for p, m in network.layers().items() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    left = [p for p, m in folded.layers().items() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert set(left) == set(stayed) <= set(norms)
    assert all(pushed.get_submodule(path).bias is None for path in without)
    inputs = _inputs(network)
    for changed in (folded, pushed):
        for expected, found in zip(network.all_answers(*inputs), changed.all_answers(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_norms_fold_into_convolutions_and_linear_layers() -> None:
    build = Builder((3, SIDE, SIDE))
    a = build.layer(nn.BatchNorm2d(4), build.layer(nn.Conv2d(3, 4, 3, bias=False), "x0", "a"), "a_norm")
    b = build.layer(nn.BatchNorm2d(4, affine=False), build.layer(nn.Conv2d(4, 4, 1, groups=4), a, "b"), "b_norm")
    alone = build.layer(nn.BatchNorm2d(4), build.op("relu", b), "alone")
    pooled = build.op("mean", alone, dims=(2, 3), keepdim=False)
    c = build.layer(nn.BatchNorm1d(5), build.layer(nn.Linear(4, 5), pooled, "c"), "c_norm")
    c = build.layer(nn.BatchNorm1d(5), c, "c_norm_again")
    network = _shaken(build.network(c)).double().eval()
    network.get_submodule("c_norm").bias = None
    folded, stayed = fold_batch_norms(network)
    assert stayed == ["alone"]
    assert list(folded.layers()) == ["a", "b", "alone", "c"]
    x = _inputs(network)
    torch.testing.assert_close(folded(*x), network(*x), rtol=1e-9, atol=1e-9)


def test_norms_that_cannot_be_folded_stay() -> None:
    build = Builder((3, 5))
    a = build.layer(nn.Linear(5, 3), "x0", "a")  # along the last dimension; the norm's channels are the first
    b = build.layer(nn.Linear(3, 3), build.layer(nn.BatchNorm1d(3), a, "a_norm"), "b")
    twice = build.op("add", build.layer(nn.BatchNorm1d(3), b, "b_norm"), b)
    network = _shaken(build.network(twice)).double().eval()
    folded, stayed = fold_batch_norms(network)
    assert stayed == ["a_norm", "b_norm"]
    x = _inputs(network)
    assert torch.equal(folded(*x), network(*x))


def test_biases_move_only_where_that_is_exact() -> None:
    build = Builder((4, SIDE, 4))
    a = build.layer(nn.Conv2d(4, 4, 3, padding=1), "x0", "a")
    b = build.layer(nn.Conv2d(4, 4, 1, bias=False), a, "b")  # takes the bias of a
    c = build.layer(nn.Linear(4, 4), b, "c")  # along another dimension than b's channels
    d = build.layer(nn.Conv2d(4, 4, 1, padding=1), c, "d")
    e = build.layer(nn.Conv2d(4, 4, 3), d, "e")
    network = build.network(build.layer(nn.Conv2d(4, 4, 1, groups=2), e, "f")).double().eval()
    pushed, without = push_biases(network)
    assert without == ["a"]
    x = _inputs(network)
    torch.testing.assert_close(pushed(*x), network(*x), rtol=1e-9, atol=1e-9)
    assert node_shapes(pushed) == node_shapes(network)


class Faulty:
    """A grouping whose removals are wrong where some groups take part, alone or together."""

    def __init__(self, network: Network, *faults: set[str]) -> None:
        self.sound = channel_groups(network)
        self.faults = faults

    def removal(self, chosen: dict[str, list[int]]) -> Removal:
        removal = self.sound.removal(chosen)
        wrong = any(fault <= {name for name, positions in chosen.items() if positions} for fault in self.faults)
        return replace(removal, slices=removal.slices[1:]) if wrong else removal


@pytest.mark.parametrize(
    ("faults", "sound"),
    [
        ([], "abcd"),
        ([{"b"}], "acd"),
        ([{"a"}, {"d"}], "bc"),
        ([{"b", "c"}], "abd"),  # each alone is right
        ([{"a"}, {"b"}, {"c"}, {"d"}], ""),
    ],
)
def test_what_can_be_proved_is_found_among_what_cannot(faults: list[set[str]], sound: str) -> None:
    build = Builder((3,))
    source, width = "x0", 3
    for path in "abcd":
        source, width = build.op("tanh", build.layer(nn.Linear(width, 4), source, path)), 4
    network = build.network(build.layer(nn.Linear(4, 2), source, "head"))
    chosen = {path: [1, 2] for path in "abcd"}
    found, left, proof = provable(network, Faulty(network, *faults), chosen)  # type: ignore[arg-type]
    assert found == {path: [1, 2] for path in sound}
    assert set(left) == set("abcd") - set(sound)
    assert all("nothing was changed" in reason for reason in left.values())
    assert (proof.effect > 0) == bool(sound)

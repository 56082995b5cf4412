"""Widths share weights, answer what plain networks of their width answer, and stay together under whatever comes after."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import penjing as pj
from penjing.artifact import decode, encode
from penjing.dynamic import at_width, attach_exits, make_slimmable, measure_widths_
from penjing.dynamic.sandwich import Sandwich
from penjing.dynamic.slimmable import in_order_of_importance
from penjing.errors import SettingError, SurgeryError
from penjing.graph import Network, channel_groups, cut_out, remove_channels, trace
from penjing.measurement import answer, count_parameters, macs_of_answers
from penjing.models import mobilenet, resnet_cifar, shufflenet
from penjing.representation import representations
from penjing.training import Fit, LearnFromLabels, Schedule, Task, Workbench, fit_, new_accelerator

CLASSES = 3


class Small(nn.Module):
    """A convolution, a block with a shortcut and depthwise part, a concatenation, a linear layer with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.norm1 = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.outer, self.norm2 = nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.side = nn.Conv2d(8, 4, 3, padding=1)
        self.hidden, self.head = nn.Linear(12, 20), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.outer(torch.relu(self.depthwise(torch.relu(self.norm1(self.inner(x))))))))
        x = torch.cat([x, torch.relu(self.side(x))], 1).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def _shaken(model: nn.Module, shape: tuple[int, ...]) -> Network:
    """Norms that nothing agrees with by accident."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_()
    return trace(model, (torch.randn(2, *shape),)).eval()


@pytest.fixture(scope="module")
def small() -> Network:
    torch.manual_seed(0)
    return _shaken(Small(), (1, 6, 6))


def _task(n: int = 240, classes: int = CLASSES) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 6, 6, generator=generator)
    y = (x[:, 0, :3].mean((1, 2)) > 0).long() + (x[:, 0, 3:].mean((1, 2)) > 0).long()
    loader = DataLoader(TensorDataset(x, y % classes), 60)
    return Task(train=loader, valid=loader)


@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_a_width_is_the_network_without_the_last_channels(small: Network, width: float) -> None:
    """Against the cut that pruning makes, which is proved."""
    network = make_slimmable(small, [width]).eval()
    grouping = channel_groups(small)
    gone = {g.name: list(range(round(width * g.n_channels), g.n_channels)) for g in grouping.groups}
    pruned = remove_channels(small, grouping.removal(gone)).eval()
    x = torch.randn(5, 1, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(network.all_answers(x)[0], pruned(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(network(x), small(x))
    assert network.answer_names == [f"width {width:g}", "width 1"]


@pytest.mark.parametrize("which", ["small", "resnet", "mobilenet", "shufflenet"])
def test_widths_are_cut_out_bit_for_bit(small: Network, which: str) -> None:
    torch.manual_seed(0)
    networks: dict[str, Any] = {
        "small": lambda: small,
        "resnet": lambda: _shaken(resnet_cifar(8, width=8), (3, 32, 32)),
        "mobilenet": lambda: _shaken(mobilenet(0.25, classes=10, small_images=True), (3, 32, 32)),
        "shufflenet": lambda: _shaken(shufflenet(2, width=0.25, classes=10, small_images=True), (3, 32, 32)),
    }
    whole = networks[which]()
    network = make_slimmable(whole, (0.5, 0.75), rounded=True).eval()
    x = torch.randn(3, *whole.input_shapes[0])
    for k in range(3):
        plain = cut_out(network, k)
        network.leave_at(k)
        with torch.no_grad():
            assert torch.equal(plain(x), network(x))
        assert set(plain.state_dict()) == set(whole.state_dict()) and not plain.exits
        assert all(node.op not in ("tensor", "convolution", "linear") for node in plain.nodes)
        assert macs_of_answers(plain) == [macs_of_answers(network)[k]]
    assert len(cut_out(network, 0).nodes) == len(whole.nodes)
    with pytest.raises(SurgeryError, match="has the answers 0 to 2, got 3"):
        cut_out(network, 3)


def test_weights_are_there_once_and_only_norms_are_added() -> None:
    whole = _shaken(resnet_cifar(20), (3, 32, 32))
    network = make_slimmable(whole, (0.25, 0.5, 0.75))
    norms = sum(p.numel() for m in whole.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert count_parameters(network)[0] - count_parameters(whole)[0] == norms * (0.25 + 0.5 + 0.75)
    assert count_parameters(network)[0] < 1.02 * count_parameters(whole)[0]
    one = len(encode(network))
    several = sum(len(encode(cut_out(network, k))) for k in range(4))
    assert one < 1.03 * len(encode(whole)) and several > 1.8 * one


def test_a_step_on_one_width_moves_the_others(small: Network) -> None:
    network = make_slimmable(small, (0.5,))
    x = torch.randn(4, 1, 6, 6)
    with torch.no_grad():
        before = cut_out(network, 0)(x), cut_out(network, 1)(x)
    network.all_answers(x)[1].square().sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
        after = network.all_answers(x)
    network.leave_at(0)
    with torch.no_grad():
        assert not torch.allclose(after[0], before[0])
        torch.testing.assert_close(network(x), after[0])  # what was kept of the weights is not older than they are
        assert torch.equal(cut_out(network, 0)(x), network(x))


def test_gradients_are_the_sum_of_those_of_the_widths(small: Network) -> None:
    network = make_slimmable(small, (0.5,)).train()
    batch = next(_task().batches(_task().train))
    answers = network.all_answers(*batch.args)
    loss = nn.functional.cross_entropy
    own: list[Tensor] = []
    weight = network.get_submodule("outer").weight
    for answer_ in answers:
        own += torch.autograd.grad(loss(answer_, batch.labels), weight, retain_graph=True)
    fit = Fit(network, _task(), Schedule(), [LearnFromLabels()], new_accelerator(), "test")
    (together,) = torch.autograd.grad(fit.loss(batch, answers), weight)
    torch.testing.assert_close(together, own[0] + own[1])
    assert (
        float(own[0][4:].abs().max()) == 0 and float(own[0][:4, 6:].abs().max()) == 0
    )  # the half that it does not use


def test_channels_in_order_of_importance_are_the_same_function(small: Network) -> None:
    ordered = in_order_of_importance(small)
    x = torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(ordered.eval()(x), small(x), rtol=1e-5, atol=1e-5)
    norms = ordered.get_submodule("side").weight.abs().sum((1, 2, 3))
    assert torch.equal(norms, norms.sort(descending=True).values)
    assert not torch.equal(small.get_submodule("side").weight, ordered.get_submodule("side").weight)


def test_later_stages_and_files_keep_the_widths_together(small: Network) -> None:
    bench = Workbench(make_slimmable(small, (0.5,)), _task())
    pj.PruneChannels(sparsity=0.2, rounds=1, epochs=1, score="l1").apply(bench)
    pj.Cluster(bits=3, epochs=1).apply(bench)
    network = bench.network.eval()
    loaded = decode(encode(network)).eval()
    x = torch.randn(4, 1, 6, 6)
    assert loaded.answer_names == ["width 0.5", "width 1"]
    with torch.no_grad():
        for k in range(2):
            network.leave_at(k)
            loaded.leave_at(k)
            torch.testing.assert_close(loaded(x), network(x))
            torch.testing.assert_close(cut_out(loaded, k)(x), loaded(x))
    narrow, whole = cut_out(network, 0), cut_out(network, 1)
    values = set(whole.get_submodule("inner").weight.flatten().tolist())
    assert len(encode(narrow)) < len(encode(whole)) < len(encode(network))
    assert [r.kind for r in representations(narrow.get_submodule("inner"), "weight")] == ["codebook"]
    assert len(values) <= 8 and set(narrow.get_submodule("inner").weight.flatten().tolist()) <= values


def test_exits_are_there_at_every_width(small: Network) -> None:
    early = attach_exits(small, [small.node_of("norm").name])
    network = make_slimmable(early, (0.5,)).eval()
    assert network.answer_names == ["width 0.5, exit 0", "width 0.5", "width 1, exit 0", "width 1"]
    x = torch.randn(4, 1, 6, 6)
    with torch.no_grad():
        answers = network.all_answers(x)
        assert torch.equal(answers[2], early.all_answers(x)[0]) and torch.equal(answers[3], early.all_answers(x)[1])
        network.set_thresholds([2.0, 0.6, 2.0])  # who is not sure at half the width goes on at the whole one
        way = network.route(x)
    sure = answers[1].softmax(1).amax(1) >= 0.6
    torch.testing.assert_close(way.answers, torch.where(sure[:, None], answers[1], answers[3]))


@pytest.mark.parametrize("universal", [False, True])
def test_the_stage_trains_all_widths(universal: bool) -> None:
    torch.manual_seed(0)
    task = _task(1200)
    network = trace(Small(), (torch.randn(2, 1, 6, 6),))
    bench = Workbench(network, task)
    pj.Slimmable(widths=(0.5, 0.75), universal=universal, epochs=12, lr=0.01).apply(bench)
    found = answer(bench.network, task, task.valid)
    assert found.at_exits is not None and len(found.at_exits) == 3
    right = [float((logits.argmax(1) == found.labels).double().mean()) for logits in found.at_exits]
    assert min(right) > 0.7
    if universal:
        between = at_width(bench.network, 0.6, list(task.batches(task.train)))
        logits = answer(between, task, task.valid).logits
        assert float((logits.argmax(1) == found.labels).double().mean()) > 0.7
    with pytest.raises(SettingError, match="slimmable already"):
        pj.Slimmable(epochs=1).apply(bench)


def test_a_sandwich_step_is_the_sum_of_what_it_says(small: Network) -> None:
    """One step with fixed widths moves weights as the gradient of the sum of losses of networks cut by pruning would."""
    network, task = copy.deepcopy(small), _task(60)
    schedule = Schedule(epochs=1, lr=1.0, optimizer="sgd", decay="constant", warmup=0.0)
    part = Sandwich(0.5, soft=1.0, temperature=2.0, widths=(1.0, 0.5))
    before = network.get_submodule("side").weight.detach().clone()
    fit_(network, task, schedule, [LearnFromLabels(), part])
    reference = copy.deepcopy(small).train()
    grouping = channel_groups(reference)
    gone = {g.name: list(range(g.n_channels // 2, g.n_channels)) for g in grouping.groups}
    cut = remove_channels(reference, grouping.removal(gone)).train()
    batch = next(task.batches(task.train))
    whole, narrow = reference(*batch.args), cut(*batch.args)
    loss = nn.functional.cross_entropy(whole, batch.labels)
    loss = loss + pj.soft_target_loss(narrow, whole.detach(), temperature=2.0)
    loss.backward()
    gradient = reference.get_submodule("side").weight.grad.clone()
    gradient[:2, :4] += cut.get_submodule("side").weight.grad
    moved = (before - network.get_submodule("side").weight.detach()) / 1.9  # Nesterov's first step is 1 + momentum
    torch.testing.assert_close(moved, gradient, rtol=1e-3, atol=1e-5)


def test_random_widths_are_within_their_range_and_have_both_ends() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        widths = Sandwich(0.25, between=2)._drawn()
        assert len(widths) == 4 and widths[0] == 1 and widths[-1] == 0.25
        assert all(0.25 <= width <= 1 for width in widths)
    assert len(Sandwich(0.25, between=2, both_ends=False)._drawn()) == 4


def test_norms_of_each_width_are_measured_on_what_it_computes(small: Network) -> None:
    network, task = make_slimmable(small, (0.5,)), _task()
    measure_widths_(network, task.batches(task.train))
    batches = list(task.batches(task.train))
    narrow = at_width(small, 0.5, batches)
    own = cut_out(network, 0)
    for name in ("norm", "norm1", "norm2"):
        torch.testing.assert_close(own.get_submodule(name).running_var, narrow.get_submodule(name).running_var)
        torch.testing.assert_close(own.get_submodule(name).running_mean, narrow.get_submodule(name).running_mean)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((0.0, 0.5), "greater than 0 and at most 1, got 0, 0.5"),
        ((1.5,), "greater than 0 and at most 1, got 1.5"),
        ((1.0,), "at least one width below 1"),
        ((), "at least one width below 1"),
        ((0.3,), r"width 0.3 of the 8 channels .* is 2.4, which is not a whole number; take 0.25 .1/4. or 0.375 .3/8."),
    ],
)
def test_impossible_widths_are_refused(small: Network, widths: tuple[float, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_slimmable(small, widths)


def test_a_network_that_cannot_be_narrower_is_refused() -> None:
    single = trace(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(SettingError, match="no layer of the network can be narrower"):
        make_slimmable(single, (0.5,))


def test_a_universal_network_must_be_plain(small: Network) -> None:
    early = attach_exits(small, [small.node_of("norm").name])
    with pytest.raises(SettingError, match="without exits"):
        pj.Slimmable(universal=True, widths=(0.5,), epochs=1).apply(Workbench(early, _task()))

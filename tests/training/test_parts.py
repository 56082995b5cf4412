"""Techniques that later families bring, each a `Part` in under 30 lines, with its mathematics: the loop must carry them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.training import (
    AverageWeights,
    Batch,
    Fit,
    Freeze,
    LearnFromLabels,
    Part,
    Schedule,
    Task,
    Train,
    Workbench,
    fit_,
)

SGD = {"optimizer": "sgd", "lr": 0.05, "decay": "constant", "warmup": 0.0}


def weights(network: Network) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


class ProximalL1(Part):
    """w <- sign(w) max(|w| - lr * strength, 0): the proximal step of the L1 norm."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def after_step(self, fit: Fit) -> None:
        rate = fit.optimizer.param_groups[0]["lr"] * self.strength
        for p in fit.network.parameters():
            p.data = p.data.sign() * (p.data.abs() - rate).clamp_min(0)


def test_a_proximal_step_gives_exact_zeros_where_plain_decay_gives_none(network: Network, task: Task) -> None:
    plain = copy.deepcopy(network)
    fit_(plain, task, Schedule(epochs=5, weight_decay=0.5, **SGD))
    fit_(network, task, Schedule(epochs=5, **SGD), [LearnFromLabels(), ProximalL1(0.3)])
    assert (weights(plain) == 0).sum() == 0
    assert (weights(network) == 0).float().mean() > 0.3


def test_one_proximal_step_is_its_formula(network: Network, task: Task) -> None:
    one_batch = Task([next(iter(task.train))], task.valid)
    plain = copy.deepcopy(network)
    fit_(plain, one_batch, Schedule(epochs=1, **SGD))
    fit_(network, one_batch, Schedule(epochs=1, **SGD), [LearnFromLabels(), ProximalL1(2.0)])
    expected = torch.nn.functional.softshrink(weights(plain), 0.05 * 2.0)
    torch.testing.assert_close(weights(network), expected, rtol=0, atol=1e-7)


class Clip(Part):
    """BinaryConnect keeps its real-valued weights in [-1, 1]. Source: Courbariaux et al. 2015, arXiv:1511.00363, 2.4."""

    def after_step(self, fit: Fit) -> None:
        for p in fit.network.parameters():
            p.data.clamp_(-1, 1)


def test_clipping_after_the_step_holds_at_every_step(network: Network, task: Task) -> None:
    largest: list[float] = []

    class Watch(Part):
        def after_step(self, fit: Fit) -> None:
            largest.append(float(weights(fit.network).abs().max()))

    fast = Schedule(epochs=4, **(SGD | {"lr": 3.0}))
    fit_(network, task, fast, [LearnFromLabels(), Clip(), Watch()])
    assert max(largest) == 1.0 and len(largest) == 12


class Movement(Part):
    """Synaptic intelligence: omega += -gradient * movement, per weight. Source: Zenke et al. 2017, arXiv:1703.04200, eq. 3."""

    def start(self, fit: Fit) -> None:
        self.before = weights(fit.network)
        self.omega = torch.zeros_like(self.before)

    def after_step(self, fit: Fit) -> None:
        now = weights(fit.network)
        gradient = torch.cat([p.grad.flatten() for p in fit.network.parameters()])
        self.omega += -gradient * (now - self.before)
        self.before = now

    def state(self) -> dict[str, object]:
        return {"before": self.before, "omega": self.omega}

    def load_state(self, state: dict[str, object]) -> None:
        self.before, self.omega = state["before"], state["omega"]


def test_accumulated_movements_add_up_to_the_fall_of_the_loss(network: Network, task: Task) -> None:
    x, y = task.train.dataset.tensors
    whole = Task([(x, y)], task.valid)
    before = float(task.loss(network(x), y).detach())
    movement = Movement()
    slow = Schedule(epochs=200, **(SGD | {"lr": 0.002}))
    fit_(network, whole, slow, [LearnFromLabels(), movement])
    fall = before - float(task.loss(network(x), y).detach())
    assert fall > 0.05
    assert float(movement.omega.sum()) == pytest.approx(
        fall, rel=0.03
    )  # a path integral, exact for infinitely small steps


class SeveralPasses(Part):
    """The gradient of a mean over pieces of the batch, in one update."""

    def step(self, fit: Fit, batch: Batch) -> float:
        pieces = zip(batch.args[0].chunk(4), batch.labels.chunk(4), strict=True)
        losses = [fit.loss(b, fit.forward(b)) for x, y in pieces if (b := Batch((x,), {}, y))]
        return fit.update(torch.stack(losses).mean())


def test_several_passes_per_update_equal_one_pass_over_all(network: Network, task: Task) -> None:
    twin = copy.deepcopy(network)
    history = fit_(network, task, Schedule(epochs=2, **SGD), [LearnFromLabels(), SeveralPasses()])
    reference = fit_(twin, task, Schedule(epochs=2, **SGD))
    torch.testing.assert_close(weights(network), weights(twin), rtol=1e-5, atol=1e-6)
    assert history.losses == pytest.approx(reference.losses, rel=1e-5)


def test_two_parts_that_do_the_whole_step_are_refused(network: Network, task: Task) -> None:
    with pytest.raises(SettingError, match="two parts want to do the whole step"):
        fit_(network, task, Schedule(epochs=1), [LearnFromLabels(), SeveralPasses(), SeveralPasses()])


class Reinforce(Part):
    """Policy gradient with a baseline: the gradient of -(reward - mean reward) log p(action)."""

    def __init__(self) -> None:
        self.rewards: list[float] = []

    def step(self, fit: Fit, batch: Batch) -> float:
        log_p = fit.forward(batch).log_softmax(-1)
        action = torch.multinomial(log_p.exp(), 1).squeeze(1)
        reward = (action == batch.labels).float()
        self.rewards.append(float(reward.mean()))
        chosen = log_p.gather(1, action[:, None]).squeeze(1)
        return fit.update(-((reward - reward.mean()) * chosen).mean())


def test_a_policy_gradient_raises_the_reward(network: Network, task: Task) -> None:
    policy = Reinforce()
    fit_(network, task, Schedule(epochs=60, lr=0.02), [policy])
    assert sum(policy.rewards[:6]) / 6 < 0.55
    assert sum(policy.rewards[-6:]) / 6 > 0.8


class NearestOf(Part):
    """Each epoch every weight is assigned to the nearest of k values; in between it is pulled there."""

    def __init__(self, k: int) -> None:
        self.k, self.assigned = k, 0

    def epoch_start(self, fit: Fit) -> None:
        w = weights(fit.network)
        self.values = torch.quantile(w, (torch.arange(self.k) + 0.5) / self.k)
        self.codes = (w[:, None] - self.values).abs().argmin(1)
        self.assigned += 1

    def loss(self, fit: Fit, batch: Batch, answers: object) -> Tensor:
        live = torch.cat([p.flatten() for p in fit.network.parameters()])
        return 3.0 * (live - self.values[self.codes]).square().sum()


def test_assignment_each_epoch_gathers_the_weights(network: Network, task: Task) -> None:
    def spread(part: NearestOf) -> float:
        return float((weights(network) - part.values[part.codes]).abs().mean())

    part = NearestOf(4)
    fit_(network, task, Schedule(epochs=1, **(SGD | {"lr": 1e-9})), [LearnFromLabels(), part])
    before = spread(part)
    fit_(network, task, Schedule(epochs=6, **(SGD | {"lr": 0.02})), [LearnFromLabels(), part])
    assert part.assigned == 7
    assert spread(part) < 0.3 * before


def test_rewinding_to_a_kept_early_step(network: Network, task: Task) -> None:
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    twin = copy.deepcopy(network)
    history = fit_(network, task, Schedule(epochs=3, keep_steps=(0, 4), decay="constant"))
    assert sorted(history.weights) == [0, 4]
    assert all(torch.equal(history.weights[0][name], tensor) for name, tensor in start.items())
    at_four: dict[str, Tensor] = {}

    class Watch(Part):
        def after_step(self, fit: Fit) -> None:
            if fit.step == 4:
                at_four.update({n: t.clone() for n, t in fit.network.state_dict().items()})

    fit_(twin, task, Schedule(epochs=3, decay="constant"), [LearnFromLabels(), Watch()])
    network.load_state_dict(history.weights[4])
    assert all(torch.equal(at_four[name], tensor) for name, tensor in network.state_dict().items())


class FreezeEntries(Part):
    """Entries where `mask` is True keep their values: their gradient is removed and their value put back."""

    def __init__(self, name: str, mask: Tensor) -> None:
        self.name, self.mask = name, mask

    def start(self, fit: Fit) -> None:
        self.value = fit.network.get_parameter(self.name).detach().clone()

    def after_step(self, fit: Fit) -> None:
        with torch.no_grad():
            p = fit.network.get_parameter(self.name)
            p.copy_(torch.where(self.mask, self.value, p))


def test_partial_freezing(network: Network, task: Task) -> None:
    name, mask = "0.weight", torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    before = network.get_parameter(name).detach().clone()
    fit_(network, task, Schedule(epochs=2, lr=0.01, weight_decay=0.1), [LearnFromLabels(), FreezeEntries(name, mask)])
    after = network.get_parameter(name).detach()
    assert torch.equal(after[mask], before[mask])
    assert (after[~mask] != before[~mask]).all()


def test_whole_parameters_freeze_by_requires_grad(network: Network, task: Task) -> None:
    frozen = network.get_parameter("0.weight").requires_grad_(False)
    before, other = frozen.clone(), network.get_parameter("2.weight").detach().clone()
    fit_(network, task, Schedule(epochs=1, weight_decay=0.1))
    assert torch.equal(frozen, before)
    assert not torch.equal(network.get_parameter("2.weight"), other)


def test_the_running_average_is_the_one_computed_by_hand(network: Network, task: Task) -> None:
    seen: list[Tensor] = [weights(network)]

    class Watch(Part):
        def after_step(self, fit: Fit) -> None:
            seen.append(weights(fit.network))

    fit_(network, task, Schedule(epochs=2, **SGD), [LearnFromLabels(), Watch(), AverageWeights(0.3)])
    mean = seen[0]
    for step, now in enumerate(seen[1:], 1):
        d = min(0.3, (1 + step) / (10 + step))
        mean = d * mean + (1 - d) * now
    torch.testing.assert_close(weights(network), mean, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(weights(network), seen[-1], rtol=1e-3)


def test_hooks_come_in_order(network: Network, task: Task) -> None:
    calls: list[str] = []

    class Diary(Part):
        def __getattribute__(self, name: str) -> object:
            if name in ("start", "epoch_start", "loss", "step", "after_step", "epoch_end", "finish"):
                calls.append(name)
            return super().__getattribute__(name)

    fit_(network, Task([next(iter(task.train))], task.valid), Schedule(epochs=2), [LearnFromLabels(), Diary()])
    epoch = ["epoch_start", "step", "loss", "after_step", "epoch_end"]
    assert calls == ["start", *epoch, *epoch, "finish"]


@pytest.fixture
def with_norm() -> Network:
    """A layer, a norm and another layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    return trace(layers, (torch.randn(2, 6),))


@pytest.mark.parametrize("more", [{}, {"average": 0.9}, {"average_epochs": 2}, {"teacher": "baseline"}])
def test_frozen_layers_stay_to_the_bit(with_norm: Network, task: Task, more: dict[str, Any]) -> None:
    """Statistics of norms too; the others learn from what the frozen ones give in use; who was frozen before stays so."""
    before = copy.deepcopy(with_norm.state_dict())
    with_norm.get_parameter("4.bias").requires_grad_(False)
    bench = Workbench(with_norm, task, teachers={"baseline": copy.deepcopy(with_norm)})
    Train(epochs=3, weight_decay=0.3, lr=0.05, optimizer="sgd", freeze=("0", "1"), **more).apply(bench)
    changed = {name for name, tensor in bench.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"4.weight"}
    assert [n for n, p in bench.network.named_parameters() if not p.requires_grad] == ["4.bias"]


def test_what_learns_is_what_a_network_of_the_other_layers_learns(with_norm: Network, task: Task) -> None:
    """Frozen layers are a fixed function of the input: the rest is trained as if that were the data."""
    head = copy.deepcopy(with_norm.get_submodule("4"))
    schedule = Schedule(epochs=2, **SGD)
    with torch.no_grad():
        body = nn.Sequential(*(with_norm.get_submodule(str(k)) for k in (0, 1))).eval()
        inner = [Batch((body(batch.args[0]).relu(),), {}, batch.labels) for batch in task.batches(task.train)]
    alone = trace(nn.Sequential(head), inner[0].args)
    fit_(alone, Task(inner, task.valid), schedule)
    fit_(with_norm, task, schedule, [LearnFromLabels(), Freeze(["0", "1", "3"])])
    torch.testing.assert_close(with_norm.get_parameter("4.weight"), alone.get_parameter("0.weight"))


def test_freezing_what_is_not_there_or_all(with_norm: Network, task: Task) -> None:
    bench = Workbench(with_norm, task, key="02-train")
    with pytest.raises(SettingError, match=r'02-train: freeze: no layer is like "body\.\*"'):
        Train(freeze=("body.*",)).apply(bench)
    with pytest.raises(SettingError, match="02-train: freeze: 0, 1, 4 leaves nothing that could learn"):
        Train(freeze=("0", "1", "4")).apply(bench)
    with pytest.raises(SettingError, match='train: freeze: no layer is like "stem"'):
        fit_(with_norm, task, Schedule(), [LearnFromLabels(), Freeze(["stem"])])
    assert all(parameter.requires_grad for parameter in with_norm.parameters())

"""Gradients of each sample, of their mean, sizes of inputs, and importances of several tasks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import DataError, SettingError
from penjing.graph import Network, trace
from penjing.sensitivity import (
    Evidence,
    input_mean_squares,
    mean_gradient,
    merge_importances,
    per_sample_gradients,
    weighted_layers,
)
from penjing.sensitivity.per_sample import Jacobian, loss_direction
from penjing.training import Batch
from penjing.training.task import classification_loss


class Mixed(nn.Module):
    """Convolutions with groups, a norm, a shared linear layer, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="circular"), nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.shared, self.twin, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.twin.weight = self.shared.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.up(self.bn(self.conv(x)))), 4).flatten(1)
        return self.out(self.twin(torch.tanh(self.shared(torch.tanh(self.shared(x))))))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return trace(Mixed(), (torch.randn(2, 2, 4, 4),)).train()


@pytest.fixture(scope="module")
def batch() -> Batch:
    torch.manual_seed(1)
    return Batch((torch.randn(6, 2, 4, 4),), {}, torch.arange(6) % 3)


def loss(network: Network, batch: Batch) -> Tensor:
    return classification_loss(network(*batch.args), batch.labels)  # it looks at the labels' range


def one_by_one(network: Network, batch: Batch) -> dict[str, Tensor]:
    network.eval()
    names = list(weighted_layers(network))
    weights = [network.get_submodule(name.rpartition(".")[0]).weight for name in names]
    each = [
        torch.autograd.grad(loss(network, Batch((x[None],), {}, y[None])), weights)
        for x, y in zip(batch.args[0], batch.labels, strict=True)
    ]
    network.train()
    return {name: torch.stack([g[i] for g in each]) for i, name in enumerate(names)}


@pytest.mark.parametrize("vectorised", [True, False])
def test_each_sample_has_the_gradient_of_a_batch_of_one(network: Network, batch: Batch, vectorised: bool) -> None:
    expected = one_by_one(network, batch)
    assert set(expected) == {"conv.weight", "up.weight", "shared.weight", "twin.weight", "out.weight"}
    jacobian = Jacobian(network)
    jacobian._vectorised = vectorised
    direction = loss_direction(loss, jacobian.network, batch, jacobian.answers(batch))
    found = jacobian.gradients(batch, direction)
    assert jacobian._vectorised == vectorised  # nothing here needs the loop
    assert list(found) == list(weighted_layers(network))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(per_sample_gradients(network, batch, loss)[name], value, rtol=1e-4, atol=1e-6)


class Branch(nn.Module):
    """A recurrent layer: no rule for single samples."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0].mean(1))


def test_what_cannot_be_vectorised_goes_one_by_one() -> None:
    network = trace(Branch(), (torch.randn(2, 5, 3),)).eval()
    batch = Batch((torch.randn(4, 5, 3),), {}, torch.arange(4) % 3)
    expected = one_by_one(network, batch)
    assert list(expected) == ["out.weight"]
    torch.testing.assert_close(per_sample_gradients(network, batch, loss), expected)


def test_chunks_do_not_matter(network: Network, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = per_sample_gradients(network, batch, loss)
    monkeypatch.setattr("penjing.sensitivity.per_sample._ENTRIES", 1)
    torch.testing.assert_close(per_sample_gradients(network, batch, loss), whole, rtol=1e-4, atol=1e-6)


def test_mean_gradient_is_the_mean_over_samples_whatever_the_batches(network: Network, batch: Batch) -> None:
    x, y = batch.args[0], batch.labels
    parts = [Batch((x[:1],), {}, y[:1]), Batch((x[1:],), {}, y[1:])]
    found = mean_gradient(network, Evidence(batches=lambda: parts, loss=loss))
    for name, value in one_by_one(network, batch).items():
        torch.testing.assert_close(found[name], value.mean(0), rtol=1e-4, atol=1e-6)


def test_measuring_leaves_no_trace(network: Network, batch: Batch) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    per_sample_gradients(network, batch, loss)
    mean_gradient(network, Evidence(batches=lambda: [batch], loss=loss))
    input_mean_squares(network, [batch])
    assert network.training and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_inputs_of_linear_layers_and_convolutions() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    network = trace(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), (torch.randn(2, 4, 4, 4),)).eval()
    x = torch.randn(7, 4, 4, 4)
    found = input_mean_squares(network, [Batch((x[:3],), {}), Batch((x[3:],), {})])
    windows = F.unfold(x, 3, padding=1, stride=2).square().mean((0, 2)).view(2, 2, 3, 3)
    expected = windows.repeat_interleave(3, 0)  # three filters a group
    torch.testing.assert_close(found["0.weight"], expected)
    hidden = F.relu(conv(x)).flatten(1)
    torch.testing.assert_close(found["3.weight"], hidden.square().mean(0).expand(2, -1))


def test_inputs_of_an_embedding_are_frequencies() -> None:
    network = trace(
        nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 2)), (torch.zeros(2, 3).long(),)
    ).eval()
    words = torch.tensor([[0, 0, 1], [4, 0, 1]])
    found = input_mean_squares(network, [Batch((words,), {})])["0.weight"]
    torch.testing.assert_close(found[:, 0], torch.tensor([3, 2, 0, 0, 1]) / 6)


def test_importances_of_tasks_are_added() -> None:
    first, second = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([0.5, 0.0])}
    assert merge_importances([first, second])["a"].tolist() == [1.5, 2.0]
    with pytest.raises(SettingError, match="no importances"):
        merge_importances([])
    for other in ({"b": torch.zeros(2)}, {"a": torch.zeros(3)}):
        with pytest.raises(SettingError, match="same weights in the same shapes"):
            merge_importances([first, other])


def test_missing_evidence_is_named(network: Network) -> None:
    with pytest.raises(SettingError, match=r"gradient: it looks at samples; give Evidence\(batches="):
        mean_gradient(network, Evidence())
    with pytest.raises(SettingError, match="gradient: it looks at the loss"):
        mean_gradient(network, Evidence(batches=lambda: []))
    with pytest.raises(DataError, match="no samples"):
        mean_gradient(network, Evidence(batches=lambda: [], loss=loss))


def test_modules_may_have_the_names_of_a_networks_own_attributes() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 4)])
            self.exits = nn.ModuleList([nn.Linear(4, 2)])

        def forward(self, x: Tensor) -> Tensor:
            return self.exits[0](torch.relu(self.layers[0](x)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Named()
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))
    found = per_sample_gradients(
        trace(model, (x,)),
        Batch((x,), {}, y),
        lambda network, batch: nn.functional.cross_entropy(network(*batch.args), batch.labels),
    )
    for i in range(5):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        torch.testing.assert_close(found["exits.0.weight"][i], model.exits[0].weight.grad)
        torch.testing.assert_close(found["layers.0.weight"][i], model.layers[0].weight.grad)

"""Fisher information and second derivatives against closed forms, autograd and each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network, trace
from penjing.representation import Mask, represent_
from penjing.sensitivity import Evidence, diagonal_hessian, fisher_information, memory_aware_synapses
from penjing.training import Batch


def mlp(activation: type[nn.Module]) -> Network:
    torch.manual_seed(0)
    return trace(nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)), (torch.randn(2, 4),)).eval()


def cnn(activation: type[nn.Module] = nn.ReLU) -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), activation(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(2, 3, 2, groups=1), activation(), nn.Flatten(), nn.Linear(3, 3)]
    return trace(nn.Sequential(*layers), (torch.randn(2, 1, 4, 4),)).eval()


def cross_entropy(network: Network, batch: Batch) -> Tensor:
    return F.cross_entropy(network(*batch.args), batch.labels)


def evidence(shape: tuple[int, ...], n: int = 12, **more: object) -> Evidence:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, *shape, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    batches = [Batch((x[:5],), {}, y[:5]), Batch((x[5:],), {}, y[5:])]
    return Evidence(batches=lambda: batches, **{"loss": cross_entropy, **more})  # type: ignore[arg-type]


def test_fisher_of_a_linear_softmax_network_is_its_closed_form() -> None:
    """E[(d log p / d w_cj)^2] = x_j^2 p_c (1 - p_c); drawn labels come within 5 %."""
    network = trace(nn.Sequential(nn.Linear(4, 3)), (torch.randn(2, 4),)).eval()
    given = evidence((4,), 40)
    x = torch.cat([b.args[0] for b in given.batches()])  # type: ignore[misc]
    p = network(x).detach().softmax(-1)
    expected = torch.einsum("nc,nj->cj", p * (1 - p), x**2) / len(x)
    (exact,) = fisher_information(network, given, exact=True).values()
    (drawn,) = fisher_information(network, given, draws=1500).values()
    torch.testing.assert_close(exact, expected)
    torch.testing.assert_close(drawn, expected, rtol=0.05, atol=0)


def test_drawn_labels_come_from_the_generator() -> None:
    network = mlp(nn.Tanh)

    def found(seed: int) -> Tensor:
        return fisher_information(network, evidence((4,), generator=torch.Generator().manual_seed(seed)))["0.weight"]

    assert torch.equal(found(1), found(1))
    assert not torch.equal(found(1), found(2))


@pytest.mark.parametrize(("network", "shape"), [(mlp(nn.Tanh), (4,)), (cnn(), (1, 4, 4))])
def test_exact_fisher_is_the_gauss_newton_diagonal_of_cross_entropy(network: Network, shape: tuple[int, ...]) -> None:
    fisher = fisher_information(network, evidence(shape), exact=True)
    for output in ("loss", "cross-entropy"):
        found = diagonal_hessian(network, evidence(shape), output=output)  # type: ignore[arg-type]
        for name, value in fisher.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("network", "shape"), [(mlp(nn.Tanh), (4,)), (mlp(nn.ReLU), (4,)), (cnn(), (1, 4, 4))])
def test_the_exact_diagonal_is_that_of_the_whole_hessian(network: Network, shape: tuple[int, ...]) -> None:
    given = evidence(shape)
    x, y = (torch.cat(parts) for parts in zip(*((b.args[0], b.labels) for b in given.batches()), strict=True))  # type: ignore[misc]
    found = diagonal_hessian(network, given, method="exact")
    for name, value in found.items():
        weight = network.get_parameter(name)

        def loss(w: Tensor, name: str = name) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(network, {name: w}, (x,)), y)

        whole = torch.autograd.functional.hessian(loss, weight.detach()).reshape(weight.numel(), -1)
        torch.testing.assert_close(value.flatten(), whole.diag(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("network", "shape"), [(mlp(nn.ReLU), (4,)), (cnn(), (1, 4, 4))])
def test_gauss_newton_is_exact_in_networks_of_relus(network: Network, shape: tuple[int, ...]) -> None:
    exact = diagonal_hessian(network, evidence(shape), method="exact")
    for name, value in diagonal_hessian(network, evidence(shape)).items():
        torch.testing.assert_close(value, exact[name], rtol=1e-3, atol=1e-6)


def test_gauss_newton_is_not_exact_with_tanh() -> None:
    network = mlp(nn.Tanh)
    exact = diagonal_hessian(network, evidence((4,)), method="exact")["0.weight"]
    found = diagonal_hessian(network, evidence((4,)))["0.weight"]
    assert (found - exact).norm() > 0.05 * exact.norm()
    assert (exact < 0).any() and (found >= 0).all()


def test_squared_error_has_the_identity() -> None:
    def half_squared(network: Network, batch: Batch) -> Tensor:
        return (network(*batch.args) - 1).square().sum(-1).mean() / 2

    network = mlp(nn.ReLU)
    first = diagonal_hessian(network, evidence((4,)), output="squared-error")
    second = diagonal_hessian(network, evidence((4,), loss=half_squared))
    exact = diagonal_hessian(network, evidence((4,), loss=half_squared), method="exact")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(first[name], exact[name], rtol=1e-4, atol=1e-6)


def test_positions_and_exits_add_up() -> None:
    """Answers of several positions: the closed form is the Hessian of the sum over them."""
    network = trace(nn.Sequential(nn.Linear(4, 3)), (torch.randn(2, 6, 4),)).eval()

    def summed(network: Network, batch: Batch) -> Tensor:
        return F.cross_entropy(network(*batch.args).flatten(0, 1), batch.labels.repeat_interleave(6)) * 6

    given = evidence((6, 4), loss=summed)
    exact = diagonal_hessian(network, given, method="exact")
    for found in (
        diagonal_hessian(network, given, output="cross-entropy"),
        diagonal_hessian(network, given),
        fisher_information(network, given, exact=True),
    ):
        torch.testing.assert_close(found["0.weight"], exact["0.weight"], rtol=1e-3, atol=1e-6)


def test_large_networks_are_refused() -> None:
    with pytest.raises(SettingError, match=r"for each of the 35 weights, at most 30 are allowed.*gauss-newton"):
        diagonal_hessian(mlp(nn.ReLU), evidence((4,)), method="exact", most=30)
    with pytest.raises(SettingError, match='no method "exakt"; did you mean "exact"'):
        diagonal_hessian(mlp(nn.ReLU), evidence((4,)), method="exakt")  # type: ignore[arg-type]


def test_mas_is_the_mean_of_absolute_gradients_of_the_squared_answer() -> None:
    network = cnn(nn.Tanh)
    given = evidence((1, 4, 4), loss=None)
    found = memory_aware_synapses(network, given)
    x = torch.cat([b.args[0] for b in given.batches()])  # type: ignore[misc]
    for name, value in found.items():
        each = [
            torch.autograd.grad(network(sample[None]).square().sum(), network.get_parameter(name))[0].abs()
            for sample in x
        ]
        torch.testing.assert_close(value, torch.stack(each).mean(0), rtol=1e-4, atol=1e-6)


def test_weights_count_as_the_layers_use_them() -> None:
    network = mlp(nn.Tanh)
    keep = torch.rand(3, 5) < 0.5
    masked = mlp(nn.Tanh)
    represent_(masked.get_submodule("2"), "weight", Mask(keep))
    with torch.no_grad():
        network.get_submodule("2").weight.mul_(keep)
    for name, value in fisher_information(network, evidence((4,)), exact=True).items():
        torch.testing.assert_close(fisher_information(masked, evidence((4,)), exact=True)[name], value)

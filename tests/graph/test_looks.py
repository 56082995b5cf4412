"""A gate's look at a map is one step, with the same result as its operations, and only where nothing else is asked for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from penjing.dynamic.blocks import gate_blocks, residual_blocks
from penjing.dynamic.gates import feed_forward_gates, recurrent_gates, settled_gates, with_gates
from penjing.graph import Network, looks, trace
from penjing.graph.looks import FEW, look, with_looks
from penjing.graph.program import compile_program
from penjing.kernels.gates import linear_of_row_means
from penjing.models import resnet_cifar


def _gated(make: Callable[..., tuple[Network, list[str]]], columns: int = 1) -> Network:
    torch.manual_seed(0)
    network = trace(resnet_cifar(14, width=4, classes=3), (torch.randn(2, 3, 16, 16),)).eval()
    blocks = residual_blocks(network)
    gated, logits = make(network, blocks, columns, lean=0.0)
    gated, gates = with_gates(gated, [(name, 0) for name in logits])
    for path, layer in gated.layers().items():
        if path.startswith("routing.") and isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
    return settled_gates(gate_blocks(gated, blocks, gates)).eval()


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("channels", "rows", "columns"), [(1, 1, 1), (3, 5, 7), (16, 32, 32)])
@pytest.mark.parametrize("n_state", [0, 10])
def test_the_kernel_gives_what_the_operations_give(
    n: int, channels: int, rows: int, columns: int, n_state: int
) -> None:
    torch.manual_seed(0)
    x, state = torch.randn(n, channels, rows, columns), torch.randn(n, n_state) * 3
    layer = nn.Linear(channels * rows + n_state, 4)
    y = torch.full((n, 4), torch.nan)
    with torch.no_grad():
        expected = layer.double()(torch.cat([x.double().mean(3).flatten(1), state.double().tanh()], 1))
        layer.float()
        given = [t.data_ptr() for t in (x, state, layer.weight, layer.bias, y)]
        linear_of_row_means(*given, n, channels * rows, columns, n_state, 4)
        torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(look(layer, x, state if n_state else None), y)


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(1, 2, 3, 3)
    x[0, 1, 1, 1] = torch.nan
    layer = nn.Linear(6, 2)
    with torch.no_grad():
        assert bool(look(layer, x).isnan().all())


@pytest.mark.parametrize("make", [feed_forward_gates, recurrent_gates])
@pytest.mark.parametrize("columns", [1, 3])
def test_every_gate_is_one_step_and_answers_the_same(
    make: Callable[..., tuple[Network, list[str]]], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _gated(make, columns)
    used: list[int] = []
    kernel = looks._kernel()
    monkeypatch.setattr(looks, "_kernel", lambda: lambda *given: used.append(1) or kernel(*given))
    x = torch.randn(12, 3, 16, 16)
    n_gates = len(network.gates)
    with torch.no_grad():
        together = network.route(x)  # many samples: the operations
        assert not used
        alone = [network(one) for one in x.split(1)]
        assert len(used) == 12 * n_gates
        few = network.route(x[:FEW])
        assert len(used) == 13 * n_gates
    assert len(torch.unique(torch.stack(list(together.opened.values()), 1), dim=0)) > 1
    torch.testing.assert_close(torch.cat(alone), together.answers, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(few.answers, together.answers[:FEW], atol=1e-5, rtol=1e-4)
    assert all(torch.equal(few.opened[name], is_open[:FEW]) for name, is_open in together.opened.items())


def test_gradients_hooks_and_watchers_get_the_operations() -> None:
    network = _gated(recurrent_gates)
    layer = network.get_submodule("routing.0")
    x = torch.randn(1, 3, 16, 16)
    network(x).sum().backward()  # with gradients
    called: list[int] = []
    handle = layer.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        plain = network(x)
    assert called == [1]
    handle.remove()
    found: list[Tensor] = []
    means = next(node.name for node in network.nodes if node.op == "mean" and node.name.startswith("gate_0"))
    with torch.no_grad():
        with network.seen({means: found.append}):
            torch.testing.assert_close(network(x), plain)
        torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), plain)
    assert found[0].shape == (1, 4, 16)


@pytest.mark.parametrize("wrong", ["rows", "channels", "state", "states", "bias", "empty"])
def test_what_does_not_fit_never_reaches_machine_code(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would read what lies behind; the layer says what is wrong."""
    monkeypatch.setattr(looks, "_kernel", lambda: pytest.fail("called"))
    layer, x, state = nn.Linear(6 + 5, 2), torch.randn(2, 2, 3, 4), torch.randn(2, 5)
    if wrong == "bias":
        layer.bias = nn.Parameter(torch.zeros(7))
    x = {"rows": torch.randn(2, 2, 9, 4), "channels": torch.randn(2, 3, 3, 4), "empty": x[..., :0]}.get(wrong, x)
    state = {"state": torch.randn(2, 4), "states": torch.randn(1, 5)}.get(wrong, state)
    with torch.no_grad():
        if wrong == "empty":
            assert bool(look(layer, x, state).isnan().all())
            return
        with pytest.raises(RuntimeError):
            look(layer, x, state)


class Shared(nn.Module):
    """Row means that two layers read: no look."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(3).flatten(1)
        return self.one(means) + self.two(means)


class Other(nn.Module):
    """Means over columns, or flattened otherwise: no look."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 2), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x.mean(2).flatten(1)) + self.two(x.mean(3)).flatten(1)


@pytest.mark.parametrize("make", [Shared, Other])
def test_what_only_resembles_a_look_is_left_alone(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(1, 2, 3, 4)
    network = trace(model, (x,)).eval()
    assert not any(step.calls for step in with_looks(compile_program(network.nodes)))
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x))


class Pooled(nn.Module):
    """A look in an ordinary network, at a map that is needed afterwards too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x.mean(3).flatten(1)) + x.sum((1, 2))


def test_a_look_may_be_anywhere_and_the_map_is_kept() -> None:
    torch.manual_seed(0)
    model, x = Pooled().eval(), torch.randn(1, 2, 3, 4)
    network = trace(model, (x,)).eval()
    assert [step.node.path for step in with_looks(compile_program(network.nodes)) if step.calls] == ["head"]
    with torch.no_grad():
        torch.testing.assert_close(network(x), model(x))
        torch.testing.assert_close(network(x.repeat(9, 1, 1, 1)), model(x.repeat(9, 1, 1, 1)))
    torch.testing.assert_close(network(x), model(x))

"""Where exits go, which threshold they get, and that who leaves costs nothing more."""

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from penjing.dynamic import EarlyExits, attach_exits, places_for_exits
from penjing.errors import SettingError, SurgeryError
from penjing.graph import Network, trace
from penjing.measurement import macs_by_node, macs_to_exits, macs_without_exits
from penjing.models import resnet_cifar
from penjing.training import Batch, Task, Workbench


class Blocks(nn.Module):
    """stem, a block with a shortcut, a last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu0 = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.inner, self.relu1 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.outer, self.relu2 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.last, self.relu3, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Linear(100, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu0(self.stem(x))
        x = self.relu2(x + self.outer(self.relu1(self.inner(x))))
        return self.linear(self.relu3(self.last(x)).flatten(1))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return trace(Blocks(), (torch.randn(2, 1, 5, 5),)).eval()


def test_exits_are_not_put_where_a_shortcut_runs_past(network: Network) -> None:
    paths = {node.name: node.path for node in network.nodes}
    assert sorted(paths[name] for name in places_for_exits(network, 3)) == ["relu0", "relu2", "relu3"]
    with pytest.raises(SurgeryError, match="has 3 places for an exit; 4 are asked for"):
        places_for_exits(network, 4)


def test_an_exit_behind_a_block_sees_what_the_block_gives() -> None:
    torch.manual_seed(0)
    network = trace(resnet_cifar(14, width=4), (torch.randn(2, 3, 16, 16),))
    x, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    task = Task([Batch((x,), {}, labels)], [Batch((x,), {}, labels)])  # type: ignore[arg-type]
    bench = Workbench(network, task, accelerator=Accelerator(cpu=True))
    EarlyExits(after=("layer1.0", "layer2.*"), epochs=0, saving=0.01).apply(bench)
    by_name = {node.name: node for node in bench.network.nodes}
    looked_at = [by_name[by_name[by_name[exit_.inputs[0]].inputs[0]].inputs[0]] for exit_ in bench.network.exits]
    assert [(node.op, node.scope) for node in looked_at] == [
        ("relu", "layer1.0"),
        ("relu", "layer2.0"),
        ("relu", "layer2.1"),
    ]
    with pytest.raises(SettingError, match=r'after: no layer is like "layer4\.0"'):
        EarlyExits(after=("layer4.0",), epochs=0).apply(Workbench(network, task, accelerator=Accelerator(cpu=True)))


def test_one_exit_goes_nearest_to_half_of_the_work(network: Network) -> None:
    (place,) = places_for_exits(network, 1)
    by_node = macs_by_node(network)
    done, total = 0, sum(by_node.values())
    share = {}
    for node in network.nodes:
        done += by_node[node.name]
        share[node.path] = done / total
    assert network.node_of("relu2").name == place
    assert abs(share["relu2"] - 0.5) < min(abs(share["relu0"] - 0.5), abs(share["relu3"] - 0.5))


def test_attached_exits_change_nothing_until_somebody_may_leave(network: Network) -> None:
    dynamic = attach_exits(network, [network.node_of("relu2").name, network.node_of("relu0").name]).eval()
    x = torch.randn(6, 1, 5, 5)
    with torch.no_grad():
        assert torch.equal(dynamic(x), network(x))
        assert len(dynamic.all_answers(x)) == 3 and not network.exits
    assert macs_without_exits(dynamic) == macs_without_exits(network)


@pytest.mark.parametrize("batch", [1, 6])
def test_who_leaves_is_not_computed_any_further(network: Network, batch: int) -> None:
    dynamic = attach_exits(network, [network.node_of("relu0").name]).eval()
    x = torch.randn(batch, 1, 5, 5)
    with torch.no_grad():
        confidence = dynamic.all_answers(x)[0].softmax(-1).amax(-1)
        dynamic.set_thresholds([float(confidence.sort().values[batch // 2])])  # the surer half leaves
        seen: list[int] = []
        hook = dynamic.get_submodule("last").register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        answers, left, _ = dynamic.route(x)
        hook.remove()
        stays = left == 1
        assert sum(seen) == int(stays.sum()) == batch // 2
        torch.testing.assert_close(answers[stays], network(x)[stays], rtol=1e-5, atol=1e-6)
        assert torch.equal(answers[~stays], dynamic.all_answers(x)[0][~stays])
    assert macs_to_exits(dynamic)[0] < macs_to_exits(dynamic)[1]


def test_an_exit_needs_channels() -> None:
    flat = trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.randn(2, 5, 4),))
    with pytest.raises(SurgeryError, match=r"shape \(5, 6\); channels"):
        attach_exits(flat, [flat.node_of("1").name])


def test_a_user_s_layer_called_exits_stays() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exits = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.exits(x).mean((2, 3)))

    model = Own()
    network = attach_exits(trace(model, (torch.randn(2, 1, 8, 8),)), ["exits_1"])
    assert {"exits.0", "exits_1.0"} <= set(network.layers())
    assert torch.equal(network.state_dict()["exits.0.weight"], model.exits[0].weight)

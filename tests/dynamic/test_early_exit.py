"""Where exits go, which threshold they get, and that who leaves costs nothing more."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from penjing.dynamic import EarlyExits, attach_exits, places_for_exits
from penjing.errors import SettingError, SurgeryError
from penjing.graph import ExitOutputs, Network, trace
from penjing.graph.features import node_named
from penjing.graph.ops import OPERATIONS
from penjing.graph.sizes import Size
from penjing.measurement import macs_by_node, macs_to_exits, macs_without_exits
from penjing.models import resnet_cifar
from penjing.training import Batch, Task, Workbench
from penjing.training.self_teaching import LearnFromLastAnswer


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
    bench = _bench(network)
    EarlyExits(after=("layer1.0", "layer2.*"), epochs=0, saving=0.01).apply(bench)
    by_name = {node.name: node for node in bench.network.nodes}
    looked_at = []
    for node in bench.network.exits:
        while node.scope == "" and node.name.startswith("exit_"):
            node = by_name[node.inputs[0]]
        looked_at.append(node)
    assert bench.facts["exits after"] == ["layer1.0", "layer2.0", "layer2.1"]
    assert [(node.op, node.scope) for node in looked_at] == [
        ("relu", "layer1.0"),
        ("relu", "layer2.0"),
        ("relu", "layer2.1"),
    ]
    with pytest.raises(SettingError, match=r'after: no layer is like "layer4\.0"'):
        EarlyExits(after=("layer4.0",), epochs=0).apply(_bench(network))


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


@pytest.mark.parametrize(
    ("size", "places", "seen"), [(16, 4, 4), (14, 4, 4), (7, 4, 4), (3, 4, 3), (16, 1, 1), (12, 3, 3)]
)
def test_a_head_sees_means_over_parts_of_the_map(size: int, places: int, seen: int) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    network = trace(layers, (torch.randn(2, 2, size, size),)).eval()
    dynamic = attach_exits(network, [network.node_of("1").name], places).eval()
    x = torch.randn(4, 2, size, size)
    head = dynamic.get_submodule("exits.0")
    assert head.in_features == 3 * seen * seen
    with torch.no_grad():
        found = dynamic.all_answers(x)[0]
        maps = layers[:2](x)
        parts = torch.nn.functional.adaptive_avg_pool2d(maps, seen)
        if size % seen == 0:
            torch.testing.assert_close(found, head(parts.flatten(1)))
        # every place counts, in windows of one size
        touched = torch.autograd.functional.jacobian(lambda m: _map_of(dynamic, m), maps[:1])
    windows = touched[0].abs().sum((1, 2)) > 0
    assert windows.any(0).all() and len({int(window.sum()) for window in windows}) == 1


def _map_of(dynamic: Network, maps: Tensor) -> Tensor:
    """What the head's linear layer gets, summed over channels."""
    values = {dynamic.node_of("1").name: maps}
    for node in dynamic.nodes:
        if node.name.startswith("exit_") and node.op in OPERATIONS:
            values[node.name] = OPERATIONS[node.op].function(values[node.inputs[0]], **node.settings)
    last = list(values.values())[-1]
    return last.view(len(last), maps.shape[1], -1).sum(1)


def test_where_sizes_are_open_a_head_sees_the_mean_over_all_places() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    network = trace(layers, (torch.randn(2, 2, 16, 16),)).eval()
    network.input_shapes, network.hints = ((2, Size(("n",)), 16),), {"n": 16}
    dynamic = attach_exits(network, [network.node_of("1").name]).eval()
    assert dynamic.get_submodule("exits.0").in_features == 3
    assert dynamic.all_answers(torch.randn(2, 2, 9, 16))[0].shape == (2, 5)


def _bench(network: Network) -> Workbench:
    x, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    task = Task([Batch((x,), {}, labels)], [Batch((x,), {}, labels)])  # type: ignore[arg-type]
    return Workbench(network, task, accelerator=Accelerator(cpu=True))


def test_heads_alone_leave_the_last_answer_to_the_bit() -> None:
    torch.manual_seed(0)
    network = trace(resnet_cifar(8, width=4), (torch.randn(2, 3, 16, 16),)).eval()
    places = [node_named(network, "layer1"), node_named(network, "layer2")]
    before = attach_exits(network, places).state_dict()
    settings = {"saving": 0.01, "lr": 0.1, "optimizer": "sgd", "weight_decay": 0.1, "epochs": 3, "in_place": 0.5}
    for alone, more in ((True, {}), (True, {"average_epochs": 2}), (True, {"average": 0.9}), (False, {})):
        bench = _bench(attach_exits(network, places))
        bench.network.load_state_dict(before)
        EarlyExits(**settings, **more, heads_only=alone).apply(bench)
        changed = {n for n, tensor in bench.network.state_dict().items() if not torch.equal(tensor, before[n])}
        heads = {f"exits.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")}
        assert changed == heads if alone else changed > heads
        assert all(parameter.requires_grad for parameter in bench.network.parameters())


@pytest.mark.parametrize("soft", [0.0, 0.4])
def test_exits_count_as_much_as_they_are_told(soft: float) -> None:
    torch.manual_seed(0)
    logits, labels = ExitOutputs(torch.randn(5, 4, requires_grad=True) for _ in range(3)), torch.arange(5) % 4
    fit: Any = SimpleNamespace(task=SimpleNamespace(loss=F.cross_entropy), where="here")
    batch = Batch((torch.zeros(5),), {}, labels)
    first, second, last = logits
    T = 3.0
    expected = F.cross_entropy(last, labels)
    for answer in (first, second):
        divergence = F.kl_div((answer / T).log_softmax(1), (last.detach() / T).softmax(1), reduction="batchmean")
        expected = expected + 0.2 * ((1 - soft) * F.cross_entropy(answer, labels) + soft * T * T * divergence)
    torch.testing.assert_close(LearnFromLastAnswer(soft, T, 0.2).loss(fit, batch, logits), expected)
    with pytest.raises(SettingError, match=r"weight above 0, got 0\.5, 3\.0 and 0"):
        LearnFromLastAnswer(0.5, 3.0, 0)
    with pytest.raises(SettingError, match="with a teacher all answers count alike"):
        EarlyExits(weight=0.3, teacher="baseline")


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

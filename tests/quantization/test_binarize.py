"""Binarized networks: which layers, what their inputs become, what stays of it in training, cuts and files."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import decode, encode
from penjing.errors import SettingError
from penjing.export import export_onnx
from penjing.graph import Network, channel_groups, prove_removal, remove_channels, trace
from penjing.graph.network import MODULE
from penjing.graph.ops import sign_through
from penjing.measurement import macs_by_node
from penjing.pruning import PruneWeights
from penjing.quantization import Binarize, HalfPrecision, Quantize, binarize_, refresh_norms_, with_sign_inputs
from penjing.quantization.sign_inputs import ends
from penjing.representation import Signs, named_weights, represent_, representations
from penjing.representation.mask import Mask
from penjing.training import Fit, Part, Schedule, Task, Workbench, fit_


@pytest.fixture
def network() -> Network:
    """first ── norm ── relu ── pool ── second ── norm ── relu ── dropout ── third ── norm ── flatten ── last"""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "first": nn.Conv2d(2, 8, 3, padding=1, bias=False),
        "norm1": nn.BatchNorm2d(8),
        "relu1": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "second": nn.Conv2d(8, 12, 3, padding=1),
        "norm2": nn.BatchNorm2d(12),
        "relu2": nn.ReLU(),
        "dropout": nn.Dropout(0.25),
        "third": nn.Conv2d(12, 10, 3, bias=False),
        "norm3": nn.BatchNorm2d(10),
        "flatten": nn.Flatten(),
        "last": nn.Linear(40, 3),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return trace(model, [torch.randn(2, 2, 8, 8)]).eval()


@pytest.fixture
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 2, 8, 8, generator=generator)
    data = TensorDataset(x, x.mean((2, 3))[:, 0].mul(12).round().clamp(-1, 1).long() + 1)
    return Task(DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=96))


def applied(stage: Binarize, network: Network, task: Task) -> Workbench:
    bench = Workbench(copy.deepcopy(network), task, accelerator=Accelerator(cpu=True))
    stage.apply(bench)
    return bench


def magnitudes(network: Network, path: str) -> Tensor:
    return network.get_submodule(path).weight.detach().abs()


def test_the_gradient_of_a_sign_passes_where_the_value_is_small() -> None:
    """Binarized networks, equation 4."""
    x = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.4, 1.0, 1.01], requires_grad=True)
    y = sign_through(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    upstream = torch.randn(7)
    (y * upstream).sum().backward()
    assert torch.equal(x.grad, upstream * torch.tensor([0, 1, 1, 1, 1, 1, 0]))


def test_the_ends_are_what_nothing_weighted_comes_before_or_after(network: Network) -> None:
    assert ends(network) == ({"first"}, {"last"})

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.mid = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 5)
            self.mean, self.spread = nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.mid(self.left(x) + self.right(x)).relu()
            return self.mean(y), self.spread(y).exp()

    assert ends(trace(Two(), [torch.randn(2, 4)])) == ({"left", "right"}, {"mean", "spread"})


@pytest.mark.parametrize("values", ["binary", "ternary"])
@pytest.mark.parametrize("scale", ["none", "tensor", "filter"])
@pytest.mark.parametrize("activations", [False, True])
def test_weights_have_so_many_values_and_originals_stay_clipped(
    values: str, scale: str, activations: bool, network: Network, task: Task
) -> None:
    stage = Binarize(values=values, scale=scale, activations=activations, epochs=2, lr=0.05)  # type: ignore[arg-type]
    result = applied(stage, network, task).network
    for path in ("second", "third"):
        layer = result.get_submodule(path)
        own = magnitudes(result, path)
        rows = own.flatten(1) if scale == "filter" else own.reshape(1, -1)
        for row in rows:
            found = set(row.unique().tolist())
            assert len(found - {0.0}) == 1 and (values == "ternary" or 0.0 not in found)
            assert scale != "none" or found <= {0.0, 1.0}
        original = layer.parametrizations.weight.original  # type: ignore[union-attr, index]
        assert float(original.detach().abs().max()) <= 1
    for path in ("first", "last"):
        assert len(magnitudes(result, path).unique()) > 20
    assert encode(decode(encode(result), for_training=True)) == encode(result)


def test_without_training_weights_are_the_nearest_signs_of_each_filter(network: Network, task: Task) -> None:
    result = applied(Binarize(epochs=0), network, task).network
    before = network.get_submodule("second").weight.detach()
    expected = before.abs().mean((1, 2, 3), keepdim=True) * torch.where(before >= 0, 1.0, -1.0)
    torch.testing.assert_close(result.get_submodule("second").weight.detach(), expected, rtol=0.023, atol=0)


def test_originals_without_scale_begin_as_wide_as_uniform_ones(network: Network) -> None:
    layer = network.get_submodule("second")
    before = layer.weight.detach().clone()
    binarize_(layer, "weight", scale="none")
    original = layer.parametrizations.weight.original.detach()  # type: ignore[union-attr, index]
    assert float(original.square().mean()) == pytest.approx(1 / 3)
    assert torch.equal(original.sign(), before.sign())


def test_norms_are_layers_still(network: Network, task: Task) -> None:
    result = applied(Binarize(scale="none", epochs=1), network, task).network
    assert {"norm1", "norm2", "norm3"} <= set(result.layers())
    later = copy.deepcopy(result)
    Quantize(layers={"second": 16, "third": 16}).apply(Workbench(later, task, accelerator=Accelerator(cpu=True)))
    assert magnitudes(later, "second").unique().tolist() == [1.0]


def _inputs(network: Network, path: str, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = network.get_submodule(path).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    network(x)
    handle.remove()
    return found[0].detach()


def test_inputs_become_signs_of_what_comes_before_the_relu(network: Network, task: Task) -> None:
    changed = with_sign_inputs(network, ["second", "third", "last"])
    x = torch.randn(4, 2, 8, 8)
    normed = network.get_submodule("norm1")(network.get_submodule("first")(x))
    pooled = F.max_pool2d(normed, 2)
    assert torch.equal(_inputs(changed, "second", x), torch.where(pooled >= 0, 1.0, -1.0))
    assert torch.equal(_inputs(changed, "first", x), x)
    third = _inputs(changed, "third", x)
    assert third.unique().tolist() == [-1.0, 1.0]
    assert set(changed.layers()) == set(network.layers()) - {"relu1", "relu2"}
    assert "relu1" not in changed.state_dict() and changed.get_submodule("pool") is not network.get_submodule("pool")
    trained = changed.train()
    assert _inputs(trained, "third", x).unique().tolist() == pytest.approx([-4 / 3, 0, 4 / 3])  # dropout after the sign
    assert "relu1" in network.layers()


def test_others_still_read_the_relu() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
            self.pool = nn.AvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.stem(x)).relu()
            short = self.pool(y)
            return F.avg_pool2d(self.a(y) + y, 2) + self.b(short) + self.c(short)

    torch.manual_seed(0)
    network = trace(Block(), [torch.randn(2, 1, 8, 8)]).eval()
    x = torch.randn(3, 1, 8, 8)
    normed = network.get_submodule("norm")(network.get_submodule("stem")(x))
    changed = with_sign_inputs(network, ["a", "c"])
    signs = torch.where(normed >= 0, 1.0, -1.0)
    assert torch.equal(_inputs(changed, "a", x), signs)
    assert torch.equal(_inputs(changed, "c", x), torch.where(F.avg_pool2d(normed, 2) >= 0, 1.0, -1.0))
    assert torch.equal(_inputs(changed, "b", x), _inputs(network, "b", x))
    both = with_sign_inputs(network, ["b", "c"])
    assert sum(node.op == "sign_through" for node in both.nodes) == 1
    shared = {node.inputs[0] for node in both.nodes if node.op == MODULE and node.path in ("b", "c")}
    assert len(shared) == 1
    y = normed.relu()
    layers = {name: network.get_submodule(name) for name in "abc"}
    mixed = F.avg_pool2d(layers["a"](signs) + y, 2) + layers["b"](F.avg_pool2d(y, 2))
    mixed = mixed + layers["c"](torch.where(F.avg_pool2d(normed, 2) >= 0, 1.0, -1.0))
    torch.testing.assert_close(changed(x), mixed)


def test_channels_go_through_signs_and_the_rest_computes_the_same(network: Network, task: Task) -> None:
    result = applied(Binarize(activations=True, epochs=1), network, task).network
    grouping = channel_groups(result)
    removal = grouping.removal({group.name: [0, 2] for group in grouping.groups})
    assert prove_removal(result, removal).error <= 1e-9
    small = remove_channels(result, removal)
    assert small.get_submodule("second").weight.shape == (10, 6, 3, 3)
    signs = representations(small.get_submodule("second"), "weight")[0]
    assert isinstance(signs, Signs) and signs.scales is not None and signs.scales.shape == (10, 1, 1, 1)
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(decode(encode(small))(x), small(x))


def test_signs_in_onnx_macs_and_files(network: Network, task: Task, tmp_path: object) -> None:
    result = applied(Binarize(activations=True, skip=(), scale="none", epochs=1), network, task).network
    assert sum(macs_by_node(result).values()) == sum(macs_by_node(network).values())
    assert {node.op for node in decode(encode(result)).nodes} >= {"sign_through"}
    export = export_onnx(result, tmp_path / "signs.onnx")  # type: ignore[operator]
    assert export.largest_difference <= 1e-4


class _Codes(Part):
    """Watches the originals and the codes of a layer, step by step."""

    def __init__(self) -> None:
        self.originals: list[Tensor] = []
        self.drawn: list[bool] = []

    def after_step(self, fit: Fit) -> None:
        layer = fit.network.get_submodule("second")
        self.originals.append(layer.parametrizations.weight.original.detach().clone())  # type: ignore[union-attr, index]
        self.drawn.append(not torch.equal(layer.weight.detach(), layer.weight.detach()))


@pytest.mark.parametrize("rounding", ["deterministic", "stochastic"])
def test_chance_while_training_and_none_afterwards(
    rounding: str, network: Network, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = _Codes()
    monkeypatch.setattr(Binarize, "parts", lambda self, bench: [*super(Binarize, self).parts(bench), watch])
    stage = Binarize(rounding=rounding, scale="none", epochs=1, norm_samples=32)  # type: ignore[arg-type]
    result = applied(stage, network, task).network
    assert watch.drawn == [rounding == "stochastic"] * 6
    assert any(not torch.equal(a, b) for a, b in zip(watch.originals[1:], watch.originals, strict=False))
    last = watch.originals[-1]
    assert torch.equal(result.get_submodule("second").weight.detach(), torch.where(last >= 0, 1.0, -1.0).clamp(-1, 1))


def test_it_learns(network: Network, task: Task) -> None:
    bench = applied(Binarize(epochs=12, lr=0.05), network, task)
    losses = bench.history[""].losses
    assert losses[-1] < 0.6 * losses[0]


def test_fine_tuning_and_distillation_leave_signs_and_move_scales(network: Network, task: Task) -> None:
    result = applied(Binarize(epochs=1), network, task).network
    before = result.get_submodule("second").weight.detach().clone()
    bench = Workbench(result, task, accelerator=Accelerator(cpu=True), teachers={"baseline": network})
    bench.train(Schedule(epochs=2, lr=0.05), Binarize(teacher="baseline").parts(bench), "again")
    after = bench.network.get_submodule("second").weight.detach()
    assert torch.equal(after.sign(), before.sign()) and not torch.equal(after, before)
    assert len(after.abs().flatten(1).unique(dim=1)[0]) == 1


def test_norms_take_the_statistics_of_what_they_see(network: Network, task: Task) -> None:
    batches = list(task.batches(task.train))
    refresh_norms_(network, batches)
    x = torch.cat([batch.args[0] for batch in batches])
    seen = network.get_submodule("first")(x)
    torch.testing.assert_close(network.get_submodule("norm1").running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert network.get_submodule("norm1").momentum == 0.1 and not network.training


def test_no_weight_decay_reaches_originals(network: Network, task: Task) -> None:
    found: list[float] = []

    class Look(Part):
        def start(self, fit: Fit) -> None:
            for group in fit.optimizer.param_groups:
                for parameter in group["params"]:
                    if any(parameter is p for p in originals):
                        found.append(group["weight_decay"])

    from_stage = applied(Binarize(epochs=0), network, task).network
    for _, owner, name in named_weights(from_stage):
        stack = representations(owner, name)
        if stack:
            stack[-1].follow_()  # type: ignore[operator]
            owner.parametrizations[name].original.requires_grad_(True)  # type: ignore[index, union-attr]
    originals = [p for n, p in from_stage.named_parameters() if n.endswith("original")]
    fit_(
        from_stage, task, Schedule(epochs=1, weight_decay=0.5), [*Binarize().parts(Workbench(from_stage, task)), Look()]
    )
    assert found == [0.0, 0.0]


def test_warnings_where_no_norm_is(task: Task) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)]
    bench = applied(
        Binarize(activations=True, epochs=0), trace(nn.Sequential(*layers), [torch.randn(2, 2, 8, 8)]), task
    )
    assert any("2 computes with signs and no norm follows" in text for text in bench.warnings)
    assert any("2 takes signs of what comes from no norm" in text for text in bench.warnings)


def test_a_warning_where_signs_are_all_the_same(task: Task) -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).square()).flatten(1))  # type: ignore[no-any-return]

    bench = applied(Binarize(activations=True, epochs=0), trace(Squares(), [torch.randn(2, 2, 8, 8)]), task)
    assert any("b takes signs that are the same for all samples" in text for text in bench.warnings)


def test_masks_under_ternary_weights(network: Network, task: Task) -> None:
    bench = Workbench(copy.deepcopy(network), task, accelerator=Accelerator(cpu=True))
    PruneWeights(sparsity=0.5, rounds=1, epochs=0).apply(bench)
    removed = bench.network.get_submodule("second").weight.detach() == 0
    Binarize(values="ternary", scale="tensor", epochs=2, lr=0.05).apply(bench)
    weight = bench.network.get_submodule("second").weight.detach()
    assert bool((weight[removed] == 0).all()) and len(weight.abs().unique()) == 2


def test_what_makes_no_sense_is_refused(network: Network, task: Task) -> None:
    with pytest.raises(SettingError, match="rounding: stochastic needs values: binary and scale: none"):
        Binarize(rounding="stochastic")
    small = trace(nn.Sequential(nn.Conv2d(2, 3, 8), nn.Flatten()), [torch.randn(2, 2, 8, 8)])
    with pytest.raises(SettingError, match=r"no layer is left; of 0 skip: \['first', 'last'\] leaves none"):
        applied(Binarize(), small, task)
    with pytest.raises(SettingError, match='binarize: layers: no layer matches "thrid"; did you mean "third"'):
        applied(Binarize(layers=("thrid",)), network, task)
    layer = nn.Linear(3, 4)
    represent_(layer, "weight", Mask(torch.ones(4, 3)))
    with pytest.raises(SettingError, match=r"Linear\.weight is under a mask, and a binary weight is never 0"):
        binarize_(layer, "weight")
    with pytest.raises(SettingError, match=r"torch\.float64; signs stand for float32"):
        binarize_(nn.Linear(3, 4).double(), "weight")
    broken = nn.Linear(3, 4)
    broken.weight.data[0, 0] = math.inf
    with pytest.raises(SettingError, match="not finite"):
        binarize_(broken, "weight")


def test_half_precision_takes_what_is_left(network: Network, task: Task) -> None:
    result = applied(Binarize(epochs=1), network, task).network
    bench = Workbench(result, task, accelerator=Accelerator(cpu=True))
    HalfPrecision().apply(bench)
    assert len(encode(bench.network)) < len(encode(applied(Binarize(epochs=1), network, task).network))


def test_a_transposed_convolution_has_its_filters_in_the_second_dimension() -> None:
    assert binarize_(nn.ConvTranspose2d(3, 5, 2), "weight").scales.shape == (1, 5, 1, 1)  # type: ignore[union-attr]
    assert binarize_(nn.Linear(3, 5), "weight").scales.shape == (5, 1)  # type: ignore[union-attr]
    assert binarize_(nn.Linear(3, 5), "weight", scale="tensor").scales.shape == (1, 1)  # type: ignore[union-attr]

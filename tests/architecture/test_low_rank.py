"""Layers as several of low rank: the same function, costs in closed form, ranks by every rule, and what stays says why."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

from penjing.architecture import Factorisation, LowRank, factorise, low_rank, rank_choice
from penjing.architecture.low_rank import factorised_weight, layer_shapes
from penjing.architecture.rank_choice import Candidate, by_energy, by_limit, by_time, median_times
from penjing.architecture.schemes import SCHEMES, LayerShape, Options
from penjing.artifact import decode, encode
from penjing.errors import DataError, SettingError
from penjing.graph import Network, trace
from penjing.measurement import count_parameters, macs_by_node
from penjing.training import Batch, Journal, Task, Workbench

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "odd": {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 3), "dilation": (1, 2)},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 2, "bias": False},
    "reflect": {"kernel_size": 5, "stride": 3, "padding": 2, "padding_mode": "reflect"},
    "even": {"kernel_size": 4, "padding": (2, 0), "padding_mode": "circular"},
}
RANKS: dict[str, Any] = {"channel": 3, "tucker": (3, 2), "cp": 4, "spatial": 3}


def _traced(*layers: nn.Module, shape: tuple[int, ...] = (6, 17, 15)) -> Network:
    return trace(nn.Sequential(*layers), [torch.randn(2, *shape)]).eval()


def _conv(network: Network, path: str = "0") -> Any:
    return network.get_submodule(path)


@pytest.fixture(scope="module")
def network() -> Network:
    """Weights that are nearly of low rank, and inputs to each layer that lie near a few directions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 32), nn.ReLU(), nn.Linear(32, 3)]
    return _traced(*layers, shape=(2, 8, 8))


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 2, 8, 8, generator=generator).cumsum(2).cumsum(3) / 4
    data = TensorDataset(x, (x[:, 0].mean((1, 2)) > 0).long())
    return Task(DataLoader(data, batch_size=20, shuffle=True), DataLoader(data, batch_size=96))


def _applied(network: Network, task: Task, **settings: Any) -> Workbench:
    bench = Workbench(network, task)
    LowRank(**settings).apply(bench)
    return bench


@pytest.mark.parametrize("method", ["channel", "tucker", "cp", "spatial"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_factors_are_one_convolution_and_costs_have_a_closed_form(kind: str, method: Any) -> None:
    network = _traced(nn.Conv2d(6, 8, **CONVOLUTIONS[kind]))
    small = factorise(network, {"0": Factorisation(method, RANKS[method])})
    closest = copy.deepcopy(network)
    with torch.no_grad():
        _conv(closest).weight.copy_(factorised_weight(small, "0", method))
    x = torch.randn(3, 6, 17, 15)
    torch.testing.assert_close(small(x), closest(x), rtol=1e-4, atol=1e-5)
    shape = layer_shapes(network, ["0"])["0"]
    ranks = SCHEMES[method].checked(shape, RANKS[method])
    costs = SCHEMES[method].costs(shape, ranks)
    assert costs == (count_parameters(small)[0], sum(macs_by_node(small).values()))
    assert (shape.n_parameters, shape.n_macs) == (count_parameters(network)[0], sum(macs_by_node(network).values()))
    found = [tuple(layer.weight.shape) for layer in small.layers().values()]
    assert found == SCHEMES[method].factor_shapes(shape, ranks)
    assert [layer.bias is not None for layer in small.layers().values()][:-1] == [False] * (len(found) - 1)
    assert (list(small.layers().values())[-1].bias is None) == (_conv(network).bias is None)


@pytest.mark.parametrize("method", ["channel", "tucker", "cp", "spatial"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_full_rank_computes_the_layer(kind: str, method: str) -> None:
    network = _traced(nn.Conv2d(6, 8, **CONVOLUTIONS[kind]))
    scheme, layer = SCHEMES[method], _conv(network)
    ranks = scheme.largest(layer_shapes(network, ["0"])["0"])
    factors = scheme.factors(layer.weight, ranks, None, torch.Generator().manual_seed(0))
    chain = nn.Sequential(*scheme.layers(layer, factors).values())
    x = torch.randn(3, 6, 17, 15)
    torch.testing.assert_close(chain(x), network(x), rtol=1e-4, atol=1e-4)


def test_tucker_macs_are_the_formula_of_the_paper() -> None:
    """S R3 H W + R3 R4 k^2 H' W' + R4 T H' W', of Kim et al. 2016; and S R3 + R3 R4 k^2 + R4 T parameters."""
    network = _traced(nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False))
    small = factorise(network, {"0": Factorisation("tucker", (4, 2))})
    assert sum(macs_by_node(small).values()) == 6 * 2 * 17 * 15 + (2 * 4 * 9 + 4 * 8) * 9 * 8
    assert count_parameters(small)[0] == 6 * 2 + 2 * 4 * 9 + 4 * 8


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 9), (12,)),
        (nn.Linear(12, 9, bias=False), (5, 12)),
        (nn.Conv2d(12, 9, 1, stride=2, padding=1), (12, 5, 6)),
        (nn.Conv1d(12, 9, 1), (12, 7)),
    ],
)
def test_svd_of_layers_whose_kernel_has_one_place(layer: nn.Module, shape: tuple[int, ...]) -> None:
    network = _traced(layer, shape=shape)
    small = factorise(network, {"0": Factorisation("auto", 3)})
    assert list(small.layers()) == ["0.reduce", "0.expand"]
    with torch.no_grad():
        _conv(network).weight.copy_(factorised_weight(small, "0", "svd"))
    x = torch.randn(4, *shape)
    torch.testing.assert_close(small(x), network(x))
    costs = SCHEMES["svd"].costs(layer_shapes(network, ["0"])["0"], (3,))
    assert costs == (count_parameters(small)[0], sum(macs_by_node(small).values()))


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d(9, 10, 3, 2), (9, 11)), (nn.Conv3d(9, 10, 2), (9, 4, 5, 4))])
@pytest.mark.parametrize("method", ["channel", "tucker"])
def test_convolutions_of_other_dimensions(layer: nn.Module, shape: tuple[int, ...], method: Any) -> None:
    network = _traced(layer, shape=shape)
    small = factorise(network, {"0": Factorisation(method, 3)})
    with torch.no_grad():
        _conv(network).weight.copy_(factorised_weight(small, "0", method))
    x = torch.randn(4, *shape)
    torch.testing.assert_close(small(x), network(x), rtol=1e-4, atol=1e-5)


def test_activations_make_errors_on_other_samples_smaller(network: Network, task: Task) -> None:
    for method, ranks in (
        ("svd", {"4": 4, "7": 6}),
        ("channel", {"2": 4}),
        ("tucker", {"2": (5, 4)}),
        ("spatial", {"2": 5}),
        ("cp", {"2": 8}),
    ):
        aware = _applied(network, task, method=method, ranks=ranks, samples=48).facts["factorised"]
        blind = _applied(network, task, method=method, ranks=ranks).facts["factorised"]
        held_out = _held_out(network, task)
        for path in ranks:
            plain = factorise(network, {path: Factorisation(method, ranks[path])})
            error = low_rank.relative_error(
                _conv(network, path).weight, factorised_weight(plain, path, method), held_out[path]
            )
            assert aware[path]["relative error on other samples"] <= error
            assert aware[path]["relative error of the weight"] >= 0.999 * blind[path]["relative error of the weight"]


def _held_out(network: Network, task: Task) -> dict[str, Tensor]:
    stage = LowRank(samples=48)
    return stage._moments(Workbench(network, task))[1]


def test_energy_is_kept_with_the_fewest_parameters(network: Network, task: Task) -> None:
    facts = _applied(network, task, energy=0.7).facts
    assert set(facts["factorised"]) | set(facts["stayed"]) == {"0", "2", "4", "7", "9"}
    for path, made in facts["factorised"].items():
        assert made["relative error of the weight"] ** 2 <= 0.3 + 1e-6
        assert made["parameters"][1] < made["parameters"][0] or made["MACs"][1] < made["MACs"][0]
        if made["method"] == "svd":
            values = torch.linalg.svdvals(_conv(network, path).weight.detach().flatten(1))
            assert float(values[: made["ranks"][0] - 1].square().sum()) < 0.7 * float(values.square().sum())
    assert facts == _applied(network, task, energy=0.7).facts
    assert _applied(network, task).facts == _applied(network, task, energy=0.9).facts


def test_energy_of_a_cp_decomposition_is_that_of_the_ranks_looked_at(network: Network, task: Task) -> None:
    made = _applied(network, task, energy=0.5, method="cp", layers=("2",)).facts["factorised"]["2"]
    assert made["relative error of the weight"] ** 2 <= 0.55
    candidate = Candidate.of(
        SCHEMES["svd"],
        LayerShape(8, 8, (), False, (1,), (1,)),
        Options(torch.tensor([[1], [2]]), torch.tensor([0.6, 0.4])),
    )
    assert by_energy(candidate, 0.9) == (2,)


def test_evidence_finds_the_ranks_that_are_there(task: Task) -> None:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 30, 1), nn.Conv2d(30, 40, 3, padding=1), nn.Flatten(), nn.Linear(40 * 64, 50))
    for layer, rank in ((model[1], (4, 6)), (model[3], 5)):
        with torch.no_grad():
            if rank == 5:
                clean = torch.randn(50, 5, generator=generator) @ torch.randn(5, 2560, generator=generator)
            else:
                core = torch.randn(4, 6, 3, 3, generator=generator)
                clean = torch.einsum(
                    "op,pqyx,qi->oiyx",
                    torch.randn(40, 4, generator=generator),
                    core,
                    torch.randn(6, 30, generator=generator),
                )
            layer.weight.copy_(clean / clean.std() + 0.3 * torch.randn(clean.shape, generator=generator))
    network = trace(model, [torch.randn(2, 2, 8, 8)]).eval()
    facts = _applied(network, task, rank="evidence").facts
    assert facts["factorised"]["1"]["ranks"] == [4, 6] and facts["factorised"]["3"]["ranks"] == [5]
    # a tensor's own rank is at least that of each unfolding
    assert SCHEMES["cp"].evidence(_conv(network, "1").weight.detach()) == (6,)


@pytest.mark.parametrize("samples", [0, 40])
@pytest.mark.parametrize(("what", "share"), [("parameters", 0.5), ("parameters", 0.2), ("macs", 0.4)])
def test_limits_are_kept_by_the_whole_network(
    network: Network, task: Task, what: str, share: float, samples: int
) -> None:
    def amount(found: Network) -> int:
        return count_parameters(found)[0] if what == "parameters" else sum(macs_by_node(found).values())

    limit = int(share * amount(network))
    bench = _applied(network, task, samples=samples, **{f"max_{what}": limit})
    assert 0.9 * limit < amount(bench.network) <= limit
    assert all(
        reason == "the limit is kept without it" or "would have" in reason for reason in bench.facts["stayed"].values()
    )


def test_ranks_over_layers_are_about_as_good_as_any() -> None:
    generator = torch.Generator().manual_seed(0)
    candidates = {}
    for name, (m, n) in {"a": (40, 50), "b": (30, 60), "c": (50, 35)}.items():
        weight = torch.randn(m, n, generator=generator) / torch.arange(1, n + 1) ** 0.7
        shape = LayerShape(m, n, (), False, (1,), (1,))
        candidates[name] = Candidate.of(SCHEMES["svd"], shape, SCHEMES["svd"].options(weight, shape, None, generator))
    total = 40 * 50 + 30 * 60 + 50 * 35
    for limit in (1000, 2000, 3000, 4000):
        found = by_limit(candidates, total, limit, "parameters")

        def outcome(ranks: dict[str, int]) -> tuple[float, float]:
            cost = error = 0.0
            for name, candidate in candidates.items():
                rank = ranks.get(name, 0)  # 0: as it is
                cost += float(candidate.parameters[rank - 1]) if rank else candidate.shape.n_parameters
                error += float(candidate.options.error[rank - 1]) if rank else 0.0
            return cost, error

        cost, error = outcome({name: ranks[0] for name, ranks in found.items()})
        every = [outcome(dict(zip("abc", ranks, strict=True))) for ranks in itertools.product(range(22), repeat=3)]
        assert cost <= limit
        assert error <= 1.01 * min(e for c, e in every if c <= limit) + 1e-9


def test_time_decides_by_what_was_measured(network: Network, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(modules: list[nn.Module], example: Tensor) -> list[float]:
        return [float(sum(p.numel() for p in module.parameters() if p.dim() > 1)) for module in modules]

    monkeypatch.setattr(rank_choice, "median_times", fake)
    layer = _conv(network, "7")
    shape = layer_shapes(network, ["7"])["7"]
    candidate = Candidate.of(SCHEMES["svd"], shape, SCHEMES["svd"].options(layer.weight.detach(), shape, None, None))
    ranks, share = by_time(candidate, layer, torch.randn(1, 384), 0.5)
    most = int(0.5 * 384 * 32 / (384 + 32))
    assert ranks is not None and most - 1 <= ranks[0] <= most and share <= 0.5
    assert by_time(candidate, layer, torch.randn(1, 384), 0.01) == (None, (384 + 32) / (384 * 32))
    bench = _applied(network, task, latency=0.5)
    assert bench.facts["share of the time"]["7"] == share
    with pytest.raises(SettingError, match=r"its fastest factors take 0\.\d+ of its time, more than 0\.01"):
        _applied(network, task, latency=0.01)


def test_layers_are_timed_on_one_thread() -> None:
    threads = torch.get_num_threads()
    times = median_times([nn.Linear(600, 2), nn.Linear(600, 2000)], torch.randn(1, 600))
    assert 0 < times[0] < times[1]
    assert torch.get_num_threads() == threads


def test_what_was_measured_is_not_measured_again(
    network: Network, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def applied() -> bytes:
        accelerator = Accelerator(cpu=True)
        bench = Workbench(network, task, journal=Journal(tmp_path, accelerator), accelerator=accelerator)
        LowRank(latency=1.0, layers=("7",), samples=20).apply(bench)
        return encode(bench.network)

    monkeypatch.setattr(rank_choice, "median_times", lambda modules, example: [1.0, *[0.9] * (len(modules) - 1)])
    whole = applied()

    def never(modules: Any, example: Any) -> list[float]:
        raise AssertionError("timed again")

    monkeypatch.setattr(rank_choice, "median_times", never)
    assert applied() == whole


def test_ranks_that_are_asked_for(network: Network, task: Task) -> None:
    ranks = {"type:Conv2d": 3, "0": (4, 1), "7": [5]}
    with pytest.raises(
        SettingError, match="low-rank: 0: tucker at ranks 12, 2 would have 376 parameters instead of 228"
    ):
        _applied(network, task, ranks={"0": (12, 2)})
    bench = _applied(network, task, ranks=ranks)
    assert {path: made["ranks"] for path, made in bench.facts["factorised"].items()} == {
        "0": [4, 1],
        "2": [3, 3],
        "4": [3],
        "7": [5],
    }
    assert bench.facts["factorised"]["7"]["parameters"] == [384 * 32 + 32, 5 * (384 + 32) + 32]
    assert "0.core" in bench.network.layers() and "9" in bench.network.layers()


def test_the_callers_network_is_untouched_and_the_result_survives_a_file(network: Network, task: Task) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    nodes = network.nodes
    small = _applied(network, task, max_parameters=6000, samples=20).network
    assert network.nodes == nodes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    loaded = decode(encode(small))
    x = torch.randn(5, 2, 8, 8)
    assert torch.equal(loaded(x), small(x))
    assert count_parameters(loaded) == count_parameters(small)


def test_layers_that_stay_say_why(task: Task) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3, padding=1)
            self.twice = nn.Conv2d(8, 8, 3, padding=1)
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.held, self.holds = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.holds.weight = self.held.weight
            self.marked = nn.Linear(8, 8)
            self.norm, self.tiny = nn.BatchNorm1d(8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.depthwise(self.twice(self.twice(self.conv(x)))).mean((2, 3))
            return self.tiny(self.norm(self.marked(self.holds(self.held(x)))))

    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    network = trace(Shared(), [torch.randn(2, 2, 8, 8)]).eval()
    parametrize.register_parametrization(network.get_submodule("marked"), "weight", Half())
    facts = _applied(network, task, energy=0.3, layers=("!depthwise", "depthwise")).facts
    assert facts["stayed"] == {
        "twice": "it is called 2 times",
        "depthwise": "grouped or depthwise already",
        "held": "its weight is used in other places too",
        "holds": "its weight is used in other places too",
        "marked": "its weight has a representation; factorise before that",
        "norm": "a BatchNorm1d: only linear layers and convolutions have factors",
        "tiny": "svd at rank 1 would have 10 parameters instead of 9, and 9 instead of 8 MACs",
    }
    assert list(facts["factorised"]) == ["conv"]
    with pytest.raises(SettingError, match="marked cannot be factorised: its weight has a representation"):
        factorise(network, {"marked": Factorisation("svd", 1)})
    with pytest.raises(SettingError, match='no method "tuker"; did you mean "tucker"'):
        factorise(network, {"conv": Factorisation("tuker", 1)})  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"none of the chosen layers can be factorised \(tiny: svd at rank 1 would"):
        _applied(network, task, layers=("tiny",))
    with pytest.raises(SettingError, match="conv: its kernel is 3 x 3: svd is for linear layers"):
        _applied(network, task, layers=("conv",), method="svd")
    for method, path, message in (
        ("channel", "tiny", "a linear layer: channel is for convolutions"),
        ("tucker", "tiny", "no kernel larger than 1 x 1: tucker"),
        ("spatial", "tiny", "spatial is for two-dimensional"),
        ("cp", "tiny", "cp is for two-dimensional"),
    ):
        with pytest.raises(SettingError, match=message):
            _applied(network, task, layers=(path,), method=method)


def test_layers_without_known_inputs_go_by_their_weights() -> None:
    network = _traced(nn.Conv3d(6, 8, 2), nn.Flatten(), nn.Linear(8 * 27, 3), shape=(6, 4, 4, 4))
    data = TensorDataset(torch.randn(20, 6, 4, 4, 4), torch.zeros(20, dtype=torch.long))
    bench = _applied(network, Task(DataLoader(data, 10), DataLoader(data, 10)), ranks={"0": 2, "2": 1}, samples=8)
    assert bench.warnings == ["0: nothing is known of the inputs of a Conv3d; its weight counts"]
    assert "relative error on other samples" not in bench.facts["factorised"]["0"]
    assert "relative error on other samples" in bench.facts["factorised"]["2"]


def test_samples_to_choose_by_and_to_check_are_not_the_same(network: Network, task: Task) -> None:
    batches = [Batch((torch.arange(5) + 5.0 * k,), {}, None) for k in range(3)]
    first, rest = low_rank._cut(batches, 7)
    assert torch.cat([b.args[0] for b in first]).tolist() == list(range(7))
    assert torch.cat([b.args[0] for b in rest]).tolist() == list(range(7, 15))
    one = TensorDataset(torch.randn(1, 2, 8, 8), torch.zeros(1, dtype=torch.long))
    with pytest.raises(DataError, match="at least 2 training samples, got 1"):
        _applied(network, Task(DataLoader(one), DataLoader(one)), samples=8)
    assert "9" in _applied(network, task, ranks={"9": 1}, samples=5000).facts["factorised"]  # all there are


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"energy": 0.5, "rank": "evidence"}, "energy and rank are given; only one can decide"),
        ({"max_macs": 5, "ranks": {"2": 1}}, "max_macs and ranks are given; only one can decide"),
        ({"ranks": {"2": 1}, "layers": ("2",)}, "layers and ranks are given"),
        ({"ranks": {"2": 0}}, 'ranks: "2" must have a rank of at least 1, or two of them, got 0'),
        ({"ranks": {"2": (3, 0)}}, r"at least 1, or two of them, got \(3, 0\)"),
        ({"ranks": {"2": (1, 2, 3)}}, r"or two of them, got \(1, 2, 3\)"),
        ({"energy": 0.0}, "energy: it must be greater than 0"),
        ({"energy": 1.1}, "energy: it must be at most 1"),
        ({"latency": 1.5}, "latency: it must be at most 1"),
        ({"max_parameters": 0}, "max_parameters: must be a positive count"),
        ({"method": "qr"}, "method: input should be 'auto'"),
        ({"rank": "best"}, "rank: input should be 'evidence'"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"low-rank: .*{message}"):
        LowRank(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": {"7": 33}}, "low-rank: 7: rank must be 1 to 32, got 33"),
        ({"ranks": {"7": 32}}, "7: svd at rank 32 would have 13,344 parameters instead of 12,320"),
        ({"ranks": {"7": (3, 4)}}, "7: the number of ranks must be 1 to 1, got 2"),
        ({"ranks": {"2": (17, 1)}}, "2: the rank of the outputs must be 1 to 16, got 17"),
        ({"ranks": {"2": (1, 13)}}, "2: the rank of the inputs must be 1 to 12, got 13"),
        ({"ranks": {"8x": 3}}, 'ranks: no layer matches "8x"'),
        ({"layers": ("8x",)}, 'layers: no layer matches "8x"'),
        ({"layers": ("1",)}, "1: a ReLU: only linear layers and convolutions have factors"),
        ({"max_parameters": 100_000}, "the network has 14,799 parameters, no more than max_parameters 100,000 already"),
        ({"max_parameters": 300}, r"max_parameters is 300, and \d+ of 14,799 parameters stay"),
        ({"max_macs": 300}, r"max_macs is 300, and [\d,]+ of [\d,]+ multiply-accumulates stay"),
    ],
)
def test_wishes_that_the_network_cannot_meet(
    network: Network, task: Task, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        _applied(network, task, **settings)

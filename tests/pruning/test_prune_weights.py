"""The stage that prunes weights: amounts, rounds, the gradual way, other stages around it, interruptions, the file."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import penjing.training.fit as fit_module
from penjing.artifact import encode, save
from penjing.errors import PenjingError, SettingError
from penjing.graph import Network, trace
from penjing.models import glorot_normal_, lenet_300_100
from penjing.pruning import PruneWeights, apply_masks_, choose_masks, sparsity_of
from penjing.pruning.gradual import cubic_sparsity, masks_from_json, masks_to_json
from penjing.pruning.masks import masks_of
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.quantization import Cluster
from penjing.representation import Codebook, representations
from penjing.sensitivity import layer_weights, weighted_layers
from penjing.training import BASELINE, Journal, Part, Stage, Task, Train, Workbench
from penjing.training.progress import Silent
from penjing.training.seeding import derive_seed, seed_everything


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 2, 6, 6, generator=generator)
    data = TensorDataset(x, x.mean((2, 3))[:, 0].mul(9).round().clamp(-1, 1).long() + 1)
    return Task(DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=64))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten()]
    return trace(nn.Sequential(*layers, nn.Linear(32, 3)), (torch.randn(2, 2, 6, 6),)).eval()


def carry_out(network: Network, task: Task, *stages: Stage, folder: Path | None = None) -> Workbench:
    """As a run does, without measuring. Returns the last bench."""
    accelerator = Accelerator(cpu=True)
    kept: dict[int, Any] = {}
    teachers: dict[str, nn.Module] = {BASELINE: copy.deepcopy(network)}
    for position, stage in enumerate(stages):
        bench = Workbench(
            copy.deepcopy(network),
            task,
            key=f"{position}-{stage.label}",
            seed=0,
            journal=Journal(folder, accelerator),
            accelerator=accelerator,
            reporter=Silent(),
            teachers=teachers,
            standing={},
            kept=kept,
        )
        seed_everything(derive_seed(0, bench.key))
        stage.apply(bench)
        network = bench.network.eval()
    return bench


def zeros(network: Network) -> dict[str, float]:
    return {name: float((w == 0).double().mean()) for name, w in layer_weights(network).items()}


def test_the_cubic_schedule_has_its_published_values() -> None:
    """s_t = s_f + (s_i - s_f) (1 - t / n)^3."""
    values = [cubic_sparsity(t, 4, final=0.8) for t in (-1, 0, 1, 2, 3, 4, 9)]
    assert values == pytest.approx([0, 0, 0.8 * (1 - 27 / 64), 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8, 0.8])
    assert cubic_sparsity(2, 4, final=0.9, initial=0.5) == pytest.approx(0.85)
    with pytest.raises(SettingError, match="at least 1 step, got 0"):
        cubic_sparsity(0, 0, final=0.5)


def test_rounds_remove_the_same_fraction_of_the_rest(network: Network, task: Task) -> None:
    bench = carry_out(network, task, PruneWeights(sparsity=0.875, rounds=3, epochs=1))
    assert bench.facts["sparsity after each round"] == pytest.approx([0.5, 0.75, 0.875], abs=2e-3)
    assert sparsity_of(bench.network) == pytest.approx(0.875, abs=2e-3)
    assert bench.facts["density by layer"]["3"] == pytest.approx(1 - zeros(bench.network)["3.weight"], abs=1e-6)
    assert any("not the network faster" in text for text in bench.warnings)
    assert all(not torch.equal(w, layer_weights(network)[name]) for name, w in layer_weights(bench.network).items())


def test_at_once_is_the_largest_weights_of_all_layers(network: Network, task: Task) -> None:
    bench = carry_out(network, task, PruneWeights(sparsity=0.6, pace="one-shot", epochs=0))
    before = layer_weights(network)
    expected = choose_masks({name: w.abs() for name, w in before.items()}, 0.6).masks
    for name, value in layer_weights(bench.network).items():
        assert torch.equal(value, before[name] * expected[name])


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("every", [1, 5, 1000])
def test_the_gradual_way_ends_where_it_was_asked_to(every: int, regrow: bool, network: Network, task: Task) -> None:
    stage = PruneWeights(sparsity=0.7, pace="gradual", every=every, regrow=regrow, epochs=2, lr=0.02)
    bench = carry_out(network, task, stage)
    assert sparsity_of(bench.network) == pytest.approx(0.7, abs=2e-3)


def test_weights_come_back_only_where_they_may(network: Network, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(Part):
        def after_step(self, fit: Any) -> None:
            seen.append({name: mask.clone() for name, mask in masks_of(fit.network).items()})

    own = PruneWeights.parts
    monkeypatch.setattr(PruneWeights, "parts", lambda self, bench: [*own(self, bench), Watch()])
    for regrow in (False, True):
        seen.clear()
        stage = PruneWeights(sparsity=0.7, pace="gradual", every=1, regrow=regrow, epochs=3, lr=0.1)
        carry_out(network, task, stage)
        back = [bool((later[n] & ~earlier[n]).any()) for earlier, later in itertools.pairwise(seen) for n in later]
        assert any(back) == regrow
        density = [sum(int(mask.sum()) for mask in masks.values()) for masks in seen]
        assert density == sorted(density, reverse=True)


def test_single_layers_and_patterns(network: Network, task: Task) -> None:
    stage = PruneWeights(
        sparsity=0.5, scope="layer", layers=("!6",), sparsities={"type:Conv*": 0.25, "3": 0.75}, rounds=1, epochs=0
    )
    found = zeros(carry_out(network, task, stage).network)
    assert found == pytest.approx({"0.weight": 0.25, "3.weight": 0.75, "6.weight": 0.0}, abs=1e-2)
    with pytest.raises(SettingError, match='prune-weights: layers: no layer matches "conv"'):
        carry_out(network, task, PruneWeights(layers=("conv",)))


@pytest.mark.parametrize(
    ("structure", "scope"), [("2:4", "global"), ("4x1", "layer"), ("filter-shapes", "layer"), ("weights", "row")]
)
def test_structures(structure: str, scope: Any, network: Network, task: Task) -> None:
    stage = PruneWeights(sparsity=0.5, structure=structure, scope=scope, pace="one-shot", epochs=1)
    bench = carry_out(network, task, stage)
    matrix = (bench.network.get_submodule("6").weight != 0).detach()
    if structure == "2:4":
        assert (matrix.unflatten(1, (-1, 4)).sum(-1) == 2).all()
        assert any("0.weight: left as it is, its 2 inputs are no multiple of 4" in text for text in bench.warnings)
    elif structure == "filter-shapes":
        assert (matrix.all(0) | ~matrix.any(0)).all()
    elif structure == "weights":
        assert (matrix.sum(1) == 16).all()
    else:
        whole = (bench.network.get_submodule("3").weight != 0).flatten(1).unflatten(0, (2, 4))
        assert (whole.all(1) | ~whole.any(1)).all()


@pytest.mark.parametrize("score", WEIGHT_SCORES)
def test_every_score_works_in_a_recipe(score: str, network: Network, task: Task) -> None:
    needs_path = WEIGHT_SCORES[score].path
    stage = PruneWeights(sparsity=0.5, score=score, rounds=1 + needs_path, epochs=int(needs_path), batches=2)
    bench = carry_out(network, task, Train(epochs=1), stage)
    assert sparsity_of(bench.network) == pytest.approx(0.5, abs=5e-3)


@pytest.mark.parametrize(
    "stage",
    [
        PruneWeights(sparsity=0.6, pace="gradual", every=3, epochs=2, score="fisher", batches=2),
        PruneWeights(sparsity=0.6, pace="gradual", every=3, epochs=2, regrow=False, score="random"),
        PruneWeights(sparsity=0.6, rounds=2, epochs=2, score="synaptic_intelligence", optimizer="sgd", clip_norm=0.1),
        PruneWeights(sparsity=0.6, rounds=2, epochs=2, from_scan=0.1),
    ],
    ids=["gradual", "gradual-random", "path", "scan"],
)
def test_a_run_that_was_stopped_ends_at_the_same_file(
    stage: PruneWeights, network: Network, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StoppedError in every epoch of every training, after the state of the epoch before was saved."""
    monkeypatch.setattr(fit_module, "SAVE_EVERY_SECONDS", -1.0)
    whole = carry_out(network, task, stage)
    real, calls = fit_module._epoch_, 0

    class StoppedError(Exception):
        pass

    def stopping(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise StoppedError
        real(*args)

    monkeypatch.setattr(fit_module, "_epoch_", stopping)
    for _ in range(20):
        try:
            again = carry_out(network, task, stage, folder=tmp_path)
            break
        except StoppedError:
            continue
    assert calls >= 3  # stopped once at least
    assert encode(again.network) == encode(whole.network)
    read = carry_out(network, task, stage, folder=tmp_path)
    assert encode(read.network) == encode(whole.network)
    assert read.facts == again.facts == whole.facts
    assert read.warnings == whole.warnings


def test_from_the_scan_every_layer_has_its_own_amount(network: Network, task: Task) -> None:
    bench = carry_out(network, task, Train(epochs=5, lr=0.01), PruneWeights(from_scan=0.05, rounds=1, epochs=0))
    scan = bench.facts["sensitivity scan"]
    for name, share in zeros(bench.network).items():
        lost = [
            s for s, v in zip(scan["sparsities"], scan["values"][name], strict=True) if scan["baseline"] - v <= 0.05
        ]
        assert share == pytest.approx(max(lost, default=0.0), abs=0.02)


def test_masks_already_there_stay_and_are_counted(network: Network, task: Task) -> None:
    first = PruneWeights(sparsity=0.5, rounds=1, epochs=1, layers=("3",))
    for pace in ("one-shot", "gradual"):
        bench = carry_out(network, task, first, PruneWeights(sparsity=0.6, pace=pace, rounds=2, epochs=1))
        assert sparsity_of(bench.network) == pytest.approx(0.6, abs=2e-3)
        gone = masks_of(carry_out(network, task, first).network)["3.weight"] == 0
        assert not bench.network.get_submodule("3").weight[gone].any()
        only = carry_out(network, task, first, PruneWeights(sparsity=0.6, pace=pace, rounds=2, epochs=1, layers=("6",)))
        assert zeros(only.network) == pytest.approx({"0.weight": 0, "3.weight": 0.5, "6.weight": 0.6}, abs=1e-2)


def test_clustering_keeps_the_zeros(network: Network, task: Task) -> None:
    stages = [PruneWeights(sparsity=0.7, rounds=1, epochs=1), Cluster(bits=3, epochs=1)]
    before = carry_out(network, task, stages[0]).network
    after = carry_out(network, task, *stages).network
    for name, layer in weighted_layers(after).items():
        assert torch.equal(layer.weight == 0, layer_weights(before)[name] == 0)
        assert isinstance(representations(layer, "weight")[-1], Codebook)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "magnitud"}, 'did you mean "magnitude"'),
        ({"structure": "2:4"}, "removes 0.5 of every layer; write sparsity: 0.5"),
        ({"structure": "2:4", "sparsity": 0.5}, "pace: one-shot"),
        ({"structure": "4x1", "scope": "row"}, "run through several rows"),
        ({"structure": "blocks"}, "prune-weights: structure: it must be"),
        ({"pace": "gradual", "epochs": 0}, "gradual prunes while training; give epochs"),
        ({"pace": "gradual", "score": "synaptic_intelligence"}, "accumulated in a training before each choice"),
        ({"sparsities": {"*": 1.0}}, "at least 0 and less than 1"),
        ({"sparsity": 80}, "less than 1"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_written(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PruneWeights(**settings)


def test_a_score_without_its_evidence_says_so(network: Network, task: Task) -> None:
    with pytest.raises(PenjingError, match="Put a train stage first"):
        carry_out(network, task, PruneWeights(score="movement", rounds=1, epochs=0))


def test_weights_under_masks_learn_as_fast_as_others(network: Network, task: Task) -> None:
    """Training under masks from which nothing is missing is training, bit for bit."""
    unshuffled = Task(DataLoader(task.train.dataset, batch_size=8), task.valid)  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"epochs": 1, "optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-2}
    trained = carry_out(network, unshuffled, Train(**settings))
    pruned = carry_out(network, unshuffled, PruneWeights(pace="one-shot", sparsities={"*": 0.0}, **settings))
    for name, value in layer_weights(pruned.network).items():
        assert torch.equal(value, layer_weights(trained.network)[name])


def test_masks_as_text_are_the_masks() -> None:
    masks = {"a": torch.rand(3, 5, 7) < 0.1, "b": torch.rand(1, 1) < 2}
    again = masks_from_json(masks_to_json(masks), {name: mask.shape for name, mask in masks.items()})
    assert all(torch.equal(again[name], mask) for name, mask in masks.items())


@pytest.mark.parametrize("init", [lambda model: model, glorot_normal_], ids=["default", "glorot"])
def test_the_file_of_a_sparse_network_is_small(init: Any, tmp_path: Path) -> None:
    """95 % sparse by magnitude, random weights: at most 6.2 % of the dense network's own file, which is packed too."""
    torch.manual_seed(0)
    network = trace(init(lenet_300_100()), (torch.randn(2, 1, 28, 28),)).eval()
    save(network, tmp_path / "dense.pj")
    apply_masks_(network, choose_masks({n: w.abs() for n, w in layer_weights(network).items()}, 0.95).masks)
    save(network, tmp_path / "sparse.pj")
    dense, sparse = ((tmp_path / f"{name}.pj").stat().st_size for name in ("dense", "sparse"))
    assert sparse <= 0.062 * dense
    assert sparse <= 0.05 * 4 * sum(p.numel() for p in network.parameters() if p.requires_grad)

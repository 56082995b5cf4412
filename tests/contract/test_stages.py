"""What every stage promises; a new technique is checked by its line in a family's table."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from penjing.artifact import decode, encode
from penjing.errors import PenjingError, SettingError
from penjing.graph import Network, trace
from penjing.measurement import count_parameters
from penjing.recipe import STAGES, Recipe, read_stage
from penjing.recipe.recipe import write_stage
from penjing.training import BASELINE, Journal, Stage, Task, Workbench
from penjing.training.progress import Silent
from penjing.training.seeding import derive_seed, seed_everything

SMALL = {"epochs": 1, "rounds": 2, "saving": 0.05, "sparsity": 0.4, "bits": 3, "lr": 0.01, "noise": 0.01, "energy": 0.5}
SMALL |= {"rounded": True, "widths": (0.5,), "warm": 1, "curriculum": 1}
"""Settings for a quick test, for the stages that have them."""

NEEDED: dict[str, dict[str, Any]] = {
    "student": {"model": {"function": "penjing.models:plain_cnn", "widths": [5, 6], "classes": 3}},
    "hint": {"layers": {"3": "3"}},
    "correct-biases": {"classes": (1,)},
}
"""What cannot be left out, for the stages that have such settings."""

REPRESENTED = (
    *("supermask", "lottery-ticket", "prune-weights"),
    *("half-precision", "quantize", "cluster", "calibrated-coding", "binarize"),
)
"""Stages after which weights have a representation."""

MASKED = ("lottery-ticket", "prune-weights", "supermask")
CODED = {
    "half-precision": "half",
    "quantize": "grid",
    "cluster": "codebook",
    "calibrated-coding": "grid",
    "binarize": "signs",
}
"""What the weights are after these stages."""

ROUTED = ("skip-blocks", "drop-blocks", "route-channels")
"""Stages that need a network with a shortcut."""

SWAPS = ("separable-convs", "grouped-convs", "fire-modules", "ghost-modules")

REFUSED = {
    **{
        (first, second): "its weight has a representation; swap it before that"
        for first in REPRESENTED
        for second in SWAPS
    },
    **dict.fromkeys(
        (
            *(("separable-convs", second) for second in SWAPS),
            *(("grouped-convs", second) for second in SWAPS),
            *(("fire-modules", "separable-convs"), ("student", "grouped-convs")),
            *(("prune-channels", "grouped-convs"), ("prune-channels", "ghost-modules")),
        ),
        "none of the chosen layers can be replaced",
    ),
    **{(first, second): "the network has gates already" for first in ROUTED for second in ROUTED},
    **{(first, second): "has several answers" for first in ("early-exits", "slimmable") for second in ROUTED},
    **{(first, second): "has no residual block" for first in ("student", "prune-blocks") for second in ROUTED},
    ("drop-blocks", "early-exits"): "so nothing can be saved",  # in a network that is smaller than the policy
    **{
        (first, "route-channels"): "cannot be split into 4 sets"
        for first in ("prune-channels", "grouped-convs", "fire-modules")
    },
    ("slimmable", "slimmable"): "the network is slimmable already",
    **{("slimmable", second): "its weight is used in other places too" for second in (*SWAPS, "low-rank")},
    ("cluster", "cluster"): "has a codebook already",
    ("cluster", "quantize"): "has a codebook already",
    ("quantize", "cluster"): "has a grid already",
    ("quantize", "quantize"): "has a grid already",
    ("quantize", "group-lasso"): "no layer has groups .* its weight is written as a grid",
    ("quantize", "prune-weights"): r"is a grid already, .*Prune weights before that",
    **{("calibrated-coding", second): "has a grid already" for second in ("cluster", "quantize", "calibrated-coding")},
    ("cluster", "calibrated-coding"): "has a codebook already",
    ("quantize", "calibrated-coding"): "has a grid already",
    ("calibrated-coding", "group-lasso"): "no layer has groups .* its weight is written as a grid",
    ("calibrated-coding", "prune-weights"): r"is a grid already, .*Prune weights before that",
    ("calibrated-coding", "scratch"): "has a grid, so its values are not its own",
    ("half-precision", "prune-weights"): r"is a half already, .*Prune weights before that",
    ("half-precision", "group-lasso"): "no layer has groups .* its weight is written as a half",
    ("half-precision", "scratch"): "has a half, so its values are not its own",
    **{("half-precision", second): "has a half already" for second in ("cluster", "quantize", "calibrated-coding")},
    **{(first, "binarize"): "is under a mask, and a binary weight is never 0" for first in MASKED},
    **{(first, "binarize"): f"has a {kind} already" for first, kind in CODED.items()},
    **{("binarize", second): "has a signs already" for second in ("cluster", "quantize", "calibrated-coding")},
    ("binarize", "prune-weights"): r"is a signs already, .*Prune weights before that",
    ("binarize", "scratch"): "has a signs, so its values are not its own",
    ("quantize", "scratch"): "has a grid, so its values are not its own",
    ("cluster", "group-lasso"): "no layer has groups .* its weight is written as a codebook",
    ("cluster", "prune-weights"): r"is a codebook already, .*Prune weights before that",
    ("student", "hint"): 'the student has no layer "3"',
    **{(first, "lottery-ticket"): "the weights after step 0 were not kept" for first in ("student", "slimmable")},
    **{
        (first, "correct-biases"): "has a representation; correct biases before that"
        for first in (*CODED,)
        if first != "binarize"
    },
    ("cluster", "scratch"): "has a codebook, so its values are not its own; train from scratch before that",
    **{(first, "supermask"): "has a representation already; learn the mask first" for first in REPRESENTED},
    **{
        (first, "lottery-ticket"): "has a representation already; look for tickets before that" for first in REPRESENTED
    },
    **{
        (first, "lottery-ticket"): "before stages that change the network's shape"
        for first in (*SWAPS, "low-rank", "prune-channels", "early-exits")
    },
    **{
        (first, "low-rank"): "its weight has a representation; factorise before that"
        for first in REPRESENTED
        if first != "binarize"
    },
}
"""(first, second): orders that make no sense, and what the second one says."""


def small(label: str, **more: Any) -> Stage:
    settings = {key: value for key, value in SMALL.items() if key in STAGES[label].model_fields}
    return STAGES[label](**(settings | NEEDED.get(label, {}) | more))


@pytest.fixture(scope="module")
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 1, 8, 8, generator=generator)
    data = TensorDataset(x, x.mean((2, 3))[:, 0].mul(12).round().clamp(-1, 1).long() + 1)
    return Task(DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=48))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
    ]
    layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)]
    return trace(nn.Sequential(*layers), (torch.randn(2, 1, 8, 8),)).eval()


class Shortcut(nn.Module):
    """relu(x + F(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


@pytest.fixture(scope="module")
def with_shortcut() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1, bias=False)]
    layers += [nn.BatchNorm2d(8), nn.ReLU(), Shortcut(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)]
    return trace(nn.Sequential(*layers), (torch.randn(2, 1, 8, 8),)).eval()


def carry_out(network: Network, task: Task, stages: list[Stage], seed: int = 0, folder: Path | None = None) -> Network:
    """As a run does, without measuring; what was decided and trained is kept in the folder."""
    accelerator = Accelerator(cpu=True)
    teachers: dict[str, nn.Module] = {BASELINE: copy.deepcopy(network)}
    standing: dict[str, Any] = {}
    kept: dict[int, Any] = {0: {name: tensor.clone() for name, tensor in network.state_dict().items()}}
    for position, stage in enumerate(stages):
        bench = Workbench(
            copy.deepcopy(network),
            task,
            key=f"{position}-{stage.label}",
            seed=seed,
            journal=Journal(folder, accelerator),
            accelerator=accelerator,
            reporter=Silent(),
            teachers=teachers,
            standing=standing,
            kept=kept,
        )
        seed_everything(derive_seed(seed, bench.key))
        before = dict(standing)
        stage.apply(bench)
        for name, again in before.items():
            if standing.get(name) is again:
                again(bench)
        network = bench.network.eval()
    return network


@pytest.mark.parametrize("label", STAGES)
def test_the_callers_model_is_untouched_and_a_seed_decides_everything(
    label: str, network: Network, with_shortcut: Network, task: Task
) -> None:
    network = with_shortcut if label in ROUTED else network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = encode(carry_out(network, task, [small(label)]))
    torch.rand(3)
    assert encode(carry_out(network, task, [small(label)])) == first
    assert encode(network) != first
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    if "epochs" in STAGES[label].model_fields:
        assert encode(carry_out(network, task, [small(label)], seed=1)) != first


@pytest.mark.parametrize("label", STAGES)
def test_a_stage_is_the_same_in_python_in_yaml_and_by_name(label: str) -> None:
    stage = small(label, name="mine")
    text = yaml.safe_dump(write_stage(stage))
    assert read_stage(yaml.safe_load(text)) == stage
    assert read_stage(stage) is stage
    if label in NEEDED:
        with pytest.raises(SettingError, match=f"{label}: {next(iter(NEEDED[label]))}: it must be given"):
            read_stage(label)
        again: Any = {label: NEEDED[label]}
    else:
        assert read_stage(label) == STAGES[label]() == read_stage({label: None})
        again = label
    recipe = Recipe(data="digits", model="a:b", stages=[stage, again])
    assert Recipe(**yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize("label", STAGES)
def test_unknown_keys_and_changes_are_refused(label: str) -> None:
    for key in STAGES[label].model_fields:
        wrong = key + "x"
        with pytest.raises(SettingError, match=f'{label}: there is no setting "{wrong}"; did you mean "{key}"'):
            read_stage({label: {wrong: 1}})
    with pytest.raises(ValueError, match="frozen"):
        STAGES[label](**NEEDED.get(label, {})).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("label", STAGES)
def test_wrong_types_are_refused_where_they_are_made(label: str) -> None:
    for key, info in STAGES[label].model_fields.items():
        if info.annotation in (int, float, bool):
            with pytest.raises(SettingError, match=f"{label}: {key}: input should be a valid"):
                read_stage({label: NEEDED.get(label, {}) | {key: "many"}})


@pytest.mark.parametrize("second", STAGES)
@pytest.mark.parametrize("first", STAGES)
def test_every_stage_after_every_other_and_the_result_survives_a_file(
    first: str, second: str, network: Network, with_shortcut: Network, task: Task
) -> None:
    network = with_shortcut if {first, second} & set(ROUTED) else network
    if (first, second) in REFUSED:
        with pytest.raises(PenjingError, match=REFUSED[first, second]):
            carry_out(network, task, [small(first), small(second)])
        return
    result = carry_out(network, task, [small(first), small(second)])
    content = encode(result)
    loaded = decode(content)
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        found, expected = loaded.all_answers(x), result.all_answers(x)
        assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(loaded.route(x)[1], result.route(x)[1])
    assert count_parameters(loaded) == count_parameters(result)
    assert encode(decode(content, for_training=True)) == content  # nothing of how weights are written is lost


def test_a_mask_stays_a_mask_and_a_codebook_a_codebook_under_later_stages(network: Network, task: Task) -> None:
    """After clustering, training moves the values and pruning cuts the codes: still few different ones."""
    result = carry_out(network, task, [small("cluster"), small("prune-channels"), small("distill")])
    for path in ("0", "3", "7", "10"):
        assert len(result.get_submodule(path).weight.unique()) <= 8
    assert sum(p.numel() for _, p in result.named_parameters() if p.requires_grad) < 8 * 4 + 32 + 1


def test_pruned_channels_shrink_the_file_and_the_layers(network: Network, task: Task) -> None:
    result = carry_out(network, task, [small("prune-channels", sparsity=0.5, epochs=0)])
    widths = [result.get_submodule(path).weight.shape[0] for path in ("0", "3", "7")]
    assert sum(widths) == 10 and widths != [6, 8, 6]  # half of 20 channels, really gone
    assert len(encode(result)) < 0.6 * len(encode(network))


def test_magnitude_pruning_removes_the_smallest_rows(network: Network, task: Task) -> None:
    stage = small("prune-channels", sparsity=0.5, rounds=1, epochs=0, score="magnitude", layers=("3",))
    result = carry_out(network, task, [stage])
    norms = network.get_submodule("3").weight.detach().flatten(1).norm(dim=1)
    kept = norms.argsort(descending=True)[:4].sort().values
    assert torch.equal(result.get_submodule("3").weight.detach(), network.get_submodule("3").weight.detach()[kept])
    assert result.get_submodule("0").weight.shape[0] == 6


def test_pruning_with_limits_that_leave_too_few_says_so(network: Network, task: Task) -> None:
    bench_warnings: list[str] = []

    class Loud(Silent):
        def say(self, text: str) -> None:
            bench_warnings.append(text)

    accelerator = Accelerator(cpu=True)
    bench = Workbench(
        copy.deepcopy(network),
        task,
        key="1",
        seed=0,
        journal=Journal(None, accelerator),
        accelerator=accelerator,
        reporter=Loud(),
        teachers={},
        standing={},
    )
    small("prune-channels", sparsity=0.9, rounds=1, epochs=0, keep_at_least=5).apply(bench)
    assert any("only" in text and "every layer keeps 5" in text for text in bench_warnings) and bench.warnings
    assert min(layer.weight.shape[0] for layer in map(bench.network.get_submodule, ("0", "3", "7"))) == 5


@pytest.mark.parametrize("label", STAGES)
def test_what_comes_after_a_finished_stage_is_the_same_when_the_stage_is_only_read(
    label: str, network: Network, with_shortcut: Network, task: Task, tmp_path: Path
) -> None:
    """A run that was stopped in the second stage."""
    network = with_shortcut if label in ROUTED else network
    clipped = small("train", optimizer="sgd", clip_norm=0.1, lr=0.5)  # whatever takes part in the gradient matters
    stages = [small(label), clipped]
    whole = encode(carry_out(network, task, stages, folder=tmp_path))
    (tmp_path / "trainings" / "1-train.safetensors").unlink()
    assert encode(carry_out(network, task, stages, folder=tmp_path)) == whole

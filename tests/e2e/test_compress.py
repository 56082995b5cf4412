"""`import penjing as pj` on the user's own module and loaders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import penjing as pj
from penjing.errors import DataError, RunError, SettingError, TrainingError
from penjing.recipe.table import summary_table

pytestmark = pytest.mark.usefixtures("still_clock")


class Mine(nn.Module):
    """A user's own class, with a shortcut and a function for an activation."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner(x))
        return self.head(x.mean((2, 3)))


def pictures(n: int, seed: int) -> TensorDataset:
    """Three classes: noise that is stronger in the first channel, in the second, or in both."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    shift = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[y]
    return TensorDataset(torch.randn(n, 2, 8, 8, generator=generator) * 0.7 + shift[:, :, None, None], y)


def loaders() -> dict[str, DataLoader]:
    return {
        "train": DataLoader(pictures(96, 0), batch_size=16, shuffle=True),
        "valid": DataLoader(pictures(60, 1), batch_size=32),
        "test": DataLoader(pictures(60, 2), batch_size=32),
    }


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """Trained the way a user would."""
    torch.manual_seed(0)
    model = Mine()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(12):
        for x, y in loaders()["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def test_the_readmes_snippet(teacher: nn.Module, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    task = pj.Task(**loaders())
    run = pj.compress(
        teacher,
        task,
        [
            pj.SeparableConvs(),
            pj.Distill(temperature=4, epochs=3, lr=0.01),
            pj.PruneChannels(sparsity=0.5, score="taylor", rounds=2, lr=0.01),
            pj.Cluster(bits=4, epochs=2, lr=0.01),
        ],
        budget=pj.Budget(file="60 kB", drop="30 pp", parameters="0.01k"),
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    path = run.save(tmp_path / "small.pj")
    assert path.stat().st_size == run.final.file_bytes == run.artifact.stat().st_size
    small = pj.load(path)
    x = next(iter(task.test))[0]
    with torch.no_grad():
        assert torch.equal(small(x), run.network(x))
    assert run.baseline.accuracy.correct >= 55 and run.final.accuracy.correct >= 45
    assert run.final.data == "test" and run.final.accuracy.total == 60
    assert [stage.name for stage in run.stages] == ["separable-convs", "distill", "prune-channels", "cluster"]
    assert run.final.parameters < 0.5 * run.baseline.parameters and run.final.macs < 0.5 * run.baseline.macs
    assert run.final.file_bytes < 0.3 * run.baseline.file_bytes
    assert [(line.name, line.met) for line in run.budget] == [("file", True), ("parameters", False), ("drop", True)]
    for word in ("distill", "prune-channels", "final", f"{run.final.file_bytes:,}", "fp16 + zstd", "plain int8"):
        assert word in run.report
    assert json.loads(json.dumps(run.to_json()))["schema_version"] == 1
    export = run.export(tmp_path / "small.onnx")
    assert export.largest_difference < 1e-4 and export.path.stat().st_size == export.size_bytes


def test_the_report_says_what_was_computed_of_each_block(teacher: nn.Module, tmp_path: Path) -> None:
    task = pj.Task(**loaders())
    pj.compress(teacher, task, [pj.SkipBlocks(warm=0, epochs=0)], out=tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["blocks"]["names"] == ["inner"] and report["blocks"]["share"] == [1.0]
    assert [row["shares"] for row in report["blocks"]["by_class"]] == [[1.0]] * 3


def test_without_a_test_set_the_report_says_so(teacher: nn.Module) -> None:
    sets = loaders()
    run = pj.compress(teacher, pj.Task(sets["train"], sets["valid"]), [pj.Cluster(bits=4, epochs=0)])
    assert run.final.data == "valid"
    assert any("no test set" in warning for warning in run.warnings)
    assert run.to_json()["task"]["n_test"] is None


def square(answers: Tensor, labels: Tensor) -> Tensor:
    return (answers.softmax(-1) - nn.functional.one_hot(labels, 3)).square().sum(-1)


@pytest.mark.parametrize(
    "metric",
    [
        pj.Metric("Brier", square, higher_is_better=False),
        pj.Metric("root of Brier", lambda a, y: square(a, y).mean().sqrt(), higher_is_better=False),
    ],
    ids=["per sample", "one number"],
)
def test_any_loss_and_metric(teacher: nn.Module, metric: pj.Metric) -> None:
    task = pj.Task(**loaders(), loss=lambda a, y: square(a, y).mean(), metric=metric)
    run = pj.compress(
        teacher, task, [pj.Train(epochs=1, lr=1e-4), pj.Cluster(bits=1, epochs=0)], budget=pj.Budget(drop=0.001)
    )
    final = run.final.metric
    assert run.final.accuracy is None and final.name == metric.name and not final.higher_is_better
    assert final.low < final.value < final.high
    assert run.final.drop.value == pytest.approx(
        final.value - run.baseline.metric.value, abs=1e-6
    )  # more error is a drop
    assert run.final.drop.value > 0 and not run.budget[0].met
    assert metric.name in run.report
    with pytest.raises(SettingError, match="confidence needs classification"):
        pj.compress(teacher, task, [pj.EarlyExits()])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(left) + self.b(right)))


@pytest.mark.parametrize("names", [("left", "right"), ("right", "left")])
def test_dicts_of_inputs_in_any_order(names: tuple[str, str], tmp_path: Path) -> None:
    sizes = {"left": 4, "right": 3}
    batch = {name: torch.randn(12, sizes[name]) for name in names} | {"labels": torch.arange(12) % 3}
    torch.manual_seed(0)
    run = pj.compress(
        TwoInputs(), pj.Task([batch], [batch]), [pj.Train(epochs=1), pj.Cluster(epochs=1)], out=tmp_path / "r"
    )
    inputs = {name: batch[name] for name in names}
    with torch.no_grad():
        expected = run.network(**inputs)
        torch.testing.assert_close(run.network(batch["left"], batch["right"]), expected)
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "r" / "latency-samples.safetensors")
    assert [stored[str(i)].shape[1] for i in range(2)] == [shape[0] for shape in run.network.input_shapes] == [4, 3]


def test_runs_that_cannot_begin(teacher: nn.Module, tmp_path: Path) -> None:
    task = pj.Task(**loaders())
    with pytest.raises(SettingError, match="at least one stage"):
        pj.compress(teacher, task, [])
    with pytest.raises(SettingError, match='no stage "clustr"; did you mean "cluster"'):
        pj.compress(teacher, task, ["clustr"])
    with pytest.raises(SettingError, match="name must consist of"):
        pj.compress(teacher, task, ["cluster"], name="a/b")
    with pytest.raises(SettingError, match='no teacher "nobody"'):
        pj.compress(teacher, task, [pj.Distill(teacher="nobody")])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a run of penjing"):
        pj.compress(teacher, task, ["cluster"], out=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ".run.json.partial-1").write_text("{")  # killed in its very first write
    assert pj.compress(teacher, task, [pj.Cluster(epochs=0)], out=tmp_path / "half").artifact.exists()


@pytest.mark.parametrize("labels", [None, torch.tensor([[0], [1], [2]]), torch.tensor([0, 1, 3])])
def test_labels_that_do_not_fit_stop_a_run_before_it_trains(teacher: nn.Module, labels: Tensor | None) -> None:
    sets = loaders()
    x = torch.randn(3, 2, 8, 8)
    valid = [(x, labels)] if labels is None or labels.dim() > 1 else [(x, labels.flip(0))]
    with pytest.raises(DataError, match="labels"):
        pj.compress(teacher, pj.Task([1 / 0 for _ in ()] or sets["train"], valid), [pj.Train(epochs=99999)])


def test_a_loss_that_is_not_finite_stops_with_stage_and_epoch_and_the_rest_is_safe(
    teacher: nn.Module, tmp_path: Path
) -> None:
    stages = [pj.Cluster(bits=4, epochs=0), pj.Train(epochs=3)]
    steps = 0

    def loss(answers: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return nn.functional.cross_entropy(answers, labels) * (float("nan") if steps > 7 else 1.0)

    with pytest.raises(TrainingError, match=r"02-train: the loss became nan in epoch 2, step 8"):
        pj.compress(teacher, pj.Task(**loaders(), loss=loss), stages, out=tmp_path / "r")
    assert (tmp_path / "r" / "stages" / "01-cluster.pj").exists()
    steps = -(10**6)
    run = pj.compress(teacher, pj.Task(**loaders(), loss=loss), stages, out=tmp_path / "r", resume=True)
    steps = -(10**6)
    whole = pj.compress(teacher, pj.Task(**loaders(), loss=loss), stages)
    assert run.artifact.read_bytes() == whole.artifact.read_bytes()


def test_the_test_set_is_read_at_the_end_only(teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sets, read = loaders(), []

    class Watched:
        def __iter__(self):  # type: ignore[no-untyped-def]
            read.append(len(stages_done))
            return iter(sets["test"])

    stages_done: list[str] = []
    monkeypatch.setattr(
        pj.Cluster, "apply", lambda self, bench, apply=pj.Cluster.apply: (apply(self, bench), stages_done.append(""))
    )
    pj.compress(teacher, pj.Task(sets["train"], sets["valid"], Watched()), [pj.Train(epochs=1), pj.Cluster(epochs=0)])
    assert read and set(read) == {1}


def test_the_table_holds_what_the_report_does(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    table = summary_table(report)
    final = report["final"]
    assert f"{final['accuracy']['correct']}/{final['accuracy']['total']}" in table
    assert final["file_bytes"] == report["artifact"]["bytes"] == (finished / "tiny.pj").stat().st_size
    assert np.isfinite([stage["metric"]["value"] for stage in report["stages"]]).all()

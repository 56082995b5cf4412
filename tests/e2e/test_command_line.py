"""The command line as a user would type it."""

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from penjing.artifact import load
from penjing.data import digits
from penjing.files import write_atomically

Say = Callable[..., Result]


def one_line(result: Result) -> str:
    """Exit code 1, and after whatever went before one line that begins with error; no traceback."""
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert "Traceback" not in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("error ")]
    assert result.output.rstrip().endswith(line)
    return line


# --- a finished run ---------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir() if not path.name.startswith("latency")) == [
        "journal.jsonl", "report.html", "report.json", "run.json", "stages", "tiny.pj", "trainings",
    ]  # fmt: skip
    names = [path.name for path in sorted((finished / "stages").iterdir())]
    assert names[0] == "00-baseline.pj" and names[-1] == "06-distill.pj" and len(names) == 7
    assert not [path for path in finished.rglob("*") if "partial" in path.name or "unfinished" in path.name]


def test_the_artifact_answers_as_the_report_says(finished: Path) -> None:
    network = load(finished / "tiny.pj")
    right = total = 0
    with torch.no_grad():
        for x, y in digits().test:
            right += int((network(x).argmax(-1) == y).sum())
            total += len(y)
    report = json.loads((finished / "report.json").read_text())
    assert (right, total) == (report["final"]["accuracy"]["correct"], report["final"]["accuracy"]["total"])
    assert report["final"]["accuracy"]["total"] == 450 and right > 100


def test_the_exits_save_on_the_validation_set_what_was_asked(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    last = report["stages"][-1]
    assert 1 - last["macs"] / last["macs_full"] >= 0.02
    assert [point["name"] for point in report["final"]["operating_points"]] == ["exit 0", "final", "thresholds"]


def test_a_claim_is_run_judged_listed_and_put_on_a_page(penjing_says: Say, tmp_path: Path) -> None:
    out, page = tmp_path / "results", tmp_path / "claims.md"
    result = penjing_says("reproduce", "neuron-vs-weight", "--profile", "quick", "--seeds", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert "indicative" in result.stdout and "Wen et al. 2016" in result.stdout
    found = json.loads((out / "quick" / "neuron-vs-weight.json").read_text())
    assert found["seeds"] == [0] and {check["verdict"] for check in found["checks"]} == {"undecided"}
    assert (out / "quick" / "neuron-vs-weight.png").stat().st_size > 10_000
    listed = json.loads(penjing_says("reproduce", "--list", "--json", "--out", out).stdout)
    assert listed["neuron-vs-weight"] is None  # a quick run is no result
    assert penjing_says("reproduce", "--page", page, "--out", out).exit_code == 0
    assert page.read_text().count("not run") == len(listed)
    assert "Give the folder" not in one_line(penjing_says("reproduce", "lottery-ticket", "--out", out))
    assert "full or quick" in one_line(penjing_says("reproduce", "lottery-ticket", "--profile", "fast"))
    assert "no, bf16 or fp16" in one_line(penjing_says("reproduce", "lottery-ticket", "--precision", "fp8"))


def test_scan(finished: Path, penjing_says: Say, tmp_path: Path) -> None:
    baseline = finished / "stages" / "00-baseline.pj"
    plot = tmp_path / "scan.png"
    found = json.loads(penjing_says("scan", baseline, "--drop", 0.02, "--plot", plot, "--json").stdout)
    assert (
        set(found["values"]) == set(found["amounts"]) == {"block0.conv.weight", "block1.conv.weight", "linear.weight"}
    )
    for name, row in found["values"].items():
        fits = [s for s, value in zip(found["sparsities"], row, strict=True) if found["baseline"] - value <= 0.02]
        assert found["amounts"][name] == max(fits, default=0)
    assert plot.read_bytes().startswith(b"\x89PNG")
    table = penjing_says("scan", baseline, "--layer", "linear").stdout
    assert "linear.weight" in table and "block0" not in table and "from_scan" in table
    assert 'no score "magnitud"; did you mean "magnitude"' in one_line(
        penjing_says("scan", baseline, "--score", "magnitud")
    )


def test_inspect(finished: Path, penjing_says: Say) -> None:
    size = (finished / "tiny.pj").stat().st_size
    found = json.loads(penjing_says("inspect", finished / "tiny.pj", "--json").stdout)
    assert found["file_bytes"] == sum(row["size_bytes"] for row in found["rows"]) == size
    assert found["input_shapes"] == [[1, 8, 8]] and len(found["exit_thresholds"]) == 1
    text = penjing_says("inspect", finished / "tiny.pj").stdout
    assert f"{size:,} bytes" in text and "codebook" in text and "linear.weight" in text


def test_report(finished: Path, penjing_says: Say) -> None:
    (finished / "report.html").unlink()
    found = json.loads(penjing_says("report", finished, "--json").stdout)
    assert found == json.loads((finished / "report.json").read_text())
    assert found["artifact"]["bytes"] == (finished / "tiny.pj").stat().st_size
    assert (finished / "report.html").read_text().lower().startswith("<!doctype html")
    assert "report.html" in penjing_says("report", finished).stdout


def test_export_and_bench(finished: Path, penjing_says: Say, tmp_path: Path) -> None:
    import onnxruntime

    source, out = finished / "tiny.pj", tmp_path / "tiny.onnx"
    found = json.loads(penjing_says("export", source, out, "--json").stdout)
    assert found["size_bytes"] == out.stat().st_size and found["artifact_bytes"] == source.stat().st_size
    assert found["outputs"] == ["exit_0", "final"]
    x = torch.randn(3, 1, 8, 8)
    answers = onnxruntime.InferenceSession(out).run(None, {"input": x.numpy()})
    with torch.no_grad():
        for theirs, ours in zip(answers, load(source).all_answers(x), strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-4, atol=1e-4)
    assert "exists" in one_line(penjing_says("export", source, out))
    times = json.loads(penjing_says("bench", source, out, "--rounds", 2, "--seconds", 0.02, "--json").stdout)
    assert [row["file_bytes"] for row in times] == [source.stat().st_size] * 2 + [out.stat().st_size]
    assert times[0]["speed"] == 1 and times[1]["speed"] > 0
    assert [row["backend"] for row in times] == ["dense", "auto", "onnxruntime"]
    assert [row["runtime"].split()[0] for row in times] == ["torch", "torch", "onnxruntime"]
    answers = json.loads(
        penjing_says(
            "bench", source, "--answers", "--backend", "dense", "--rounds", 2, "--seconds", 0.02, "--json"
        ).stdout
    )
    assert [row["answer"] for row in answers] == ["", "exit 0", "final"]
    alone = penjing_says("bench", source, "--backend", "auto", "--rounds", 2, "--seconds", 0.02, "--json").stdout
    assert [row["backend"] for row in json.loads(alone)] == ["auto"]
    assert "must be dense, auto or both" in one_line(penjing_says("bench", source, "--backend", "fast"))
    assert "must be onnxruntime, openvino or both" in one_line(penjing_says("bench", out, "--runtime", "fast"))
    assert "must end in .onnx" in one_line(penjing_says("export", source, tmp_path / "tiny.tflite"))
    assert "--batch and --length are for .pte" in one_line(
        penjing_says("export", source, tmp_path / "b.onnx", "--batch", 2)
    )


def test_inspect_says_how_layers_run(finished: Path, penjing_says: Say) -> None:
    rows = json.loads(penjing_says("inspect", finished / "tiny.pj", "--ways", "--json").stdout)
    layers = load(finished / "tiny.pj").layers()
    assert [row["path"] for row in rows] == [path for path, layer in layers.items() if hasattr(layer, "weight")]
    assert all(row["why"] and row["dense_bytes"] > 0 for row in rows)
    assert "measured now on this machine" in penjing_says("inspect", finished / "tiny.pj", "--ways").stdout


def test_stages_and_help(penjing_says: Say) -> None:
    table = penjing_says("stages").stdout
    assert all(label in table for label in ("train", "cluster", "early-exits"))
    assert "temperature" in penjing_says("stages", "distill").stdout
    assert "resume" in penjing_says("run", "--help").stdout
    assert re.fullmatch(r"penjing \d+\.\d+\.\d+\n", penjing_says("--version").stdout)


def test_a_dry_run_says_everything_and_writes_nothing(
    recipe: Path, penjing_says: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = penjing_says("run", recipe, "--dry-run")
    assert result.exit_code == 0
    for word in (
        "separable-convs",
        "prune-channels",
        "teacher: baseline",
        "runs/tiny/tiny.pj",
        "13 epochs",
        "file 4000",
    ):
        assert word in result.output, word
    assert list(tmp_path.iterdir()) == []


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_run_is_never_overwritten_unasked(finished: Path, recipe: Path, penjing_says: Say, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    said = one_line(penjing_says("run", recipe, "--out", finished, "--threads", 1))
    assert "holds a run already" in said and "--resume" in said
    said = one_line(penjing_says("run", recipe, "--out", finished, "--threads", 1, "--resume", "--seed", 1))
    assert "this is another run" in said and "seed was 0, is 1" in said
    changed = ("--set", "data.batch_size=64")
    said = one_line(penjing_says("run", recipe, "--out", finished, "--threads", 1, "--resume", *changed))
    assert "data was" in said and "another --out" in said
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    (tmp_path / "mine.txt").write_text("mine")
    assert "not a run of penjing" in one_line(penjing_says("run", recipe, "--out", tmp_path))
    assert "not a run of penjing" in one_line(penjing_says("run", recipe, "--out", tmp_path / "mine.txt"))


@pytest.mark.usefixtures("still_clock")
def test_resuming_a_finished_run_changes_nothing(finished: Path, recipe: Path, penjing_says: Say) -> None:
    before = (finished / "tiny.pj").read_bytes(), (finished / "journal.jsonl").read_bytes()
    result = penjing_says("run", recipe, "--out", finished, "--threads", 1, "--resume", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["artifact"]["bytes"] == len(before[0])
    assert before == ((finished / "tiny.pj").read_bytes(), (finished / "journal.jsonl").read_bytes())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "stages.0=trian"], 'no stage "trian"; did you mean "train"'),
        (["--set", "stages.0.epoch=1"], 'train: there is no setting "epoch"; did you mean "epochs"'),
        (["--set", "stages.0.epochs=many"], "train: epochs: input should be a valid integer"),
        (["--set", "stages.2.sparsity=1.2"], "prune-channels: sparsity: it must be less than 1.0, got 1.2"),
        (["--set", "stages.4.bits=0"], "cluster: bits: it must be at least 1, got 0"),
        (["--set", "stages.5.teacher=nobody"], 'no teacher "nobody"'),
        (["--set", "model.classes=7"], r"labels must be in [0, 7), the network's number of classes"),
        (["--set", "model.channels=3"], "3 channels"),
        (["--set", "model.function=penjing.models:plain_cn"], 'did you mean "plain_cnn"'),
        (["--set", "data={name: mnist}"], "mnist needs the folder"),
        (["--set", "data={name: mnist}", "--data", "nowhere"], "Download MNIST"),
        (["--device", "cuda:99"], 'there is no "cuda:99" on this machine'),
        (["--precision", "fp8"], "run: --precision must be no, bf16 or fp16"),
        (["--model", "a:b"], "give a recipe, or --model"),
    ],
)
def test_bad_input_is_one_clear_line(
    recipe: Path, penjing_says: Say, tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in one_line(penjing_says("run", recipe, "--out", tmp_path / "r", *words))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "give a recipe"),
        (["run", "nowhere.yaml"], "nowhere.yaml: the recipe cannot be read"),
        (["inspect", "nowhere.pj"], "nowhere.pj: cannot be read"),
        (["bench", "nowhere.pj"], "there is no such file"),
        (["report", "."], "no report of a run here"),
        (["export", "nowhere.pj", "a.onnx"], "nowhere.pj: cannot be read"),
        (["stages", "clustr"], 'did you mean "cluster"'),
    ],
)
def test_files_that_are_not_there(
    penjing_says: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in one_line(penjing_says(*words))
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(finished: Path, recipe: Path, penjing_says: Say, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "could not be written" in one_line(penjing_says("run", recipe, "--out", tmp_path / "file" / "below"))
    assert "could not be written" in one_line(
        penjing_says("export", finished / "tiny.pj", tmp_path / "file" / "a.onnx")
    )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("still_clock")
def test_a_read_only_folder(recipe: Path, penjing_says: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid() == 0:  # rights do not hold for root
        opened = Path.open

        def refuse(path: Path, mode: str = "r", *more: object, **named: object) -> object:
            if mode[0] != "r" and folder in path.parents:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, mode, *more, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(Path, "open", refuse)
        said = one_line(penjing_says("run", recipe, "--out", folder))
    else:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        said = one_line(penjing_says("run", recipe, "--out", folder))
        folder.chmod(stat.S_IRWXU)
    assert "Permission denied" in said
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("still_clock")
def test_a_disk_that_fills_up_on_the_way_loses_nothing(
    finished: Path, recipe: Path, penjing_says: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, sync = [5], os.fsync

    def full(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = one_line(penjing_says("run", recipe, "--out", tmp_path / "r", "--threads", 1))
    assert "No space left on device" in said and "--resume" in said
    assert penjing_says("run", recipe, "--out", tmp_path / "r", "--threads", 1, "--resume").exit_code == 0
    assert (tmp_path / "r" / "tiny.pj").read_bytes() == (finished / "tiny.pj").read_bytes()


def test_an_unexpected_refusal_of_the_system_is_one_line_too(penjing_says: Say, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    assert "report.json" in one_line(penjing_says("report", tmp_path))
    write_atomically(tmp_path / "a.onnx", b"no network")
    assert "ONNX Runtime cannot load it" in one_line(penjing_says("bench", tmp_path / "a.onnx"))

"""A run: a recipe applied to a model and a task, in a folder that holds everything that was decided, trained and measured.

run.json            what this run is; --resume refuses to go on with something else
journal.jsonl       decisions, see `training.journal`
trainings/          finished trainings
stages/             an artifact for the baseline and after every stage
NAME.pj             the result
report.json         every record, see `measurement.record`
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from penjing.artifact import Speed, encode, load, open_artifact
from penjing.errors import RunError, SettingError, nearest
from penjing.export import Export, export
from penjing.files import write_atomically
from penjing.graph import Network, trace, with_one_answer
from penjing.measurement import SCHEMA_VERSION, Record, answer
from penjing.recipe import findings
from penjing.recipe.budget import Budget
from penjing.recipe.gauge import Gauge, baseline_rows
from penjing.recipe.machine import machine, versions
from penjing.recipe.recipe import NAME_PATTERN, Recipe, check_teachers, read_stage, write_stage
from penjing.recipe.table import summary_table
from penjing.representation import named_weights, representations
from penjing.shapes import Json
from penjing.training import BASELINE, Journal, Stage, Task, Train, Workbench, new_accelerator
from penjing.training.checkpoint import load_state
from penjing.training.precision import say_if_slower
from penjing.training.progress import Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything
from penjing.training.stage import is_file
from penjing.version import __version__


class Run:
    """A finished run.

    Attributes:
        folder: where everything lies; a temporary one lasts as long as this object.
        artifact: path of the resulting file.
        baseline, stages, final: records; the final one is measured on the test set where there is one.
        budget: the limits checked on the final record.
    """

    def __init__(self, folder: Path, report: Mapping[str, Any]) -> None:
        self.folder = folder
        self._report = dict(report)
        self.artifact = folder / report["artifact"]["path"]
        self.baseline = Record.from_json(report["baseline"])
        self.stages = [Record.from_json(stage) for stage in report["stages"]]
        self.final = Record.from_json(report["final"])
        self.budget = self.final.budget

    @property
    def network(self) -> Network:
        """The resulting network, loaded from its file."""
        return load(self.artifact)

    @property
    def report(self) -> str:
        """Every stage as a table to print."""
        return summary_table(self._report)

    @property
    def warnings(self) -> list[str]:
        """What a user should know."""
        return list(self._report["warnings"])

    def save(self, path: str | Path) -> Path:
        """Write the artifact to `path`; what is there is replaced. Raises: RunError: it cannot be written."""
        write_atomically(Path(path), self.artifact.read_bytes())
        return Path(path)

    def export(self, path: str | Path, *, exit_at: int | None = None) -> Export:
        """Write the result as small.onnx or small.pte, and compare; see `export.export`."""
        return export(self.network, path, exit_at=exit_at)

    def kept_weights(self, training: str, step: int = 0) -> dict[str, Tensor]:
        """The weights that a training kept after `step` steps, by default the initial ones; see `keep_steps` of stages.

        Args:
            training: "01-train", or "04-prune-channels-round-2": a file's name in the folder trainings.
        Raises: SettingError: no such training, or it did not keep this step, with what there is.
        """
        known = sorted(path.stem for path in (self.folder / "trainings").glob("*.safetensors"))
        if training not in known:
            raise SettingError(f'run: there is no training "{training}"; {nearest(training, known)}.')
        kept: dict[int, dict[str, Tensor]] = load_state(self.folder / "trainings" / f"{training}.safetensors")[
            "weights"
        ]
        if step not in kept:
            raise SettingError(
                f"run: {training} kept the weights of steps {sorted(kept)}, not of {step}; see keep_steps."
            )
        return kept[step]

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return dict(self._report)


def compress(
    model: nn.Module,
    task: Task,
    stages: Sequence[Stage | str | Mapping[str, Any]],
    *,
    budget: Budget | None = None,
    out: str | Path | None = None,
    name: str = "small",
    seed: int = 0,
    resume: bool = False,
    accelerator: Accelerator | None = None,
    reporter: Reporter | None = None,
    recipe: Recipe | None = None,
    speed: Speed = "small",
) -> Run:
    """Make a model small.

    Args:
        model: any module that `graph.trace` can read; it is not modified.
        task: data, loss and metric.
        stages: in order; stages, or their spelling in a recipe. Leading `Train` stages make the baseline, else the model
            as it is given is the baseline.
        budget: limits, checked after every stage and at the end.
        out: folder for everything; None for a temporary one.
        name: of the artifact, NAME.pj.
        seed: all randomness comes from it.
        resume: go on with a run in `out` that was stopped; the result is what it would have been, bit for bit.
        accelerator, reporter: device, processes and precision; where progress goes.
        recipe: what `penjing run` was given, for the report.
        speed: how files are written, see `artifact.save`.
    Raises: RunError: `out` exists and resume is False, or holds another run. SettingError, DataError, TraceError,
        TrainingError: see there.
    """
    read = [read_stage(stage, position) for position, stage in enumerate(stages)]
    if not read:
        raise SettingError("compress: there must be at least one stage.")
    if not re.fullmatch(NAME_PATTERN, name):
        raise SettingError(f'compress: name must consist of letters, digits, "_", "-" and ".", got "{name}".')
    check_teachers(read)
    for path in _teachers_files(read):  # one that is not there should stop a run before hours of training
        open_artifact(path).close()
    accelerator, reporter = accelerator or new_accelerator(), reporter or Silent()
    if accelerator.is_main_process:
        say_if_slower(str(accelerator.mixed_precision), accelerator.device, reporter)
    if out is not None:
        run = _Running(task, read, budget, Path(out), name, seed, accelerator, reporter, recipe, speed)
        return Run(Path(out), run.go(model, resume=resume))
    folder = _temporary_folder(accelerator)
    try:
        run = _Running(task, read, budget, folder, name, seed, accelerator, reporter, recipe, speed)
        done = Run(folder, run.go(model, resume=True))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(done, shutil.rmtree, folder, ignore_errors=True)
    return done


def _teachers_files(stages: Sequence[Stage]) -> list[str]:
    """The teachers that are files."""
    return [name for stage in stages for name in getattr(stage, "teachers", ()) if is_file(name)]


def _temporary_folder(accelerator: Accelerator) -> Path:
    name = [tempfile.mkdtemp(prefix="penjing-") if accelerator.is_main_process else ""]
    if accelerator.num_processes > 1:
        broadcast_object_list(name)
    return Path(name[0])


class _Running:
    """A run under way."""

    def __init__(
        self,
        task: Task,
        stages: Sequence[Stage],
        budget: Budget | None,
        folder: Path,
        name: str,
        seed: int,
        accelerator: Accelerator,
        reporter: Reporter,
        recipe: Recipe | None,
        speed: Speed,
    ) -> None:
        self.speed = speed
        self.task, self.stages, self.budget, self.folder, self.name = task, stages, budget, folder, name
        self.seed, self.accelerator, self.reporter, self.recipe = seed, accelerator, reporter, recipe
        self.is_main = accelerator.is_main_process

    def go(self, model: nn.Module, *, resume: bool) -> dict[str, Any]:
        """The whole run. Returns the content of `report.json`."""
        begun = time.monotonic()
        example = self.task.example()
        network = with_one_answer(trace(model, example.kwargs or example.args))
        if self.task.is_classification:  # labels that do not fit should stop a run before hours of training
            first = next(self.task.batches(self.task.valid))
            with torch.no_grad():
                answers = network.cpu().eval().all_answers(*first.args, **first.kwargs)
            self.task.metric.score(answers[-1], first.labels)
        self._open(network, resume)
        journal = Journal(self.folder, self.accelerator)
        self.reporter.plan(sum(stage.planned_epochs() for stage in self.stages))
        n_leading = next((i for i, stage in enumerate(self.stages) if not isinstance(stage, Train)), len(self.stages))
        teachers: dict[str, nn.Module] = {}
        standing: dict[str, Callable[[Workbench], None]] = {}
        kept: dict[int, dict[str, Tensor]] = {}
        records: list[Record] = []
        gauge: Gauge | None = None
        try:
            if n_leading == 0:
                teachers[BASELINE] = copy.deepcopy(network)
                gauge = self._baseline(network)
            for position, stage in enumerate(self.stages):
                key = f"{position + 1:02d}-{type(stage).label}"
                bench = Workbench(
                    network,
                    self.task,
                    key=key,
                    seed=self.seed,
                    journal=journal,
                    accelerator=self.accelerator,
                    reporter=self.reporter,
                    teachers=teachers,
                    standing=standing,
                    kept=kept,
                    speed=self.speed,
                )
                self.reporter.say(f"[bold]{position + 1}/{len(self.stages)} {type(stage).label}[/bold]")
                seconds = self._apply(stage, bench)
                network = bench.network
                teachers[stage.name or type(stage).label] = copy.deepcopy(network)
                path = self._save(network, self.folder / "stages" / f"{key}.pj")
                if position + 1 <= n_leading:
                    teachers[BASELINE] = copy.deepcopy(network)
                    if position + 1 == n_leading:
                        gauge = self._baseline(network)
                if gauge is not None:
                    record = self._record(
                        journal, gauge, f"{key}/record", stage.name or type(stage).label, path, "valid"
                    )
                    records.append(self._complete(record, bench, seconds))
            assert gauge is not None
            return self._finish(journal, gauge, network, records, time.monotonic() - begun)
        finally:
            if gauge is not None:
                gauge.close()

    # --- one stage ---------------------------------------------------------------------------------------------------

    def _apply(self, stage: Stage, bench: Workbench) -> float:
        begun = time.monotonic()
        before = dict(bench.standing)
        bench.network.to(self.accelerator.device)
        seed_everything(derive_seed(self.seed, bench.key, "apply"))
        stage.apply(bench)
        for name, again in before.items():
            if bench.standing.get(name) is again:
                again(bench)
        bench.network.cpu().eval()
        return time.monotonic() - begun

    def _baseline(self, network: Network) -> Gauge:
        path = self._save(network, self.folder / "stages" / "00-baseline.pj")
        return Gauge(self.task, path, self.folder, self.accelerator.device)

    def _save(self, network: Network, path: Path) -> Path:
        if self.is_main:
            content = encode(network.cpu(), speed=self.speed)
            if not path.exists() or path.read_bytes() != content:
                write_atomically(path, content)
        self.accelerator.wait_for_everyone()
        return path

    def _record(self, journal: Journal, gauge: Gauge, key: str, name: str, path: Path, data: str) -> Record:
        def measure() -> Json:
            with self.reporter.bar(f"measuring {name}", 1) as bar:
                record = gauge.record(name, path, data)
                bar.advance()
            return record.to_json()

        return Record.from_json(journal.decide(key, measure))

    def _complete(self, record: Record, bench: Workbench, seconds: float) -> Record:
        """What is not measured but known, the limits, and a line for the user."""
        warnings = [*bench.warnings, *_honest_words(record, bench.network)]
        lines = self.budget.check(record) if self.budget else []
        record = replace(record, facts=bench.facts, warnings=warnings, budget=lines, seconds=round(seconds, 1))
        self.reporter.say(f"  {_one_line(record)}")
        for line in lines:
            self.reporter.say(f"  {'[green]met[/green]    ' if line.met else '[yellow]not met[/yellow]'} {line.text}")
        return record

    # --- beginning and end ---------------------------------------------------------------------------------------------

    def _open(self, network: Network, resume: bool) -> None:
        """Make the folder, or check that it holds this very run."""
        identity = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "seed": self.seed,
            "data": self.recipe.data if self.recipe else None,
            "metric": self.task.metric.name,
            "stages": [write_stage(stage) for stage in self.stages],
            "model": hashlib.sha256(encode(network)).hexdigest(),
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "precision": str(self.accelerator.mixed_precision),
            "device": self.accelerator.device.type,
        }
        files = _teachers_files(self.stages)
        if files:
            identity["teachers"] = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}
        if self.speed != "small":
            identity["speed"] = self.speed
        path = self.folder / "run.json"
        if self.is_main:
            if path.exists():
                self._check_identity(path, identity, resume)
            elif self.folder.exists() and (not self.folder.is_dir() or _holds_something(self.folder)):
                raise RunError(f"{self.folder}: exists already and is not a run of penjing. Choose another --out.")
            else:
                write_atomically(path, json.dumps(identity, indent=1).encode())
        self.accelerator.wait_for_everyone()

    def _check_identity(self, path: Path, identity: dict[str, Any], resume: bool) -> None:
        if not resume:
            raise RunError(f"{self.folder}: holds a run already. Go on with --resume, or choose another --out.")
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read ({error}). Choose another --out.") from None
        different = [key for key, value in identity.items() if known.get(key, value) != value]
        if different:
            details = "; ".join(f"{key} was {known.get(key)!r}, is {identity[key]!r}" for key in different)
            raise RunError(
                f"{self.folder}: cannot go on, this is another run ({details}). Give the same recipe, seed and machine "
                "settings, or another --out."
            )

    def _finish(
        self, journal: Journal, gauge: Gauge, network: Network, records: list[Record], seconds: float
    ) -> dict[str, Any]:
        path = self._save(network, self.folder / f"{self.name}.pj")
        data = "test" if self.task.test is not None else "valid"

        def measure() -> Json:
            with self.reporter.bar(f"measuring the result on the {data} set", 4) as bar:
                saved = load(path).to(gauge.device)
                final_answers = answer(saved, self.task, gauge._loader(data))
                bar.advance()
                baseline_answers = gauge.baseline_answers(data)
                baseline = gauge.record_of(BASELINE, gauge.baseline, data, baseline_answers)
                bar.advance()
                final = gauge.record_of("final", path, data, final_answers)
                bar.advance()
                on_valid = baseline if data == "valid" else gauge.record(BASELINE, gauge.baseline, "valid")
                rows = baseline_rows(gauge, data)
                bar.advance()
            return {
                "baseline": baseline.to_json(),
                "baseline_valid": on_valid.to_json(),
                "final": final.to_json(),
                "baseline_rows": rows,
                "per_class": findings.per_class(self.task, baseline_answers, final_answers),
                "changed": findings.changed(self.task, baseline_answers, final_answers),
                "exits": findings.exits(self.task, final_answers),
                "blocks": findings.blocks(self.task, saved, final_answers),
                "seconds": seconds,
            }

        measured = journal.decide("final/measured", measure)
        final = Record.from_json(measured["final"])
        lines = self.budget.check(final) if self.budget else []
        final = replace(final, budget=lines, warnings=_honest_words(final, network))
        warnings = [f"{r.name}: {w}" for r in records for w in r.warnings] + [f"final: {w}" for w in final.warnings]
        if data == "valid":
            warnings.append(
                "There is no test set: the result is measured on the validation set, on which choices were made."
            )
        content = path.read_bytes()
        report = {
            "schema_version": SCHEMA_VERSION,
            "penjing": __version__,
            "name": self.name,
            "created": datetime.now().isoformat(timespec="seconds"),
            "seed": self.seed,
            "duration_seconds": round(measured.pop("seconds"), 1),
            "machine": machine(self.accelerator.device),
            "versions": versions(),
            "recipe": self.recipe.to_data()
            if self.recipe
            else {"stages": [write_stage(stage) for stage in self.stages]},
            "recipe_text": self.recipe.to_yaml() if self.recipe else _stages_yaml(self.stages),
            "task": {
                "metric": self.task.metric.name,
                "classes": list(self.task.classes),
                "n_train": _n_samples(self.task.train),
                "n_valid": measured["baseline_valid"]["metric"]["n"],
                "n_test": final.metric.n if data == "test" else None,
            },
            **measured,
            "final": final.to_json(),
            "stages": [record.to_json() for record in records],
            "artifact": {"path": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
            "layers_before": measured["baseline"]["layer_bytes"],
            "weights": findings.weights(network),
            "budget": final.to_json()["budget"],
            "warnings": warnings,
        }
        if self.is_main:
            write_atomically(self.folder / "report.json", json.dumps(report, indent=1).encode())
        self.accelerator.wait_for_everyone()
        return report


def _holds_something(folder: Path) -> bool:
    """Whether anything is there but what a process left behind that was killed in its very first write."""
    return any(not path.name.startswith(".run.json.partial-") for path in folder.iterdir())


def _honest_words(record: Record, network: Network) -> list[str]:
    """Where a technique cannot pay off here, say so."""
    words = []
    if record.latency_ms and record.baseline_latency_ms and record.file_bytes:
        slower = record.latency_ms.median / record.baseline_latency_ms.median
        if record.drop is not None and slower > 1.05:
            words.append(
                f"slower than the baseline here: {record.latency_ms.median:.3g} ms "
                f"against {record.baseline_latency_ms.median:.3g} ms"
            )
    kinds = {part.kind for _, owner, name in named_weights(network) for part in representations(owner, name)}
    if "mask" in kinds:
        words.append("masks without structure: the file shrinks, the latency does not")
    return words


def _one_line(record: Record) -> str:
    metric = record.metric
    value = f"{record.accuracy.correct}/{record.accuracy.total}" if record.accuracy else f"{metric.value:.4g}"
    percent = f" = {100 * metric.value:.2f} %" if record.accuracy else ""
    latency = f", {record.latency_ms.median:.3g} ms" if record.latency_ms else ""
    return (
        f"{metric.name} {value}{percent} on {record.data}, {record.parameters:,} parameters, "
        f"{record.macs:,.0f} MACs, {record.file_bytes:,} bytes{latency}"
    )


def _stages_yaml(stages: Sequence[Stage]) -> str:
    return str(yaml.safe_dump({"stages": [write_stage(stage) for stage in stages]}, sort_keys=False))


def _n_samples(loader: Any) -> int | None:
    data = getattr(loader, "dataset", None)
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None

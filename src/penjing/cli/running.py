"""`penjing run` and `penjing demo`."""

import importlib.resources
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penjing.errors import RunError, SettingError
from penjing.recipe import Recipe, Run, compress, load_task, read_recipe, stage_table
from penjing.report import write_report
from penjing.training import Stage, device_named, load_model, new_accelerator
from penjing.training.progress import Live, Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything
from penjing.units import show_bytes, show_seconds


def demo_recipe() -> Recipe:
    """The recipe of `penjing demo`, which comes with the package."""
    text = importlib.resources.files("penjing.cli").joinpath("demo.yaml").read_text(encoding="utf-8")
    return Recipe(**yaml.safe_load(text))


def recipe_from(
    path: Path | None, model: str | None, dataset: str | None, stages: list[str], changes: list[str]
) -> Recipe:
    """A recipe from a file or from options, with changes.

    Raises: SettingError: both or neither, or something in it cannot work.
    """
    if path is not None and (model or dataset or stages):
        raise SettingError(
            "run: give a recipe, or --model, --dataset and --stage, not both. To change a recipe use --set."
        )
    if path is None and not (model and dataset and stages):
        raise SettingError(
            "run: give a recipe, such as recipes/mnist.yaml, or --model, --dataset and at least one --stage."
        )
    if path is not None:
        content = read_recipe(path).to_data()
    else:
        content = {"name": "run", "model": model, "data": dataset, "stages": [_yaml(s, "--stage") for s in stages]}
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise SettingError(f'run: --set needs key=value, got "{change}".')
        _set(content, key.strip().split("."), _yaml(value, "--set"), key)
    return Recipe(**content)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingError(
            f'run: {where} "{text}" is not valid YAML. Write for example {where} "distill: {{epochs: 3}}"'
        ) from None


def _set(content: Any, path: list[str], value: Any, key: str) -> None:
    """stages.2.epochs: the third stage's setting; names of stages need not be said."""
    for position, part in enumerate(path):
        if isinstance(content, list):
            if not part.isdigit() or int(part) >= len(content):
                raise SettingError(f'run: --set {key}: "{part}" must be 0 to {len(content) - 1}.')
            if position == len(path) - 1:
                content[int(part)] = value
                return
            content = content[int(part)]
            if isinstance(content, dict) and len(content) == 1 and path[position + 1] not in content:
                (name,) = content
                content[name] = content[name] or {}
                content = content[name]
        elif isinstance(content, dict):
            if position == len(path) - 1:
                content[part] = value
                return
            content = content.setdefault(part, {})
        else:
            raise SettingError(f'run: --set {key}: there is nothing called "{part}".')


def dry_run(recipe: Recipe, data: Path | None, out: Path, console: Console) -> None:
    """Stages, what each needs, what would be written. Nothing is trained, nothing written."""
    task = load_task(recipe.data, data)
    seed_everything(0)
    model = load_model(recipe.model)
    example = task.example()
    shape = (
        tuple(example.args[0].shape[1:]) if example.args else {k: tuple(v.shape[1:]) for k, v in example.kwargs.items()}
    )
    console.print(
        f"[bold]{recipe.name}[/bold]  data {recipe.data['name']}, inputs {shape}, model {type(model).__name__}"
    )
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in ("", "stage", "needs", "epochs", "settings"):
        table.add_column(column, justify="right" if column in ("", "epochs") else "left")
    for position, stage in enumerate(recipe.stages, 1):
        assert isinstance(stage, Stage)
        settings = ", ".join(f"{key} {value}" for key, value in stage.model_dump(exclude_defaults=True).items())
        teacher = getattr(stage, "teacher", None)
        needs = [*stage.needs, f"teacher: {teacher}"] if teacher else list(stage.needs)
        table.add_row(
            str(position), type(stage).label, ", ".join(needs), str(stage.planned_epochs() or ""), escape(settings)
        )
    console.print(table)
    console.print(f"{sum(stage.planned_epochs() for stage in recipe.stages)} epochs in all. Would be written:")
    for name, what in (
        (f"{recipe.name}.pj", "the artifact"),
        ("report.html, report.json", "every figure"),
        ("stages/*.pj", "an artifact for the baseline and after every stage"),
        ("run.json, journal.jsonl, trainings/", "what --resume needs"),
    ):
        console.print(f"  {out / name}  [dim]{what}[/dim]", highlight=False)
    if recipe.budget:
        limits = recipe.budget.model_dump(exclude_none=True)
        console.print("budget: " + ", ".join(f"{key} {value}" for key, value in limits.items()), highlight=False)


def run_recipe(
    recipe: Recipe,
    *,
    data: Path | None,
    out: Path,
    seed: int,
    resume: bool,
    threads: int | None = None,
    device: str | None = None,
    precision: str = "no",
    as_json: bool = False,
) -> Run:
    """Carry out a recipe and show the result."""
    chosen = device_named(device)
    if chosen is not None and chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    threads = threads or recipe.threads
    if threads is not None:
        torch.set_num_threads(threads)
    if (out / "run.json").exists() and not resume:
        raise RunError(f"{out}: holds a run already. Go on with --resume, or choose another --out.")
    accelerator = new_accelerator(chosen, precision)
    talks = accelerator.is_main_process
    console = Console(stderr=True)
    reporter: Reporter = Live(console) if talks else Silent()
    task = load_task(recipe.data, data)
    seed_everything(derive_seed(seed, "model"))
    model = load_model(recipe.model)
    run = compress(
        model,
        task,
        recipe.stages,
        budget=recipe.budget,
        out=out,
        name=recipe.name,
        seed=seed,
        resume=resume,
        accelerator=accelerator,
        reporter=reporter,
        recipe=recipe,
        speed=recipe.speed,
    )
    if talks:
        page = write_report(out)
        if as_json:
            from penjing.cli.main import print_json  # noqa: PLC0415  the two modules know each other

            print_json(run.to_json())
        else:
            show_result(run, page, Console(width=None if sys.stdout.isatty() else 132))
    return run


def show_result(run: Run, page: Path, console: Console) -> None:
    """The table, the budget, the warnings, the paths."""
    report = run.to_json()
    console.print()
    console.print(stage_table(report))
    console.print()
    for line in run.budget:
        console.print(f"{'[green]met[/green]    ' if line.met else '[red]not met[/red]'} {line.text}", highlight=False)
    for warning in run.final.warnings:
        console.print(f"[yellow]note[/yellow]    {escape(warning)}", highlight=False)
    if len(run.warnings) > len(run.final.warnings):
        console.print(f"        {len(run.warnings)} notes on the stages are in the report", style="dim")
    size = run.artifact.stat().st_size
    console.print(f"\nduration {show_seconds(report['duration_seconds'])}, seed {report['seed']}", highlight=False)
    console.print(f"artifact {run.artifact}  ({size:,} bytes = {show_bytes(size)})", highlight=False, soft_wrap=True)
    console.print(f"report   {page}", highlight=False, soft_wrap=True)

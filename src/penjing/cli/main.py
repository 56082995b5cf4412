"""penjing on the command line.

Commands import what they need when they run, so that `--help` answers before torch is loaded.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from penjing.errors import PenjingError, SettingError
from penjing.version import __version__

app = typer.Typer(
    name="penjing",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Makes trained networks small, and measures what that cost.\n\n"
    "Start with [bold]penjing demo[/bold]: two minutes, no download.",
)
out_console = Console(width=None if sys.stdout.isatty() else 132)
err_console = Console(stderr=True)

_under_way: list[Path] = []
"""The folder of the run that is being carried out, for who stops it."""

Sha256 = Annotated[
    str | None,
    typer.Option(
        help="What the file must be: its SHA-256, 64 digits. It is checked before anything is read.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]


def _told(command: Callable[..., None]) -> Callable[..., None]:
    """Errors of penjing's own become one line and exit code 1; Ctrl-C says what is safe and exits with 130."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PenjingError as error:
            err_console.print(f"[red]error[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            folder = _under_way[-1] if _under_way else None
            safe = (
                f"Finished stages and decisions are safe in {folder}. Go on with the same command and --resume."
                if folder is not None and (folder / "run.json").exists()
                else "Nothing had been written."
            )
            err_console.print(f"\n[yellow]stopped[/yellow] {escape(safe)}", highlight=False, soft_wrap=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            err_console.print(
                f"[red]error[/red] {escape(place + (error.strerror or str(error)))}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from None

    return run


def _version(show: bool) -> None:
    if show:
        out_console.print(f"penjing {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@_told
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run; must be new.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="All randomness comes from it.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with a demo that was stopped.")] = False,
) -> None:
    """The whole way on scikit-learn's digits: train, separate, distil, prune, exits, cluster, one small file."""
    from penjing.cli.running import demo_recipe, run_recipe

    _under_way.append(out)
    run_recipe(demo_recipe(), data=None, out=out, seed=seed, resume=resume)


@app.command()
@_told
def run(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe, such as recipes/mnist.yaml.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run; must be new unless --resume.", show_default="runs/NAME")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder where the data lie.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="All randomness comes from it.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped; the result is the same, bit for bit.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the stages, what each needs, what would be written; then stop.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change the recipe: --set stages.2.epochs=3 --set budget.file='4 kB'.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Without a recipe: package.module:function, or a .pj file.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Without a recipe: digits, mnist, image-folder or package.module:function.", show_default=False
        ),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="Without a recipe, in order: --stage 'distill: {epochs: 3}'. See penjing stages.", show_default=False
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads for training.", min=1, show_default="the recipe's, else what torch takes"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is")
    ] = None,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    json_: Json = False,
) -> None:
    """Carry out a recipe: train, compress, measure after every stage, write the artifact and the report.

    Several processes: torchrun --nproc-per-node 2 -m penjing run recipes/mnist.yaml --data FOLDER
    """
    from penjing.cli.running import dry_run as show_plan
    from penjing.cli.running import recipe_from, run_recipe

    _check_precision("run", precision)
    found = recipe_from(recipe, model, dataset, stage or [], set_ or [])
    folder = out or Path("runs") / found.name
    if dry_run:
        show_plan(found, data, folder, out_console)
        return
    _under_way.append(folder)
    run_recipe(
        found,
        data=data,
        out=folder,
        seed=seed,
        resume=resume,
        threads=threads,
        device=device,
        precision=precision,
        as_json=json_,
    )


@app.command()
@_told
def stages(
    name: Annotated[str | None, typer.Argument(help="Only this one, with all settings.", show_default=False)] = None,
) -> None:
    """The stages a recipe can have, and their settings."""
    from penjing.cli.describing import show_stages

    show_stages(name, out_console)


@app.command()
@_told
def inspect(
    file: Annotated[Path, typer.Argument(help="An artifact, such as small.pj.")],
    ways: Annotated[
        bool,
        typer.Option(
            "--ways", help="Instead, how each layer runs fastest on this machine, and why; this is measured now."
        ),
    ] = False,
    batch: Annotated[int, typer.Option(help="Samples in one call, for --ways.", min=1)] = 1,
    sha256: Sha256 = None,
    json_: Json = False,
) -> None:
    """What is in an artifact: per tensor shape, density, bits per weight, codec, bytes. The sum is the file's size."""
    from penjing.cli.describing import show_artifact, show_ways

    if ways:
        show_ways(file, batch, sha256, json_, out_console, err_console)
    else:
        show_artifact(file, sha256, json_, out_console)


@app.command()
@_told
def pack(
    source: Annotated[Path, typer.Argument(help="A safetensors file with tensors of any kind.")],
    target: Annotated[Path, typer.Argument(help="The artifact to write, such as small.pj.")],
    step: Annotated[
        float | None,
        typer.Option(
            help="Round weights to multiples of this share of each tensor's standard deviation. For bell-shaped weights 0.1 "
            "leaves 5.4 bits a weight and a relative error of 2.9 %, 0.3 leaves 3.8 and 8.7 %.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Round weights to codes of this width, each row in steps of its own up to its largest weight; "
            "what the file takes is less.",
            min=2,
            max=15,
            show_default=False,
        ),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Round weights to float16, or bfloat16 where that is too narrow.")
    ] = False,
    exact: Annotated[
        list[str] | None,
        typer.Option(help="Names or globs of tensors that stay exact: --exact '*embed*'.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json_: Json = False,
) -> None:
    """Make a checkpoint smaller, file to file, one tensor at a time in memory.

    Without --step, --bits and --half nothing is lost: unpack gives back every bit. With one of them float tensors of at least
    two dimensions and 1024 numbers are rounded; biases, norms, whole numbers, and what holds NaN or infinity stay exact.
    Nobody measures what rounding does to the network: that is what penjing run is for.
    """
    from penjing.artifact import Packing
    from penjing.cli.packing import show_pack

    packing = Packing(step=step, bits=bits, half=half, exact=tuple(exact or ()))
    show_pack(source, target, packing, force, json_, out_console)


@app.command()
@_told
def unpack(
    source: Annotated[Path, typer.Argument(help="An artifact, such as small.pj: packed, or of a network.")],
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    sha256: Sha256 = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json_: Json = False,
) -> None:
    """Write an artifact's tensors as a safetensors file, one tensor at a time in memory."""
    from penjing.cli.packing import show_unpack

    show_unpack(source, target, sha256, force, json_, out_console)


@app.command()
@_told
def bench(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Artifacts (.pj), ONNX files (.onnx), ExecuTorch programs (.pte); the first is the baseline."
        ),
    ],
    batch: Annotated[int, typer.Option(help="Samples in one call.", min=1)] = 1,
    length: Annotated[
        int | None,
        typer.Option(
            help="Of what a network leaves open, such as words in a sentence; else as traced, 64 in ONNX files.",
            min=1,
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each.", min=1)] = 1,
    rounds: Annotated[int, typer.Option(help="Turns that each file takes.", min=1)] = 10,
    seconds: Annotated[float, typer.Option(help="Length of one turn.", min=0.01)] = 0.3,
    backend: Annotated[
        str,
        typer.Option(
            help="How artifacts run: dense, with plain weights; auto, from compressed weights where that is faster here; both."
        ),
    ] = "both",
    runtime: Annotated[str, typer.Option(help="What runs ONNX files: onnxruntime, openvino, both.")] = "onnxruntime",
    answers: Annotated[
        bool, typer.Option("--answers", help="Of artifacts each width and exit by itself, too.")
    ] = False,
    sha256: Annotated[
        list[str] | None,
        typer.Option(help="What the files must be, one for each in their order.", show_default=False),
    ] = None,
    json_: Json = False,
) -> None:
    """Latency side by side: a process for each file, taking turns, one thread, median and quartiles, ratio to the first."""
    from penjing.cli.describing import show_bench

    show_bench(
        files,
        batch,
        length,
        threads,
        rounds,
        seconds,
        backend,
        runtime,
        answers,
        sha256 or [],
        json_,
        out_console,
        err_console,
    )


@app.command()
@_told
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, such as runs/mnist.")],
    json_: Json = False,
) -> None:
    """Write the HTML report of a run again, and print its table."""
    from penjing.cli.describing import show_report

    show_report(folder, json_, out_console)


@app.command()
@_told
def export(
    file: Annotated[Path, typer.Argument(help="An artifact, such as small.pj.")],
    out: Annotated[Path, typer.Argument(help="Where to write: small.onnx, or small.pte for ExecuTorch.")],
    exit_: Annotated[
        int | None,
        typer.Option(
            "--exit", help="Only the answer of this exit (0, 1 ...), as a smaller network.", show_default=False
        ),
    ] = None,
    leave_early: Annotated[
        bool,
        typer.Option(
            "--leave-early",
            help="ONNX: exits become conditions; what follows is not computed when all samples have left.",
        ),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Samples in a call of a .pte file, 1 unless told; ONNX takes any number.", min=1, show_default=False
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="Of what the network leaves open, in a .pte file; else as traced.", min=1, show_default=False
        ),
    ] = None,
    sha256: Sha256 = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json_: Json = False,
) -> None:
    """Write an artifact as ONNX or for ExecuTorch, and compare its answers there with PyTorch's."""
    from penjing.cli.describing import show_export

    show_export(file, out, exit_, leave_early, batch, length, sha256, force, json_, out_console, err_console)


@app.command()
@_told
def scan(
    file: Annotated[Path, typer.Argument(help="An artifact, such as small.pj.")],
    dataset: Annotated[str, typer.Option(help="digits, mnist, image-folder or package.module:function.")] = "digits",
    data: Annotated[Path | None, typer.Option(help="Folder where the data lie.", show_default=False)] = None,
    score: Annotated[
        str, typer.Option(help="What makes a weight important: magnitude, fisher, obd, wanda ...")
    ] = "magnitude",
    structure: Annotated[str, typer.Option(help="What goes together: weights, 2:4, 4x1, filter-shapes.")] = "weights",
    layer: Annotated[
        list[str] | None, typer.Option(help="Only these: names, globs, type:Class, !not-this.", show_default=False)
    ] = None,
    drop: Annotated[float, typer.Option(help="How much of the metric a layer's pruning may cost.", min=0)] = 0.005,
    plot: Annotated[Path | None, typer.Option(help="Draw it there, such as scan.png.", show_default=False)] = None,
    sha256: Sha256 = None,
    json_: Json = False,
) -> None:
    """How sensitive each layer is: the metric when it alone is pruned, and how much of it may go."""
    from penjing.cli.scanning import show_scan

    show_scan(
        file,
        dataset,
        data,
        score=score,
        structure=structure,
        layers=layer or [],
        drop=drop,
        plot=plot,
        sha256=sha256,
        as_json=json_,
        console=out_console,
    )


@app.command()
@_told
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A claim, such as lottery-ticket; see --list.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="All claims, and what came of them.")] = False,
    profile: Annotated[
        str, typer.Option(help="full: the run that is judged; quick: smaller, at most five minutes, decides nothing.")
    ] = "full",
    data: Annotated[
        Path | None, typer.Option(help="Folder where the data lie (MNIST, CIFAR-10).", show_default=False)
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Seeds 0 to N - 1; fewer than 3 decide nothing.", min=1, show_default="the claim's; quick: 1"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results; finished parts in it are not run again.")] = Path(
        "results"
    ),
    threads: Annotated[int, typer.Option(help="Threads for training.", min=1)] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps.", show_default="the best there is")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="no, bf16 or fp16, of training; figures are always measured in float32.")
    ] = "no",
    seconds: Annotated[
        float | None, typer.Option(help="Begin nothing new after so long; the next call goes on.", show_default=False)
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that each take a seed at a time; not for claims that measure times.", min=1)
    ] = 1,
    page: Annotated[
        Path | None,
        typer.Option(help="Write the page of all results there, such as docs/claims.md.", show_default=False),
    ] = None,
    json_: Json = False,
) -> None:
    """Run a paper's claim, smaller, and judge it: what the paper found, what we find, and whether it holds."""
    from penjing.cli.reproducing import list_claims, run_claim, show_page

    if profile not in ("full", "quick"):
        raise SettingError(f'reproduce: --profile must be full or quick, got "{profile}".')
    _check_precision("reproduce", precision)
    if page is not None:
        show_page(out, page, out_console)
    if list_ or (name is None and page is None):
        list_claims(out, json_, out_console)
    elif name is not None:
        run_claim(
            name,
            profile=profile,
            seeds=seeds,
            data=data,
            out=out,
            threads=threads,
            device=device,
            precision=precision,
            seconds=seconds,
            workers=workers,
            as_json=json_,
            console=out_console,
        )


def _check_precision(command: str, precision: str) -> None:
    if precision not in ("no", "bf16", "fp16"):
        raise SettingError(f'{command}: --precision must be no, bf16 or fp16, got "{precision}".')


def print_json(value: Any) -> None:
    """JSON to standard output, nothing else."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def main() -> None:
    """The entry point."""
    app()

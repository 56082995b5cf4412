"""`penjing stages`, `inspect`, `bench`, `report` and `export`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penjing import artifact, export, measurement
from penjing.cli.main import print_json
from penjing.errors import RunError, SettingError, nearest
from penjing.files import check_sha256
from penjing.graph import NEVER, Network, cut_out
from penjing.inference import accelerate
from penjing.recipe import STAGES, stage_table
from penjing.report import write_report
from penjing.training.stage import described
from penjing.units import show_bytes, show_count

_BACKENDS: dict[str, tuple[artifact.Backend, ...]] = {"dense": ("dense",), "auto": ("auto",), "both": ("dense", "auto")}
_RUNTIMES: dict[str, tuple[measurement.Runtime, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "both": ("onnxruntime", "openvino"),
}


def plain_table(*, show_footer: bool = False) -> Table:
    """A table that is as narrow as its content."""
    look = {"show_edge": False, "pad_edge": False, "collapse_padding": True}
    return Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold", show_footer=show_footer, **look)  # type: ignore[arg-type]


def show_stages(name: str | None, console: Console) -> None:
    """All stages in a line each, or one with its settings."""
    if name is not None and name not in STAGES:
        raise SettingError(f'stages: there is no stage "{name}"; {nearest(name, STAGES)}.')
    table = plain_table()
    if name is None:
        for column in ("stage", "family", "what it does"):
            table.add_column(column)
        for label, stage in STAGES.items():
            family = stage.__module__.split(".")[1]
            table.add_row(label, family, (stage.__doc__ or "").strip().splitlines()[0])
        console.print(table)
        console.print("\nSettings of one: penjing stages NAME")
        return
    stage = STAGES[name]
    console.print(f"[bold]{name}[/bold]  {escape((stage.__doc__ or '').strip())}\n", highlight=False)
    for column in ("setting", "type", "default", "meaning"):
        table.add_column(column)
    for setting, kind, default, meaning in described(stage):
        table.add_row(setting, escape(kind), escape(str(default)), escape(meaning))
    console.print(table)


def show_artifact(path: Path, sha256: str | None, as_json: bool, console: Console) -> None:
    """Every part of the file."""
    rows = artifact.inspect(path, sha256=sha256)
    size = path.stat().st_size
    with artifact.open_artifact(path, sha256=sha256) as opened:
        tensors = opened.tensors
        network = None if tensors is not None else opened.network()
    if as_json:
        print_json(
            {
                "path": str(path),
                "file_bytes": size,
                **({"remarks": dict(tensors.remarks)} if tensors is not None else _of_network(network)),
                "rows": [asdict(row) for row in rows],
            }
        )
        return
    table = plain_table(show_footer=True)
    table.add_column("tensor", footer="file", overflow="fold")
    table.add_column("shape")
    table.add_column("density", justify="right")
    table.add_column("codec")
    table.add_column("bits", justify="right")
    table.add_column("entropy", justify="right")
    table.add_column("bytes", justify="right", footer=f"{sum(row.size_bytes for row in rows):,}")
    for row in rows:
        table.add_row(
            escape(row.name),
            "x".join(map(str, row.shape)),
            "" if row.density is None else f"{row.density:.3f}",
            row.codec,
            "" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
            "" if row.entropy_bits_per_weight is None else f"{row.entropy_bits_per_weight:.2f}",
            f"{row.size_bytes:,}",
        )
    console.print(table)
    weights = sum(row.elements for row in rows)
    console.print(
        f"\n{size:,} bytes = {show_bytes(size)} for {weights:,} numbers: {8 * size / max(weights, 1):.2f} bits each. "
        "bits: bytes of the tensor over its weights; entropy: of its symbols under the model in the file, in bits a weight.",
        soft_wrap=True,
        highlight=False,
    )
    if network is None:
        console.print("tensors without a network; penjing unpack makes a safetensors file of them", highlight=False)
        return
    shapes = ", ".join(f"({', '.join(map(str, ('batch', *shape)))})" for shape in network.input_shapes)
    console.print(f"input {shapes}", highlight=False)
    if network.thresholds:
        console.print(
            "samples leave at confidences "
            + ", ".join("never" if t >= NEVER else f"{t:.4f}" for t in network.thresholds),
            highlight=False,
            soft_wrap=True,
        )
        console.print(_answers_table(network))
    if network.gates:
        console.print(
            f"{len(network.gates)} gates say for each sample what is computed; without them "
            f"{show_count(measurement.macs_without_exits(network))} multiply-accumulates",
            highlight=False,
            soft_wrap=True,
        )


def _answers_table(network: Network) -> Table:
    """What each width and exit costs when it alone is computed; accuracy is in the report of the run that made the file."""
    table = plain_table()
    table.add_column("answer")
    for column in ("multiply-accumulates", "parameters"):
        table.add_column(column, justify="right")
    macs = measurement.macs_of_answers(network)
    for k, (name, cost) in enumerate(zip(network.answer_names, macs, strict=True)):
        parameters = sum(p.numel() for p in cut_out(network, k).parameters())
        table.add_row(name, show_count(cost), show_count(parameters))
    return table


def show_ways(path: Path, batch: int, sha256: str | None, as_json: bool, console: Console, talk: Console) -> None:
    """How each layer with a matrix or filters runs on this machine, and what was tried."""
    torch.set_num_threads(1)
    network = artifact.load(path, for_training=True, sha256=sha256)
    with talk.status("timing layers; the first time on a machine kernels are compiled, a few seconds each"):
        found = accelerate(network, batch=batch)
    choices = found.choices
    if as_json:
        print_json([asdict(choice) for choice in choices])
        return
    table = plain_table(show_footer=True)
    table.add_column("layer", footer="all", overflow="fold")
    table.add_column("runs")
    table.add_column("why", overflow="fold")
    for column in ("dense us", "compressed us"):
        table.add_column(column, justify="right")
    for column, sizes in (
        ("dense bytes", [choice.dense_bytes for choice in choices]),
        ("bytes", [choice.own_bytes for choice in choices]),
    ):
        table.add_column(column, justify="right", footer=f"{sum(sizes):,}")
    for choice in choices:
        times = ("" if ms is None else f"{1000 * ms:.1f}" for ms in (choice.dense_ms, choice.own_ms))
        n_bytes = (f"{choice.dense_bytes:,}", f"{choice.own_bytes:,}")
        table.add_row(escape(choice.path), choice.way, escape(choice.why), *times, *n_bytes)
    console.print(table)
    if found.layout is not None:
        folded = f"; batch norms computed with the layers before them: {len(found.folded)}" if found.folded else ""
        console.print(f"\nmaps in memory: {found.layout}{folded}", highlight=False)
    console.print(
        f"\nmeasured now on this machine, one thread, batch {batch}, random inputs; bytes are of weights and biases in memory. "
        'pj.load(path, backend="auto") runs it like this.',
        highlight=False,
    )


def _of_network(network: Network | None) -> dict[str, Any]:
    assert network is not None
    shapes = [[size if isinstance(size, int) else str(size) for size in shape] for shape in network.input_shapes]
    answers = dict(zip(network.answer_names, measurement.macs_of_answers(network), strict=True))
    return {"input_shapes": shapes, "exit_thresholds": network.thresholds, "macs": answers, "gates": len(network.gates)}


def show_bench(
    files: list[Path],
    batch: int,
    length: int | None,
    threads: int,
    rounds: int,
    seconds: float,
    backend: str,
    runtime: str,
    answers: bool,
    sha256: list[str],
    as_json: bool,
    console: Console,
    talk: Console,
) -> None:
    """Times of each file, and how much faster than the first."""
    backends = _BACKENDS.get(backend)
    if backends is None:
        raise SettingError(f'bench: --backend must be dense, auto or both, got "{backend}".')
    runtimes = _RUNTIMES.get(runtime)
    if runtimes is None:
        raise SettingError(f'bench: --runtime must be onnxruntime, openvino or both, got "{runtime}".')
    for file in files:
        if not file.is_file():
            raise RunError(f"bench: {file}: there is no such file.")
    if sha256 and len(sha256) != len(files):
        raise SettingError(f"bench: --sha256 must be given for each of the {len(files)} files, got {len(sha256)}.")
    for file, expected in zip(files, sha256, strict=False):
        with file.open("rb") as content:
            check_sha256(content, expected, str(file))
    ways = {".onnx": len(runtimes), ".pte": 1}
    n_workers = sum(ways.get(file.suffix, len(backends)) for file in files)
    with talk.status(f"taking turns, about {n_workers * (rounds * seconds + 3):.0f} s"):
        timings = measurement.bench(
            files,
            batch=batch,
            length=length,
            threads=threads,
            rounds=rounds,
            seconds=seconds,
            backends=backends,
            runtimes=runtimes,
            answers=answers,
        )
    base = timings[0].latency_ms.median
    if as_json:
        print_json(
            [
                {
                    **asdict(timing),
                    "file_bytes": Path(timing.path).stat().st_size,
                    "speed": base / timing.latency_ms.median,
                }
                for timing in timings
            ]
        )
        return
    table = plain_table()
    table.add_column("file", overflow="fold")
    table.add_column("runtime")
    for column in ("file bytes", "ms, median", "quartiles", "speed"):
        table.add_column(column, justify="right")
    for timing in timings:
        found = timing.latency_ms
        table.add_row(
            f"{timing.path}, {timing.answer}" if timing.answer else timing.path,
            timing.runtime,
            f"{Path(timing.path).stat().st_size:,}",
            f"{found.median:.3f}",
            f"{found.low:.3f} to {found.high:.3f}",
            f"{base / found.median:.2f}x",
        )
    console.print(table)
    for timing in (timing for timing in timings[1:] if not timing.answer):
        ratio = base / timing.latency_ms.median
        if ratio < 1:
            console.print(
                f"\n{timing.path} ({timing.runtime}) does not pay here: {ratio:.2f} times as fast as the first.",
                highlight=False,
                soft_wrap=True,
            )
    console.print(
        f"\nbatch {batch}, {threads} thread{'s' if threads > 1 else ''} each, {rounds} turns of {seconds:g} s, random inputs. "
        "Exits of a dynamic network depend on the inputs: its time on real samples is in the report.",
        highlight=False,
    )


def show_report(folder: Path, as_json: bool, console: Console) -> None:
    """Write the page, print the table."""
    page = write_report(folder)
    content = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if as_json:
        print_json(content)
        return
    console.print(stage_table(content))
    console.print(f"\nreport {page}", highlight=False, soft_wrap=True)


def show_export(
    file: Path,
    out: Path,
    exit_at: int | None,
    conditions: bool,
    batch: int | None,
    length: int | None,
    sha256: str | None,
    force: bool,
    as_json: bool,
    console: Console,
    talk: Console,
) -> None:
    """Write ONNX or a program for ExecuTorch, say how well it agrees and what it takes."""
    if out.exists() and not force:
        raise RunError(f"export: {out} exists. Choose another name, or replace it with --force.")
    network = artifact.load(file, for_training=True, sha256=sha256)
    with talk.status("writing, then comparing answers; large networks take a minute"):
        done = export.export(network, out, exit_at=exit_at, conditions=conditions, batch=batch, length=length)
    size = file.stat().st_size
    if as_json:
        print_json({**asdict(done), "path": str(done.path), "artifact_bytes": size})
        return
    console.print(
        f"{done.path}: {done.size_bytes:,} bytes; the artifact, {size:,} bytes, "
        + (f"is {done.size_bytes / size:.1f} times smaller\n" if size < done.size_bytes else "holds more than this\n")
        + f"outputs {', '.join(done.outputs)}; {done.runtime} and PyTorch differ by at most "
        f"{done.largest_difference:.1e} relative",
        highlight=False,
        soft_wrap=True,
    )
    if done.in_integers and done.runtime == "ONNX Runtime":
        name, value = export.EXACT_INTEGERS
        console.print(
            f"It computes in integers. Processors with AVX2 but without VNNI need ONNX Runtime's session option "
            f"{name}: {value} for right answers.",
            highlight=False,
        )
    if len(done.outputs) > 1:
        console.print(
            "All answers are computed in this file; --exit K writes the network up to one of them, --leave-early one that "
            "stops where all samples are sure.",
            highlight=False,
        )

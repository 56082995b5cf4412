"""`penjing scan`."""

import itertools
from pathlib import Path

import torch
from rich.console import Console

from penjing import artifact
from penjing.cli.describing import plain_table
from penjing.cli.main import print_json
from penjing.pruning import sensitivity_scan
from penjing.recipe import load_task
from penjing.sensitivity import Evidence
from penjing.training.progress import Live

_BATCHES = 20


def show_scan(
    file: Path,
    dataset: str,
    data: Path | None,
    *,
    score: str,
    structure: str,
    layers: list[str],
    drop: float,
    plot: Path | None,
    sha256: str | None,
    as_json: bool,
    console: Console,
) -> None:
    """A line a layer: the metric at each sparsity, and how sparse it may be."""
    network, task = artifact.load(file, for_training=True, sha256=sha256), load_task({"name": dataset}, data)
    evidence = Evidence(
        batches=lambda: itertools.islice(task.batches(task.train), _BATCHES),
        loss=lambda network, batch: task.loss(network(*batch.args, **batch.kwargs), batch.labels),
        generator=torch.Generator().manual_seed(0),
    )
    scan = sensitivity_scan(
        network, task, score=score, structure=structure, layers=layers or ["*"], evidence=evidence, reporter=Live()
    )
    amounts = scan.amounts(drop)
    if plot is not None:
        scan.plot(plot)
    if as_json:
        print_json({**scan.to_json(), "drop": drop, "amounts": amounts})
        return
    table = plain_table()
    table.add_column("weight")
    for sparsity in scan.sparsities:
        table.add_column(f"{100 * sparsity:g} %", justify="right")
    table.add_column("may lose", justify="right")
    for name, row in scan.values.items():
        table.add_row(name, *(f"{value:.4f}" for value in row), f"{100 * amounts[name]:g} %")
    console.print(table)
    console.print(
        f"\n{scan.metric} on the validation set with one layer pruned, nothing trained; {scan.baseline:.4f} as it is. "
        f"The last column: how much of a layer may go for at most {drop:g} less.\n"
        f"The same in a recipe: prune-weights: {{from_scan: {drop:g}}}",
        highlight=False,
    )
    if plot is not None:
        console.print(str(plot), highlight=False)

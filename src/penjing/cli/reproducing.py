"""`penjing reproduce`."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from penjing.cli.describing import plain_table
from penjing.cli.main import print_json
from penjing.papers import CLAIMS, Claim, claim_named, reproduce, result_path
from penjing.papers.judge import shown
from penjing.papers.page import write_page
from penjing.training import device_named
from penjing.training.progress import Live
from penjing.units import show_seconds

_STYLE = {"holds": "green", "fails": "red", "undecided": "yellow", "indicative": "cyan"}


def list_claims(out: Path, as_json: bool, console: Console) -> None:
    """Every claim, and what came of it."""
    results = {name: _kept(claim_named(name), out) for name in CLAIMS}
    if as_json:
        print_json(
            {name: result and {k: result[k] for k in ("verdict", "date", "seeds")} for name, result in results.items()}
        )
        return
    table = plain_table()
    for column in ("claim", "verdict", "paper"):
        table.add_column(column)
    for name, result in results.items():
        claim = claim_named(name)
        verdict = result["verdict"] if result else "not run"
        stale = " (older than the code)" if result and result["code_hash"] != claim.code_hash() else ""
        table.add_row(name, f"[{_STYLE.get(verdict, 'dim')}]{verdict}[/]{stale}", escape(claim.paper))
    console.print(table)
    console.print("\nRun one: penjing reproduce NAME --data FOLDER; a short try: --profile quick")


def run_claim(
    name: str,
    *,
    profile: str,
    seeds: int | None,
    data: Path | None,
    out: Path,
    threads: int,
    device: str | None,
    precision: str,
    seconds: float | None,
    workers: int,
    as_json: bool,
    console: Console,
) -> None:
    """Carry out one claim and show the paper against ours."""
    import torch  # noqa: PLC0415

    claim = claim_named(name)
    torch.set_num_threads(threads)
    result = reproduce(
        claim,
        profile=profile,  # type: ignore[arg-type]
        seeds=None if seeds is None else range(seeds),
        data=data,
        out=out,
        device=device_named(device),
        precision=precision,
        reporter=Live(),
        seconds=seconds,
        workers=workers,
    )
    if as_json:
        print_json(result)
        return
    console.print(f"[bold]{escape(claim.paper)}[/bold]\n{escape(claim.says)}\n", highlight=False)
    console.print(checks_table(result))
    path = result_path(claim, profile, out)  # type: ignore[arg-type]
    verdict = result["verdict"]
    console.print(
        f"\n[{_STYLE[verdict]}]{verdict}[/]  {len(result['seeds'])} seeds, {show_seconds(result['seconds'])} of computation"
        f"\n{escape(claim.scaled)}\n{path}\n{path.with_suffix('.png')}",
        highlight=False,
    )


def checks_table(result: dict[str, Any]) -> Table:
    """The inequalities, the paper's finding beside ours."""
    table = plain_table()
    table.add_column("inequality", max_width=54)
    table.add_column("the paper", max_width=34)
    table.add_column("ours [95 % interval]", justify="right", no_wrap=True)
    table.add_column("at least", justify="right", no_wrap=True)
    table.add_column("")
    for row in result["checks"]:
        table.add_row(
            escape(row["says"]),
            escape(row["paper"]),
            escape(shown(row["mean"], row["low"], row["high"])),
            f"{row['at_least']:g} {row['unit']}",
            "" if row["low"] is None else f"[{_STYLE[row['verdict']]}]{row['verdict']}[/]",
        )
    return table


def _kept(claim: Claim, out: Path) -> dict[str, Any] | None:
    path = result_path(claim, "full", out)
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def show_page(out: Path, page: Path, console: Console) -> None:
    """Write the page of all results."""
    write_page({name: _kept(claim_named(name), out) for name in CLAIMS}, out, page)
    console.print(f"{page} is written.", highlight=False)

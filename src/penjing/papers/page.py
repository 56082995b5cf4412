"""The page of all claims, for the documentation."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.files import write_atomically
from penjing.papers.claim import Claim
from penjing.papers.judge import shown
from penjing.units import show_seconds

_HEAD = """# Claims of papers, run and judged

`penjing reproduce NAME --data FOLDER` runs one; `penjing reproduce --page docs/claims.md` makes this page of `results/`.
A claim is a set of inequalities. Each is judged by the 95 % interval (Student's t) of the mean over seeds of a paired
difference: it *holds* where the whole interval is on the right side of the bound, *fails* where all of it is on the
other, and is *undecided* in between. A claim holds where all of its inequalities do. Accuracies are of test data, which
decide nothing; choices are made on validation data. Papers' figures marked as recalled or secondary are not from the
paper's own text.
"""


def write_page(results: Mapping[str, dict[str, Any] | None], out: Path, page: Path) -> None:
    """Write the page.

    Args:
        results: by claim, its result; None where it was not run.
        out: where the pictures are.
    """
    write_atomically(page, page_text(results, Path(os.path.relpath(out, page.parent))).encode())


def page_text(results: Mapping[str, dict[str, Any] | None], pictures: Path) -> str:
    """The page as Markdown."""
    from penjing.papers import claim_named  # noqa: PLC0415  # the table of claims imports the judge, not the other way

    lines = [_HEAD, "| claim | verdict | inequalities that hold | seeds | computation |", "|---|---|---|---|---|"]
    for name, result in results.items():
        if result is None:
            lines.append(f"| {name} | not run | | | |")
            continue
        n = sum(check["verdict"] == "holds" for check in result["checks"])
        verdict = result["verdict"] + _age(result, claim_named(name))
        lines.append(
            f"| [{name}](#{name}) | **{verdict}** | {n} of {len(result['checks'])} | {len(result['seeds'])} | "
            f"{show_seconds(result['seconds'])} |"
        )
    for name, result in results.items():
        if result is not None:
            lines += _section(name, result, claim_named(name), pictures)
    return "\n".join(lines) + "\n"


def _age(result: Mapping[str, Any], claim: Claim) -> str:
    return "" if result["code_hash"] == claim.code_hash() else " (older than the code)"


def _section(name: str, result: Mapping[str, Any], claim: Claim, pictures: Path) -> list[str]:
    lines = [
        f"\n## {name}\n",
        f"{claim.paper}\n",
        f"*Claim:* {claim.says}\n",
        f"*Our run:* {claim.scaled}\n",
        f"![{name}]({(pictures / f'{name}.png').as_posix()})\n",
        "| inequality | the paper | ours, mean [95 %] | at least | |",
        "|---|---|---|---|---|",
    ]
    for check in result["checks"]:
        lines.append(
            f"| {check['says']} | {check['paper']} | "
            f"{shown(check['mean'], check['low'], check['high'])} {check['unit']} | "
            f"{check['at_least']:g} | {check['verdict']} |"
        )
    place = result["machine"] if isinstance(result["machine"], dict) else result["machine"][0]
    trained = "" if result.get("precision", "no") == "no" else f"trained in {result['precision']}; "
    lines.append(
        f"\n{result['verdict']}{_age(result, claim)}; {len(result['seeds'])} seeds; {result['date']}; "
        f"{place['processor']}, {place['device']}, "
        f"{place['threads']} thread(s); {trained}"
        f"torch {result['versions'].get('torch', '?')}; {show_seconds(result['seconds'])}."
    )
    return lines

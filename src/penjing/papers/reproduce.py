"""Carry out a claim's experiments, judge it, and keep what was found.

results/NAME.json            the verdict, all figures, settings, versions, machine, duration
results/NAME.png             the picture
results/quick/...            the same for a quick run, whose verdict is only "indicative"
results/parts/NAME/...       a record for every finished (seed, arm), so that an interrupted claim goes on
"""

import datetime
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from penjing.errors import SettingError
from penjing.files import write_atomically
from penjing.papers.claim import Claim, Figures, Profile
from penjing.papers.judge import LEAST_SEEDS, judge, overall
from penjing.papers.parts import Work, side_by_side
from penjing.papers.pictures import write_picture
from penjing.recipe.machine import versions
from penjing.shapes import Json
from penjing.training.precision import say_if_slower
from penjing.training.progress import Reporter, Silent

Result = dict[str, Any]


def reproduce(
    claim: Claim,
    *,
    profile: Profile = "full",
    seeds: Sequence[int] | None = None,
    data: Path | None = None,
    out: Path = Path("results"),
    device: torch.device | None = None,
    precision: str = "no",
    reporter: Reporter | None = None,
    seconds: float | None = None,
    workers: int = 1,
) -> Result:
    """Run what is missing of a claim's experiments and judge it.

    Args:
        seeds: 0 to n - 1 unless told, for a quick run only 0; fewer than 3 decide nothing.
        data: folder where data sets lie.
        precision: of training: "no" (float32), "bf16" or "fp16"; all figures are measured in float32.
        out: folder of results; parts that are there, of the same settings, precision and code, are not run again.
        seconds: begin no new part after so long; what is missing is left for the next call.
        workers: processes that each take a seed at a time; for claims of `penjing.papers.CLAIMS`.
    Returns: what is in the JSON file.
    Raises: DataError: data that are not there. RunError: time was up before all parts were done, or a worker died.
        SettingError: no seeds; several workers for a claim whose figures are times.
    """
    reporter = reporter or Silent()
    usual = range(claim.seeds if profile == "full" else 1)
    seeds = list(usual if seeds is None else seeds)
    if not seeds:
        raise SettingError(f"reproduce: {claim.name} needs at least one seed.")
    if workers > 1 and claim.timed:
        raise SettingError(
            f"reproduce: {claim.name} measures times, which other work on the machine would change. Leave out workers."
        )
    settings, code = claim.settings[profile], claim.code_hash()
    key = "-".join((profile, claim.settings_hash(profile), code, *((precision,) if precision != "no" else ())))
    until = math.inf if seconds is None else time.monotonic() + seconds
    work = Work(claim, profile, data, out / "parts" / claim.name / key, device, precision, until)
    say_if_slower(precision, device, reporter)
    with reporter.bar(claim.name, len(seeds) * len(claim.arms(settings))) as bar:

        def done(info: str) -> None:
            bar.advance(1, info)

        if workers > 1:
            side_by_side(work, seeds, workers, done)
        parts = [work.carry_out(seed, reporter, None if workers > 1 else done) for seed in seeds]
    found = {
        seed: {arm: part["figures"] for arm, part in of_seed.items()}
        for seed, of_seed in zip(seeds, parts, strict=True)
    }
    every = [part for of_seed in parts for part in of_seed.values()]
    places: list[Json] = []
    for part in every:
        if part["machine"] not in places:
            places.append(part["machine"])
    result = _judged(claim, profile, seeds, found) | {
        "settings": json.loads(settings.model_dump_json()),
        "precision": precision,
        "settings_hash": claim.settings_hash(profile),
        "code_hash": code,
        "judges": [*claim.judges],
        "seconds": round(sum(part["seconds"] for part in every), 1),
        "machine": places[0] if len(places) == 1 else places,
        "versions": versions(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "figures": {str(seed): figures for seed, figures in found.items()},
    }
    target = result_path(claim, profile, out)
    write_picture(claim.picture(found, settings), target.with_suffix(".png"))
    write_atomically(target, (json.dumps(result, indent=1) + "\n").encode())
    return result


def result_path(claim: Claim, profile: Profile, out: Path) -> Path:
    """Where a claim's result is kept."""
    return (out if profile == "full" else out / profile) / f"{claim.name}.json"


def _judged(claim: Claim, profile: Profile, seeds: Sequence[int], found: dict[int, dict[str, Figures]]) -> Result:
    rows, verdicts = [], []
    for check in claim.checks(claim.settings[profile]):
        differences = [check.difference(found[seed]) for seed in seeds]
        judged = judge(differences, check.at_least)
        verdicts.append(judged.verdict)
        rows.append(
            {
                "says": check.says,
                "paper": check.paper,
                "unit": check.unit,
                **{key: None if value != value else value for key, value in asdict(judged).items()},  # NaN is no JSON
                "differences": differences,
            }
        )
    verdict = overall(verdicts) if len(seeds) >= LEAST_SEEDS else "undecided"
    return {
        "claim": claim.name,
        "paper": claim.paper,
        "says": claim.says,
        "scaled": claim.scaled,
        "profile": profile,
        "verdict": verdict if profile == "full" else "indicative",
        "seeds": [*seeds],
        "checks": rows,
    }

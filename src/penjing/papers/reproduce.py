"""Carry out a claim's experiments, judge it, and keep what was found.

results/NAME.json            the verdict, all figures, settings, versions, machine, duration
results/NAME.png             the picture
results/quick/...            the same for a quick run, whose verdict is only "indicative"
results/parts/NAME/...       a record for every finished (seed, arm), so that an interrupted claim goes on
"""

import datetime
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from penjing.errors import RunError, SettingError
from penjing.files import write_atomically
from penjing.papers.claim import Claim, Figures, Profile
from penjing.papers.judge import LEAST_SEEDS, judge, overall
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import write_picture
from penjing.recipe.machine import machine, versions
from penjing.shapes import Json
from penjing.training.precision import say_if_slower
from penjing.training.progress import Reporter, Silent
from penjing.training.seeding import derive_seed, seed_everything

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
) -> Result:
    """Run what is missing of a claim's experiments and judge it.

    Args:
        seeds: 0 to n - 1 unless told, for a quick run only 0; fewer than 3 decide nothing.
        data: folder where data sets lie.
        precision: of training: "no" (float32), "bf16" or "fp16"; all figures are measured in float32.
        out: folder of results; parts that are there, of the same settings, precision and code, are not run again.
        seconds: begin no new part after so long; what is missing is left for the next call.
    Returns: what is in the JSON file.
    Raises: DataError: data that are not there. RunError: time was up before all parts were done.
    """
    reporter = reporter or Silent()
    usual = range(claim.seeds if profile == "full" else 1)
    seeds = list(usual if seeds is None else seeds)
    if not seeds:
        raise SettingError(f"reproduce: {claim.name} needs at least one seed.")
    settings = claim.settings[profile]
    arms = claim.arms(settings)
    code, begun = claim.code_hash(), time.monotonic()
    key = "-".join((profile, claim.settings_hash(profile), code, *((precision,) if precision != "no" else ())))
    folder = out / "parts" / claim.name / key
    found: dict[int, dict[str, Figures]] = {}
    durations: list[float] = []
    places: list[Json] = []
    with reporter.bar(claim.name, len(seeds) * len(arms)) as bar:
        for seed in seeds:
            laboratory = Laboratory(seed, folder=folder, data=data, device=device, precision=precision)
            if seed == seeds[0]:
                say_if_slower(laboratory.accelerator, reporter)
            found[seed] = {}
            for arm in arms:
                path = folder / f"seed-{seed}-{re.sub('[^a-zA-Z0-9.]+', '-', arm)}.json"
                if not path.exists():
                    if seconds is not None and time.monotonic() - begun > seconds:
                        raise RunError(
                            f"reproduce: {claim.name}: time is up at seed {seed}, {arm}. What is finished is kept in "
                            f"{folder}; the same "
                            "command goes on."
                        )
                    part = _part(claim, laboratory, arm, settings, found[seed])
                    write_atomically(path, (json.dumps(part) + "\n").encode())
                part = _read_part(path)
                found[seed][arm] = part["figures"]
                durations.append(part["seconds"])
                if part["machine"] not in places:
                    places.append(part["machine"])
                bar.advance(1, f"seed {seed}, {arm}")
    result = _judged(claim, profile, seeds, found) | {
        "settings": json.loads(settings.model_dump_json()),
        "precision": precision,
        "settings_hash": claim.settings_hash(profile),
        "code_hash": code,
        "judges": [*claim.judges],
        "seconds": round(sum(durations), 1),
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


def _part(claim: Claim, laboratory: Laboratory, arm: str, settings: Any, before: dict[str, Figures]) -> dict[str, Any]:
    begun = time.monotonic()
    laboratory.key = f"{claim.name} {arm}"
    seed_everything(derive_seed(laboratory.seed, claim.name, arm))
    figures = claim.measure(laboratory, arm, settings, before)
    found = machine(laboratory.accelerator.device)
    return {
        "seed": laboratory.seed,
        "arm": arm,
        "figures": json.loads(json.dumps(figures)),
        "seconds": round(time.monotonic() - begun, 2),
        "machine": {name: found[name] for name in ("processor", "cores", "memory_bytes", "threads", "device")},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _read_part(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except ValueError:
        raise RunError(
            f"{path}: this record is damaged. Delete it; the same command then runs that part again."
        ) from None


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

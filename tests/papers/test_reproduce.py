"""Running a claim: parts that are kept, interruptions, verdicts, and what a result says of itself."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from penjing.errors import DataError, RunError, SettingError
from penjing.papers import CLAIMS, claim_named, parts, reproduce, result_path
from penjing.papers.claim import Arms, Check, Claim, Figures, _meaning
from penjing.papers.laboratory import Laboratory
from penjing.papers.page import page_text
from penjing.papers.pictures import dots
from penjing.settings import Settings

RUNS: list[tuple[int, str]] = []


class Weighing(Settings):
    offset: float = 1.0


def _measure(laboratory: Laboratory, arm: str, settings: Weighing, before: Arms) -> Figures:
    RUNS.append((laboratory.seed, arm))
    if arm == "second":
        return {"weight": before["first"]["weight"] + settings.offset}
    return {"weight": float(laboratory.seed)}


def _picture(found: Mapping[int, Arms], settings: Any) -> Any:
    rows = [{"arm": arm, "weight": f["weight"]} for arms in found.values() for arm, f in arms.items()]
    return dots(rows, "weight", title="weights")


def claim(offset: float = 1.0) -> Claim:
    return Claim(
        name="weighing",
        paper="Nobody 1900",
        says="The second weighs more.",
        scaled="Not at all.",
        data=(),
        settings={"full": Weighing(offset=offset), "quick": Weighing(offset=offset / 2)},
        arms=lambda settings: ("first", "second"),
        measure=_measure,
        checks=lambda settings: (
            Check(
                "the second weighs more",
                "1",
                lambda arms: arms["second"]["weight"] - arms["first"]["weight"],
                0.5,
                "kg",
            ),
        ),
        picture=_picture,
        judges=("penjing.papers.judge",),
    )


@pytest.fixture(autouse=True)
def _none_run() -> None:
    RUNS.clear()


def test_a_result_has_its_verdict_seeds_settings_versions_and_a_picture(tmp_path: Path) -> None:
    result = reproduce(claim(), out=tmp_path)
    assert result == json.loads(result_path(claim(), "full", tmp_path).read_text())
    assert result["verdict"] == "holds" and result["seeds"] == [0, 1, 2]
    assert result["checks"][0]["differences"] == [1.0, 1.0, 1.0]
    assert result["figures"]["2"]["second"]["weight"] == 3.0
    assert result["settings"] == {"offset": 1.0} and result["versions"]["torch"] and result["machine"]["threads"]
    assert (tmp_path / "weighing.png").read_bytes().startswith(b"\x89PNG")
    assert [(seed, arm) for seed in range(3) for arm in ("first", "second")] == RUNS


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="time is up at seed 0, first"):
        reproduce(claim(), out=tmp_path, seconds=-1.0)
    reproduce(claim(), out=tmp_path, seeds=[0])
    RUNS.clear()
    result = reproduce(claim(), out=tmp_path)
    assert [seed for seed, _ in RUNS] == [1, 1, 2, 2]
    assert result["verdict"] == "holds"
    RUNS.clear()
    reproduce(claim(offset=2.0), out=tmp_path)  # other settings: other parts
    assert len(RUNS) == 6


def test_precision_is_part_of_the_result_and_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduce(claim(), out=tmp_path)
    RUNS.clear()
    monkeypatch.setattr(parts, "Laboratory", lambda seed, precision, **rest: Laboratory(seed, **rest))
    result = reproduce(claim(), precision="bf16", out=tmp_path)  # one process cannot change Accelerate's precision
    assert len(RUNS) == 6 and result["precision"] == "bf16"
    assert "trained in bf16; " in page_text({**dict.fromkeys(CLAIMS), "huffman": result}, tmp_path)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that know this file's claim."""
    monkeypatch.setattr(parts, "get_context", lambda how: get_context("fork"))
    monkeypatch.setattr("penjing.papers.claim_named", lambda name: claim())


@pytest.mark.usefixtures("forked")
def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    alone = reproduce(claim(), out=tmp_path / "alone")
    RUNS.clear()
    together = reproduce(claim(), out=tmp_path / "together", workers=2)
    assert not RUNS  # nothing was run here
    assert together["figures"] == alone["figures"] and together["verdict"] == "holds"
    for part in (tmp_path / "together").rglob("seed-1-*.json"):
        part.unlink()
    assert reproduce(claim(), out=tmp_path / "together", workers=8)["figures"] == alone["figures"]
    assert not RUNS


@pytest.mark.usefixtures("forked")
def test_a_process_that_fails_ends_all_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(laboratory: Laboratory, arm: str, settings: Weighing, before: Arms) -> Figures:
        if laboratory.seed == 1 and arm == "second":
            raise DataError("the scales are not there")
        if laboratory.seed == 2:
            time.sleep(60)
        return {"weight": 0.0}

    failing = replace(claim(), measure=measure)
    monkeypatch.setattr("penjing.papers.claim_named", lambda name: failing)
    begun = time.monotonic()
    with pytest.raises(DataError, match="the scales are not there"):
        reproduce(failing, seeds=[2, 1], out=tmp_path, workers=2)
    assert time.monotonic() - begun < 30
    assert [path.name for path in tmp_path.rglob("seed-*.json")] == ["seed-1-first.json"]
    dying = replace(claim(), measure=lambda *given: os._exit(9))
    monkeypatch.setattr("penjing.papers.claim_named", lambda name: dying)
    with pytest.raises(RunError, match="weighing: a process ended with code 9, often for want of memory"):
        reproduce(dying, seeds=[0], out=tmp_path / "dying", workers=2)
    with pytest.raises(RunError, match="time is up at seed 0, first"):
        reproduce(claim(), seeds=[0], out=tmp_path / "late", workers=2, seconds=-1.0)


def test_what_measures_times_runs_alone(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="weighing measures times, which other work on the machine would change"):
        reproduce(replace(claim(), timed=True), out=tmp_path, workers=2)


def test_failures_and_too_few_seeds_are_said(tmp_path: Path) -> None:
    assert reproduce(claim(offset=0.1), out=tmp_path)["verdict"] == "fails"
    assert reproduce(claim(), seeds=[0, 1], out=tmp_path)["verdict"] == "undecided"
    quick = reproduce(claim(), profile="quick", out=tmp_path)
    assert quick["verdict"] == "indicative"
    assert quick["seeds"] == [0]
    assert quick["checks"][0]["low"] is None
    assert (tmp_path / "quick" / "weighing.json").exists()


def test_a_damaged_part_names_itself(tmp_path: Path) -> None:
    reproduce(claim(), out=tmp_path)
    part = next((tmp_path / "parts").rglob("seed-1-first.json"))
    part.write_text('{"figures": {"wei')
    with pytest.raises(RunError, match=r"seed-1-first\.json: this record is damaged\. Delete it"):
        reproduce(claim(), out=tmp_path)


def test_the_code_hash_follows_what_code_does() -> None:
    source = '"""What it is."""\n\n\ndef f(x: int) -> int:\n    """Twice."""\n    return 2 * x\n'
    assert _meaning(source) == _meaning(source.replace("Twice", "Two times").replace("2 * x", "2*x  # twice"))
    assert _meaning(source) != _meaning(source.replace("2 * x", "3 * x"))
    assert _meaning(source) == _meaning(source + "\n\ndef picture() -> int:\n    return 1\n\n\nCLAIM = f(2)\n")


def test_unknown_names_and_missing_data_are_told() -> None:
    with pytest.raises(SettingError, match='no claim "lottery"; did you mean "lottery-ticket"'):
        claim_named("lottery")
    with pytest.raises(DataError, match="the data set mnist is needed; give the folder where it lies with --data"):
        Laboratory(0).task("mnist")
    with pytest.raises(SettingError, match='no data set "minst"; did you mean "mnist"'):
        Laboratory(0).task("minst")
    with pytest.raises(SettingError, match='the arm that leaves "dense" has not been run for seed 0'):
        Laboratory(0).left("dense")


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_well_formed(name: str) -> None:
    found = claim_named(name)
    assert found.name == name and found.seeds >= 3
    assert len(found.code_hash()) == 12
    for profile in ("full", "quick"):
        settings = found.settings[profile]
        arms = found.arms(settings)
        assert len(set(arms)) == len(arms) > 1
        checks = found.checks(settings)
        assert checks and len({check.says for check in checks}) == len(checks)
    assert found.settings_hash("full") != found.settings_hash("quick")


RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("name", CLAIMS)
def test_results_older_than_the_code_they_judge_are_flagged_on_the_page(name: str) -> None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{name} has no result yet; penjing reproduce {name} makes one")
    result, found = json.loads(path.read_text()), claim_named(name)
    page = (RESULTS.parent / "docs" / "claims.md").read_text()
    flagged = f"[{name}](#{name}) | **{result['verdict']} (older than the code)**" in page
    assert flagged == (result["code_hash"] != found.code_hash()), (
        f"results/{name}.json and the code have drifted apart: penjing reproduce {name}, then --page docs/claims.md"
    )
    assert len(result["seeds"]) >= 3 and result["profile"] == "full"


def test_a_page_has_every_claim() -> None:
    results = dict.fromkeys(CLAIMS)
    assert all(name in page_text(results, Path("results")) for name in CLAIMS)

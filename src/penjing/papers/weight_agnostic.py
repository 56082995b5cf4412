"""Topologies that work before any weight is trained, whatever one weight all connections share."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from penjing.papers.claim import Arms, Check, Claim, Figures
from penjing.papers.laboratory import Laboratory
from penjing.papers.pictures import dots, side_by_side
from penjing.pruning.weight_agnostic import (
    SearchSettings,
    SwingUpTrial,
    Trial,
    dense,
    digits_search,
    digits_trial,
    search,
    weigh_digits,
    weigh_swing_up,
)
from penjing.settings import Settings
from penjing.training.seeding import derive_seed

DIGITS, SWING_UP, FIXED = "digits", "swing-up", "fixed dense network"


class Experiment(Settings):
    """scikit-learn's digits of 8 x 8, and cart-pole swing-up."""

    label = "weight-agnostic experiment"
    population: int = 64
    digits_generations: int = 500
    swing_up_generations: int = 256
    hidden: tuple[int, ...] = Field(default=(32,), description="of the dense network beside it")


def arms(settings: Experiment) -> tuple[str, ...]:
    """A search for each task, and a dense network that nobody searched."""
    return (DIGITS, SWING_UP, FIXED)


def measure(laboratory: Laboratory, arm: str, settings: Experiment, before: Arms) -> Figures:
    """What a topology is worth with weights drawn from U(-2, 2), on data or episodes that nothing was chosen by."""
    generator = np.random.default_rng(derive_seed(laboratory.seed, arm))
    if arm == FIXED:
        return _plain(asdict(weigh_digits(dense(64, settings.hidden, 10), digits_trial(), generator)))
    is_digits = arm == DIGITS
    generations = settings.digits_generations if is_digits else settings.swing_up_generations
    state_file: Path | None = None
    if laboratory.folder is not None:
        laboratory.folder.mkdir(parents=True, exist_ok=True)
        state_file = laboratory.folder / f"search-{laboratory.seed}-{arm}.npz"
    trial: Trial = digits_trial() if is_digits else SwingUpTrial()
    with laboratory.reporter.bar(arm, generations) as bar:
        state = search(
            trial,
            (digits_search if is_digits else SearchSettings)(population=settings.population, seed=laboratory.seed),
            generations,
            file=state_file,
            progress=lambda state: bar.advance(1, f"reward {state.history[-1].champion:.3g}"),
        )
    assert state.champion is not None
    worth = (
        weigh_digits(state.champion, digits_trial(), generator)
        if is_digits
        else weigh_swing_up(state.champion, generator)
    )
    return _plain(asdict(worth))


def _plain(worth: Mapping[str, Any]) -> Figures:
    return {name: None if value is None else float(value) for name, value in worth.items()}


def checks(settings: Experiment) -> tuple[Check, ...]:
    """Scaled-down floors, and that weights drawn one by one do not work."""
    own = "weights drawn one by one: 57 of 932 (recalled)"
    return (
        Check(
            "digits: with one random weight for all connections, at least 50 % right on average",
            "MNIST: 82.0 ± 18.7 %",
            lambda arms: 100 * arms[DIGITS]["shared_mean"],
            50.0,
            "%",
        ),
        Check(
            "digits: with the best shared weight at least 70 % right",
            "MNIST: 91.9 %",
            lambda arms: 100 * arms[DIGITS]["best"],
            70.0,
            "%",
        ),
        Check(
            "digits: the answers of several shared weights together are at least as good as one on average",
            "MNIST: 91.6 against 82.0 %",
            lambda arms: 100 * (arms[DIGITS]["ensemble"] - arms[DIGITS]["shared_mean"]),
        ),
        Check(
            "digits: fewer than half of the connections of a linear classifier",
            "MNIST: 1,849 of 2,560 (recalled)",
            lambda arms: 320 - arms[DIGITS]["connections"],
            unit="connections",
        ),
        Check(
            "digits: a dense network with one random weight for all is at most 20 % right",
            "chance",
            lambda arms: 20 - 100 * arms[FIXED]["shared_mean"],
            unit="%",
        ),
        Check(
            "swing-up: with one random weight, at least 250 of 1,000 on average",
            "515 ± 58 (recalled)",
            lambda arms: arms[SWING_UP]["shared_mean"],
            250.0,
            "points",
        ),
        Check(
            "swing-up: with the best shared weight at least 500",
            "723 ± 16 (recalled)",
            lambda arms: arms[SWING_UP]["best"],
            500.0,
            "points",
        ),
        Check(
            "swing-up: weights drawn one by one reach less than 0.4 times as much as a shared one",
            own,
            lambda arms: 0.4 * arms[SWING_UP]["shared_mean"] - arms[SWING_UP]["own_mean"],
            unit="points",
        ),
    )


def picture(found: Mapping[int, Arms], settings: Experiment) -> Any:
    """What the topologies are worth under several kinds of weights."""
    kinds = {
        "best": "best shared weight",
        "shared_mean": "random shared weights",
        "own_mean": "weights drawn one by one",
    }
    charts = []
    for arm, value, factor in (
        (DIGITS, "test accuracy (%)", 100.0),
        (SWING_UP, "reward of 1000", 1.0),
    ):
        rows = [
            {"arm": name, value: factor * arms_of_seed[arm][kind]}
            for arms_of_seed in found.values()
            for kind, name in kinds.items()
        ]
        if arm == DIGITS:
            rows += [
                {"arm": "dense network, random shared", value: factor * arms_of_seed[FIXED]["shared_mean"]}
                for arms_of_seed in found.values()
            ]
        charts.append(dots(rows, value, title=arm, order=list(kinds.values())))
    return side_by_side(*charts)


CLAIM = Claim(
    name="weight-agnostic",
    paper="Gaier and Ha 2019, Weight Agnostic Neural Networks, arXiv:1906.04358",
    says="A search over topologies alone finds networks that solve a task with one random weight shared by all connections.",
    scaled="scikit-learn's digits of 8 x 8 with 64 topologies and 500 generations instead of MNIST with 960 and 4,096; "
    "swing-up with 64 and 256 "
    "instead of 192 and 1,024.",
    data=(),
    settings={"full": Experiment(), "quick": Experiment(population=32, digits_generations=60, swing_up_generations=20)},
    arms=arms,
    measure=measure,
    checks=checks,
    picture=picture,
    judges=(
        "penjing.pruning.weight_agnostic.cart_pole",
        "penjing.pruning.weight_agnostic.digits",
        "penjing.pruning.weight_agnostic.evaluate",
        "penjing.pruning.weight_agnostic.ranking",
        "penjing.pruning.weight_agnostic.search",
        "penjing.pruning.weight_agnostic.topology",
        "penjing.pruning.weight_agnostic.weighing",
    ),
)

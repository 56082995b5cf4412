"""The search: that it improves, that it can be interrupted, and how it breeds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from penjing.errors import RunError, SettingError
from penjing.pruning.weight_agnostic.digits import accuracy, digits_search, digits_trial, ensemble_accuracy, nll
from penjing.pruning.weight_agnostic.evaluate import evaluate
from penjing.pruning.weight_agnostic.search import (
    SearchSettings,
    advance,
    begin,
    breed,
    load_state,
    save_state,
    search,
    sound,
)
from penjing.pruning.weight_agnostic.topology import Topology, minimal

Grow = Callable[..., Topology]
SMALL = SearchSettings(population=16, initial_enabled=0.05, seed=3)


@dataclass(frozen=True)
class Parity:
    """Outputs near the product of two signs, for any weight."""

    n_inputs: int = 2
    n_outputs: int = 1

    def rewards(self, topologies, weights, generator, *, thorough=False):  # type: ignore[no-untyped-def]
        x = generator.choice([-1.0, 1.0], size=(32, 2))
        errors = [np.abs(evaluate(t, x, weights)[..., 0] - x.prod(1)).mean(-1) for t in topologies]
        return -np.stack(errors)


def test_digits_improve_in_thirty_generations() -> None:
    trial = digits_trial(batch=400)
    state = search(trial, digits_search(population=24, seed=0), 30)
    champion = state.champion
    assert champion is not None
    assert state.history[-1].champion > state.history[0].champion + 0.05
    assert all(a.champion <= b.champion for a, b in zip(state.history, state.history[1:], strict=False))
    thorough = trial.rewards([champion], SMALL.weights, np.random.default_rng(9), thorough=True).mean()
    assert thorough == state.history[-1].champion


def test_an_interrupted_search_ends_as_the_whole_one_bit_for_bit(tmp_path: Path) -> None:
    whole = search(Parity(), SMALL, 12)
    file = tmp_path / "search.npz"
    for end in (1, 5, 12):
        parts = search(Parity(), SMALL, end, file=file)
    assert parts.population == whole.population
    assert (parts.champion, parts.history) == (whole.champion, whole.history)
    save_state(whole, tmp_path / "whole.npz")
    assert file.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_progress_is_told_after_every_generation(tmp_path: Path) -> None:
    told: list[int] = []
    search(Parity(), SMALL, 3, file=tmp_path / "s.npz", progress=lambda state: told.append(state.generation))
    search(Parity(), SMALL, 5, file=tmp_path / "s.npz", progress=lambda state: told.append(state.generation))
    assert told == [1, 2, 3, 4, 5]


def test_a_state_with_other_settings_or_no_state_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.npz"
    save_state(begin(Parity(), SMALL), file)
    assert load_state(file).champion is None
    with pytest.raises(RunError, match="seed 3 there, 4 now"):
        search(Parity(), SMALL.model_copy(update={"seed": 4}), 1, file=file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(RunError, match="not the state of a search"):
        load_state(file)


def test_another_seed_is_another_search() -> None:
    other = SMALL.model_copy(update={"seed": 4})
    assert search(Parity(), SMALL, 3).population != search(Parity(), other, 3).population


def test_the_elite_lives_on_and_every_child_differs_by_one_mutation() -> None:
    state = advance(begin(Parity(), SMALL), Parity())
    rewards = Parity().rewards(state.population, SMALL.weights, np.random.default_rng(0))
    following = breed(state.population, rewards, SMALL, np.random.default_rng(1))
    assert len(following) == SMALL.population
    elite = int(SMALL.elite * SMALL.population)
    assert all(any(member == old for old in state.population) for member in following[:elite])
    for child in following[elite:]:
        sizes = [(child.n_nodes - p.n_nodes, child.n_connections - p.n_connections) for p in state.population]
        assert any(grown in ((0, 0), (0, 1), (1, 1)) for grown in sizes)


def test_smaller_of_two_equal_ones_is_the_elite(grown: Grow) -> None:
    large, small = grown(1, 30, 2, 1), minimal(2, 1, 0.0, np.random.default_rng(0))
    settings = SearchSettings(population=2, elite=0.5, by_size=1.0)
    following = breed([large, small], np.zeros((2, 6)), settings, np.random.default_rng(0))
    assert following[0] == small


def test_no_connection_divides_by_nothing() -> None:
    empty = Topology(2, 1, [0] * 4, [1], [3], [False])
    other = minimal(2, 1, 1.0, np.random.default_rng(0))
    settings = SearchSettings(population=4)
    assert len(breed([empty, other] * 2, np.zeros((4, 6)), settings, np.random.default_rng(0))) == 4


def test_rewards_that_are_no_numbers_are_the_lowest() -> None:
    rewards = sound(np.array([np.nan, -np.inf, np.inf, -5.0]))
    assert np.isfinite(rewards).all() and (rewards[:3] < -5).all()


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="gaussian"):
        SearchSettings(activations=("gausian",))
    with pytest.raises(SettingError, match="population"):
        SearchSettings(population=1)


def test_nll_and_accuracy_are_those_of_torch() -> None:
    import torch
    import torch.nn.functional as F

    logits, labels = np.random.default_rng(0).normal(size=(3, 20, 10)) * 50, np.arange(20) % 10
    expected = [F.cross_entropy(torch.tensor(part), torch.tensor(labels)).item() for part in logits]
    np.testing.assert_allclose(nll(logits, labels), expected)
    np.testing.assert_allclose(accuracy(logits, labels), (logits.argmax(-1) == labels).mean(1))
    shares = torch.softmax(torch.tensor(logits), -1).mean(0)
    assert ensemble_accuracy(logits, labels) == float((shares.argmax(-1).numpy() == labels).mean())


def test_no_reward_looks_at_the_held_out_part() -> None:
    trial = digits_trial()
    assert (len(trial.train_y), len(trial.test_y)) == (1347, 450)
    rows = {row.tobytes() for row in trial.train_x}
    assert not any(row.tobytes() in rows for row in trial.test_x)

"""The equations of motion: energy, and a trajectory of small steps; episodes against a loop that follows the docstring."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from penjing.pruning.weight_agnostic import cart_pole
from penjing.pruning.weight_agnostic.cart_pole import SwingUpTrial, accelerations, starts, swing_up, swing_up_own
from penjing.pruning.weight_agnostic.evaluate import evaluate
from penjing.pruning.weight_agnostic.topology import Topology

Grow = Callable[..., Topology]
M, m, l, g = cart_pole.CART, cart_pole.POLE, cart_pole.LENGTH, cart_pole.GRAVITY  # noqa: E741


def energy(state: np.ndarray) -> np.ndarray:
    """Of a cart and a uniform rod whose centre is at (x - l/2 sin theta, l/2 cos theta), from their velocities."""
    _, v, theta, omega = state
    centre_v = (v - l / 2 * np.cos(theta) * omega) ** 2 + (l / 2 * np.sin(theta) * omega) ** 2
    return M * v**2 / 2 + m * centre_v / 2 + m * l**2 / 12 * omega**2 / 2 + m * g * l / 2 * np.cos(theta)


def motion(force: float, friction: float) -> Callable[[float, np.ndarray], list[float]]:
    def derivative(_: float, state: np.ndarray) -> list[float]:
        a, alpha = accelerations(state[1], state[2], state[3], force, friction)
        return [state[1], a, state[3], alpha]

    return derivative


def solved(state: list[float], seconds: float, force: float, friction: float) -> np.ndarray:
    times = np.linspace(0, seconds, 101)
    return solve_ivp(motion(force, friction), (0, seconds), state, t_eval=times, rtol=1e-11, atol=1e-11).y


def test_without_friction_and_force_energy_stays() -> None:
    path = solved([0.0, 0.3, 2.0, -1.0], 10.0, 0.0, 0.0)
    assert np.ptp(path[2]) > 2  # it swings
    np.testing.assert_allclose(energy(path), energy(path[:, :1])[0], rtol=1e-7)


def test_a_force_does_work_on_the_cart_and_friction_takes_it() -> None:
    path = solved([0.0, 0.3, 2.0, -1.0], 1.0, 3.0, 0.1)
    times = np.linspace(0, 1, 101)
    work = 3.0 * (path[0, -1] - path[0, 0]) - 0.1 * np.trapezoid(path[1] ** 2, times)
    assert energy(path)[-1] - energy(path)[0] == pytest.approx(work, abs=1e-4)


def test_a_small_swing_has_the_period_of_a_rod_on_a_free_cart() -> None:
    """Linearised at hanging: omega^2 = 3 g (M + m) / (2 l (M + m) - 1.5 m l)."""
    omega = math.sqrt(3 * g * (M + m) / (2 * l * (M + m) - 1.5 * m * l))
    path = solved([0.0, 0.0, math.pi + 1e-3, 0.0], 2 * math.pi / omega, 0.0, 0.0)
    assert path[2, -1] == pytest.approx(math.pi + 1e-3, abs=1e-7)
    assert path[2, 50] == pytest.approx(math.pi - 1e-3, abs=1e-7)


def by_hand(
    topology: Topology, weight: float, start: np.ndarray, step: float, n_steps: int
) -> tuple[float, np.ndarray]:
    """An episode by the docstring of `cart_pole`."""
    (x, v, theta, omega), total = start.tolist(), 0.0
    for _ in range(n_steps):
        seen = [[x, v, math.cos(theta), math.sin(theta), omega]]
        action = max(-1.0, min(1.0, float(evaluate(topology, seen, [weight])[0, 0, 0])))
        s, c = math.sin(theta), math.cos(theta)
        a = (4 * 10 * action - 4 * 0.1 * v - 2 * m * l * omega**2 * s + 3 * m * g * s * c) / (
            4 * (M + m) - 3 * m * c * c
        )
        alpha = 3 / (2 * l) * (g * s + a * c)
        x, v, theta, omega = x + step * v, v + step * a, theta + step * omega, omega + step * alpha
        total += (math.cos(theta) + 1) / 2 * math.cos(math.pi * x / (2 * 2.4))
        if abs(x) > 2.4:
            break
    return total, np.array([x, v, theta, omega])


@pytest.mark.parametrize("seed", range(4))
def test_episodes_of_many_weights_are_each_as_if_alone(grown: Grow, seed: int) -> None:
    topology = grown(seed, 25, 5, 1)
    states = starts(2, np.random.default_rng(seed))
    rewards = swing_up(topology, [-1.5, 0.4], states)
    expected = [[by_hand(topology, w, start, 0.01, 1000)[0] for start in states] for w in (-1.5, 0.4)]
    # chaotic: rounding grows along an episode, so a swinging pole is compared loosely
    np.testing.assert_allclose(rewards, expected, rtol=1e-3, atol=1e-2)
    own = np.full((1, len(topology.source)), 0.4)
    np.testing.assert_allclose(swing_up_own(topology, own, states)[0], rewards[1], rtol=1e-3, atol=1e-2)


def test_the_episode_s_steps_are_near_the_true_motion() -> None:
    """A constant push: the bias alone, action 0.1."""
    topology = Topology(5, 1, [0] * 7, [0], [6], [True])
    start = np.array([0.0, 0.0, math.pi - 0.3, 0.0])
    true = solved(start.tolist(), 0.5, 1.0, 0.1)[:, -1]
    errors = [abs(by_hand(topology, 0.1, start, 0.5 / n, n)[1] - true).max() for n in (50, 100, 200, 3200)]
    assert errors[0] < 0.1 and errors[-1] < 2e-3
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.3)  # first order
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.2)


def test_an_episode_ends_off_the_track() -> None:
    """Full force to one side: 2.4 m in about 0.7 s, in which a hanging pole earns little."""
    topology = Topology(5, 1, [0] * 7, [0], [6], [True])
    still = np.array([[0.0, 0.0, math.pi, 0.0]])
    assert swing_up(topology, [2.0], still)[0, 0] < 100
    assert swing_up(topology, [0.0], still)[0, 0] == pytest.approx(0, abs=1e-6)


def test_all_topologies_see_the_same_episodes(grown: Grow) -> None:
    trial, pair = SwingUpTrial(), [grown(1, 10, 5, 1), grown(2, 10, 5, 1)]
    both = trial.rewards(pair, [0.5, 1.0], np.random.default_rng(4))
    alone = trial.rewards(pair[1:], [0.5, 1.0], np.random.default_rng(4))
    np.testing.assert_array_equal(both[1], alone[0])

"""A pole hangs from a cart and is to be swung up and kept there, from the equations of motion.

State: x (m), its speed, the angle theta of the pole from upright (rad), its speed. The pole is a uniform rod of length l and
mass m on a cart of mass M that a force F pushes and friction b holds. With s = sin theta, c = cos theta:

    x''     = (4F - 4 b x' - 2 m l theta'^2 s + 3 m g s c) / (4 (M + m) - 3 m c^2)
    theta'' = (3 / (2 l)) (g s + x'' c)
    M = m = 0.5 kg, l = 0.6 m, g = 9.82 m/s^2, b = 0.1 N s/m, F = 10 N times an action in [-1, 1]

A step of Euler's method of 0.01 s, up to 1000 of them. The pole starts near hanging, each number of the state N(., 0.2). Each
step gives (cos theta + 1) / 2 * cos(pi x / 2 x_max); the episode is over beyond x_max = 2.4 m.

Source: Deisenroth and Rasmussen 2011 (PILCO), whose cart-pole it is; reward and start as in Gaier and Ha 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from penjing.pruning.weight_agnostic.evaluate import feed_, plan
from penjing.pruning.weight_agnostic.topology import Topology

CART, POLE, LENGTH, GRAVITY, FRICTION = 0.5, 0.5, 0.6, 9.82, 0.1
FORCE, STEP, X_MAX, MAX_STEPS = 10.0, 0.01, 2.4, 1000
_START = np.array([0.0, 0.0, np.pi, 0.0])
_SPREAD = 0.2
_THOROUGH = 32


@dataclass(frozen=True)
class SwingUpTrial:
    """The reward is the sum over an episode's steps, a mean over episodes; 1000 at most.

    Attributes:
        episodes: that one generation sees.
    """

    episodes: int = 3
    n_inputs: int = 5
    n_outputs: int = 1

    def rewards(
        self,
        topologies: Sequence[Topology],
        weights: Sequence[float],
        generator: np.random.Generator,
        *,
        thorough: bool = False,
    ) -> NDArray[np.float64]:
        """See `search.Trial`; thorough is 32 episodes."""
        states = starts(_THOROUGH if thorough else self.episodes, generator)
        return np.stack([swing_up(topology, weights, states).mean(1) for topology in topologies])


def starts(n: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """States near hanging at rest, (n, 4)."""
    return _START + _SPREAD * generator.standard_normal((n, 4))


def swing_up(topology: Topology, weights: ArrayLike, states: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reward of whole episodes under shared weights.

    Args:
        weights: (weights,).
        states: (episodes, 4), where they begin.
    Returns: (weights, episodes).
    """
    values = np.asarray(weights, dtype=np.float64)
    lanes = np.repeat(values, len(states))[None]
    return _run(topology, lanes, np.tile(states, (len(values), 1))).reshape(len(values), len(states))


def swing_up_own(topology: Topology, weights: NDArray[np.float64], states: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `swing_up`, where each connection has a weight of its own.

    Args:
        weights: (sets, genes).
    Returns: (sets, episodes).
    """
    used = weights[:, plan(topology).genes].T  # (connections, sets)
    lanes = np.repeat(used, len(states), axis=1)
    return _run(topology, lanes, np.tile(states, (len(weights), 1))).reshape(len(weights), len(states))


def _run(topology: Topology, lanes: NDArray[np.float64], states: NDArray[np.float64]) -> NDArray[np.float64]:
    work = plan(topology)
    output = int(work.outputs[0])
    rewards = np.zeros(len(states))
    state = np.ascontiguousarray(states.T)
    _episodes(
        work.nodes, work.begin, work.sources, work.activation, output, work.n_nodes,
        np.ascontiguousarray(lanes), state, MAX_STEPS, rewards,
    )  # fmt: skip
    return rewards


@njit(cache=True)
def accelerations(x_speed, theta, theta_speed, force, friction):  # type: ignore[no-untyped-def]
    """Of the cart (m/s^2) and of the pole (rad/s^2)."""
    s, c = np.sin(theta), np.cos(theta)
    push = 4 * (force - friction * x_speed) - 2 * POLE * LENGTH * theta_speed**2 * s + 3 * POLE * GRAVITY * s * c
    x_acceleration = push / (4 * (CART + POLE) - 3 * POLE * c * c)
    return x_acceleration, 1.5 / LENGTH * (GRAVITY * s + x_acceleration * c)


@njit(cache=True)
def _episodes(nodes, begin, sources, activation, output, n_nodes, weights, state, n_steps, rewards):  # type: ignore[no-untyped-def]
    """Run one episode a lane, all together; `state` (4, lanes) and `rewards` (lanes,) change in place."""
    n_lanes = state.shape[1]
    values = np.zeros((n_nodes, n_lanes))
    values[0] = 1.0
    alive = np.ones(n_lanes, dtype=np.bool_)
    left = n_lanes
    for _ in range(n_steps):
        for i in range(n_lanes):
            values[1, i] = state[0, i]
            values[2, i] = state[1, i]
            values[3, i] = np.cos(state[2, i])
            values[4, i] = np.sin(state[2, i])
            values[5, i] = state[3, i]
        feed_(nodes, begin, sources, activation, weights, values)
        for i in range(n_lanes):
            if not alive[i]:
                continue
            action = values[output, i]
            if not np.isfinite(action):
                action = 0.0
            force = FORCE * min(max(action, -1.0), 1.0)
            x_acceleration, acceleration = accelerations(state[1, i], state[2, i], state[3, i], force, FRICTION)
            state[0, i] += STEP * state[1, i]
            state[2, i] += STEP * state[3, i]
            state[1, i] += STEP * x_acceleration
            state[3, i] += STEP * acceleration
            rewards[i] += 0.5 * (np.cos(state[2, i]) + 1) * np.cos(0.5 * np.pi * state[0, i] / X_MAX)
            if abs(state[0, i]) > X_MAX:
                alive[i] = False
                left -= 1
        if left == 0:
            return

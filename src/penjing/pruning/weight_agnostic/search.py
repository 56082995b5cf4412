"""The search for topologies that work whatever their weight.

    population ── rewards under each shared weight ── rank ── elites stay, the worst go
         └──────── children: winners of tournaments, one mutation each ──────┘

Every generation draws from a generator of its own, seeded by (seed, generation): what happens in it depends on the population
alone, so a search that goes on from a saved state is the same, bit for bit.

Source: Gaier and Ha 2019, arXiv:1906.04358, section 3 and appendix.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from penjing.errors import RunError, SettingError
from penjing.files import write_atomically
from penjing.pruning.weight_agnostic.ranking import ranked
from penjing.pruning.weight_agnostic.topology import ACTIVATIONS, Topology, codes, minimal, mutate, pack, unpack
from penjing.settings import Settings

SERIES = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
"""The shared weights of the paper."""
_BREEDING = 1  # beside the numbers that the trial draws
_LOWEST = -1e30  # of a reward that is not a number


class Trial(Protocol):
    """What a topology is tried on."""

    @property
    def n_inputs(self) -> int:
        """Numbers that a topology is shown at once."""

    @property
    def n_outputs(self) -> int:
        """Numbers that it answers with."""

    def rewards(
        self,
        topologies: Sequence[Topology],
        weights: Sequence[float],
        generator: np.random.Generator,
        *,
        thorough: bool = False,
    ) -> NDArray[np.float64]:
        """The mean reward of each topology under each shared weight, (topologies, weights); larger is better.

        Args:
            generator: draws samples or episodes, the same for all topologies.
            thorough: on more of them, and on the same ones at each call.
        """


class SearchSettings(Settings):
    """How to search. The defaults are the paper's, for a smaller population.

    The four probabilities need not add up to 1.
    """

    population: int = Field(default=64, ge=2, description="topologies in one generation")
    weights: tuple[float, ...] = Field(default=SERIES, min_length=1, description="shared weights to try each with")
    activations: tuple[str, ...] = Field(default=ACTIVATIONS, description="what hidden nodes may compute")
    initial_enabled: float = Field(default=0.5, ge=0, le=1, description="fraction of input-output connections at first")
    insert_node: float = Field(default=0.25, ge=0, description="probability of this mutation")
    add_connection: float = Field(default=0.20, ge=0, description="probability of this mutation")
    change_activation: float = Field(default=0.50, ge=0, description="probability of this mutation")
    enable_connection: float = Field(default=0.05, ge=0, description="probability of this mutation")
    by_size: float = Field(
        default=0.8, ge=0, le=1, description="how often size is the second objective; else the maximum"
    )
    cull: float = Field(default=0.2, ge=0, lt=1, description="fraction that has no children")
    elite: float = Field(default=0.2, ge=0, lt=1, description="fraction that lives on unchanged")
    tournament: int = Field(default=8, ge=1, description="members of which the best becomes a parent")
    seed: int = Field(default=0, ge=0)

    @field_validator("activations")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        codes(value)
        return value

    @property
    def mutations(self) -> dict[str, float]:
        """Probability by name of `MUTATIONS`."""
        return {
            "insert_node": self.insert_node,
            "add_connection": self.add_connection,
            "change_activation": self.change_activation,
            "enable_connection": self.enable_connection,
        }


@dataclass(frozen=True)
class Generation:
    """What one generation was like.

    Attributes:
        mean: the best member's reward, a mean over the shared weights.
        median: the median member's.
        maximum: the largest reward of any member under any shared weight.
        champion: the champion's thorough reward so far, a mean over the shared weights.
        connections: the champion's.
    """

    mean: float
    median: float
    maximum: float
    champion: float
    connections: int


@dataclass(frozen=True)
class State:
    """Where a search stands, at the beginning of a generation.

    Attributes:
        settings: of the search.
        population: not yet tried.
        champion: the best by thorough reward so far; None before the first generation.
        history: of the generations that are over.
    """

    settings: SearchSettings
    population: tuple[Topology, ...]
    champion: Topology | None = None
    history: tuple[Generation, ...] = ()

    @property
    def generation(self) -> int:
        """The number of generations that are over."""
        return len(self.history)


def begin(trial: Trial, settings: SearchSettings) -> State:
    """The first population: no hidden nodes, some connections."""
    generator = np.random.default_rng(settings.seed)
    first = [
        minimal(trial.n_inputs, trial.n_outputs, settings.initial_enabled, generator)
        for _ in range(settings.population)
    ]
    return State(settings, tuple(first))


def advance(state: State, trial: Trial) -> State:
    """One generation further."""
    settings = state.settings
    seed = (settings.seed, state.generation)
    rewards = sound(trial.rewards(state.population, settings.weights, np.random.default_rng(seed)))
    means = rewards.mean(1)
    best = int(means.argmax())
    champion, champion_reward = state.champion, state.history[-1].champion if state.history else -np.inf
    candidate = state.population[best]
    if champion is None or candidate != champion:
        fresh = np.random.default_rng(settings.seed)
        again = float(sound(trial.rewards([candidate], settings.weights, fresh, thorough=True)).mean())
        if champion is None or again > champion_reward:
            champion, champion_reward = candidate, again
    generator = np.random.default_rng((*seed, _BREEDING))
    over = Generation(
        float(means[best]), float(np.median(means)), float(rewards.max()), champion_reward, champion.n_connections
    )
    return State(settings, breed(state.population, rewards, settings, generator), champion, (*state.history, over))


def breed(
    population: Sequence[Topology],
    rewards: NDArray[np.float64],
    settings: SearchSettings,
    generator: np.random.Generator,
) -> tuple[Topology, ...]:
    """The next population: the elite, then children.

    The rank is by non-dominated sorting on (mean reward, 1 / connections), or, less often, on (mean reward, largest reward).

    Args:
        rewards: (members, weights).
    """
    size = generator.random() < settings.by_size
    connections = np.array([max(member.n_connections, 1) for member in population])
    second = 1.0 / connections if size else rewards.max(1)
    order = ranked(np.stack([rewards.mean(1), second], axis=1))
    parents = order[: max(1, len(order) - int(settings.cull * len(order)))]
    elite = [population[i] for i in order[: int(settings.elite * len(order))]]
    activations = codes(settings.activations)
    children = []
    for _ in range(settings.population - len(elite)):
        winner = parents[generator.integers(len(parents), size=settings.tournament).min()]  # places are ranks
        children.append(mutate(population[winner], settings.mutations, activations, generator))
    return (*elite, *children)


def search(
    trial: Trial,
    settings: SearchSettings,
    generations: int,
    *,
    file: Path | None = None,
    progress: Callable[[State], None] | None = None,
) -> State:
    """Search until so many generations are over.

    Args:
        file: the state is saved here after each generation; where it is there already, the search goes on from it.
        progress: called after each generation.
    Raises: RunError: the file is of a search with other settings, or damaged.
    """
    state = load_state(file) if file is not None and file.exists() else begin(trial, settings)
    if state.settings != settings:
        given, there = settings.model_dump(), state.settings.model_dump()
        other = ", ".join(
            f"{name} {there[name]} there, {given[name]} now" for name in given if given[name] != there[name]
        )
        raise RunError(f"{file}: it is of a search with other settings: {other}. Give the same ones or another folder.")
    while state.generation < generations:
        state = advance(state, trial)
        if file is not None:
            save_state(state, file)
        if progress is not None:
            progress(state)
    return state


def sound(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewards with a very low number where they are not finite, so that all can be compared."""
    return np.where(np.isfinite(rewards), np.maximum(rewards, _LOWEST), _LOWEST)


def save_state(state: State, file: Path) -> None:
    """Write a state, whole or not at all."""
    topologies = [*state.population, *([state.champion] if state.champion is not None else [])]
    packed = [pack(topology) for topology in topologies]
    text = json.dumps(
        {
            "settings": state.settings.model_dump(mode="json"),
            "champion": state.champion is not None,
            "history": [asdict(generation) for generation in state.history],
        }
    )
    content = io.BytesIO()
    np.savez(
        content,
        text=np.frombuffer(text.encode(), dtype=np.uint8),
        sizes=np.stack([p["sizes"] for p in packed]),
        activation=np.concatenate([p["activation"] for p in packed]),
        connections=np.concatenate([p["connections"] for p in packed], axis=1),
    )
    write_atomically(file, content.getvalue())


def load_state(file: Path) -> State:
    """Read a state. Raises: RunError: it is not one."""
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            head = json.loads(arrays["text"].tobytes().decode())
            sizes, activation, connections = arrays["sizes"], arrays["activation"], arrays["connections"]
        nodes = np.split(activation, np.cumsum(sizes[:-1, 2]))
        genes = np.split(connections, np.cumsum(sizes[:-1, 3]), axis=1)
        found = [unpack(s, a, c) for s, a, c in zip(sizes, nodes, genes, strict=True)]
        champion = found.pop() if head["champion"] else None
        history = tuple(Generation(**generation) for generation in head["history"])
        return State(SearchSettings(**head["settings"]), tuple(found), champion, history)
    except (OSError, KeyError, TypeError, ValueError, IndexError, zipfile.BadZipFile, SettingError) as error:
        raise RunError(f"{file}: it is not the state of a search ({error}). Delete it to begin anew.") from error

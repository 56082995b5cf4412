"""Lottery tickets: small networks that train as well as the large one, from the weights that they began with.

    theta_0 ── train ── rank what is left ── keep the best ── back to theta_0 ── train ── ...

Source: Frankle and Carbin 2019, arXiv:1803.03635; rewinding to an early step instead, Frankle et al. 2020, arXiv:1912.05671.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor
from torch.nn.utils import parametrize

from penjing.errors import SettingError, nearest
from penjing.graph import Network, select
from penjing.pruning.masks import Masks, choose_masks
from penjing.pruning.ticket_actions import KEPT, REMOVED
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.representation import Mask, named_weights, represent_, representations
from penjing.sensitivity import Evidence, Weights
from penjing.shapes import Json
from penjing.training import Fit, Part, TrainedStage, Workbench
from penjing.training.seeding import derive_seed, seed_everything, seed_loader


def prunable(network: Network) -> dict[str, Tensor]:
    """The weights that a ticket leaves out of: matrices and filters of layers, as the layers use them, by full name."""
    layers = network.layers()
    return {
        full_name: getattr(owner, name).detach()
        for full_name, owner, name in named_weights(network)
        if full_name.rpartition(".")[0] in layers and getattr(owner, name).dim() > 1
    }


def all_kept(network: Network) -> Masks:
    """Masks from which nothing is missing yet."""
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in prunable(network).items()}


def rates_of(network: Network, rate: float, rates: Mapping[str, float]) -> dict[str, float]:
    """The fraction of the weights left that goes in a round, by weight.

    Args:
        rates: others for some layers, by pattern; the last that matches counts.
    Raises: SettingError: a pattern that matches nothing.
    """
    layers = {name.rpartition(".")[0]: network.get_submodule(name.rpartition(".")[0]) for name in prunable(network)}
    found = dict.fromkeys(layers, rate)
    for pattern, own in rates.items():
        found |= dict.fromkeys(select(layers.items(), (pattern,), "lottery-ticket: rates"), own)
    return {name: found[name.rpartition(".")[0]] for name in prunable(network)}


def next_masks(scores: Weights, masks: Masks, rates: Mapping[str, float], *, scope: str = "layer") -> Masks:
    """The masks after one more round: of the weights that are left, the least important go.

    Args:
        scores: by weight, see `weight_scores`.
        rates: by weight the fraction that goes; with scope "global" the mean of them, weighted by what is left.
        scope: "layer": each ranked by itself; "global": all together.
    """
    if scope == "global":
        left = {name: int(keep.sum()) for name, keep in masks.items()}
        goes = sum(rates[name] * n for name, n in left.items())
        total = sum(keep.numel() for keep in masks.values())
        return choose_masks(scores, 1 - (sum(left.values()) - goes) / total, scope="global", already=masks)[0]
    found: Masks = {}
    for name, keep in masks.items():
        sparsity = 1 - (1 - rates[name]) * float(keep.sum()) / keep.numel()
        found |= choose_masks({name: scores[name]}, sparsity, scope="layer", already={name: keep})[0]
    return found


@torch.no_grad()
def start_again_(
    network: Network,
    initial: Mapping[str, Tensor],
    masks: Masks,
    *,
    kept: str = "rewind",
    generator: torch.Generator | None = None,
) -> None:
    """Put everything back to where it began and the masks on top.

    Args:
        initial: a state dict of the network without masks.
        kept: what becomes of the weights that stay, see `ticket_actions.KEPT`.
    Raises: SettingError: the weights are those of another network.
    """
    generator = generator or torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, tensor in state.items():
        plain = _plain_name(name)
        if name.endswith(".keep"):
            continue
        if plain not in initial or initial[plain].shape != tensor.shape:
            raise SettingError(
                f"lottery-ticket: {plain} had another shape, or was not there, when the initial weights were kept. Put "
                f"this stage before "
                "stages that change the network's shape."
            )
        tensor.copy_(initial[plain])
    for full_name, owner, name in list(named_weights(network)):
        if full_name not in masks:
            continue
        keep = masks[full_name]
        value = KEPT[kept](initial[full_name].cpu(), keep.cpu(), generator)
        own = [part for part in representations(owner, name) if isinstance(part, Mask)]
        if own:
            own[0].keep.copy_(keep)
        else:
            represent_(owner, name, Mask(keep.to(getattr(owner, name).device)))
        owner.parametrizations[name].original.copy_(value)  # type: ignore[index, union-attr]


def _plain_name(name: str) -> str:
    """The name in a state dict that a weight has without representations."""
    return name.replace("parametrizations.", "").removesuffix(".original")


class Held(Part):
    """Keeps removed weights at given values instead of 0, while the others train.

    Args:
        masks: True where a weight trains.
        values: by weight, where the others stay.
    """

    def __init__(self, masks: Masks, values: Weights) -> None:
        self.masks, self.values = masks, values

    def start(self, fit: Fit) -> None:
        self._hold_(fit.network)

    def after_step(self, fit: Fit) -> None:
        self._hold_(fit.network)

    @torch.no_grad()
    def _hold_(self, network: Network) -> None:
        for full_name, keep in self.masks.items():
            path, _, name = full_name.rpartition(".")
            weight: Tensor = getattr(network.get_submodule(path), name)
            weight.copy_(torch.where(keep.to(weight.device), weight, self.values[full_name].to(weight.device)))


class LotteryTicket(TrainedStage):
    """Find a small network that trains well from its own beginning: train, leave out the least important, start again."""

    label: ClassVar[str] = "lottery-ticket"
    needs: ClassVar[tuple[str, ...]] = (
        "labels or a teacher",
        "a train stage before it, which keeps the initial weights",
    )
    rounds: int = Field(default=5, ge=1, description="how often: train, leave out, start again")
    rate: float = Field(default=0.2, gt=0, lt=1, description="fraction of the weights left that goes in each round")
    rates: dict[str, float] = Field(
        default={}, description="other fractions for some layers, by pattern; half for the last is usual"
    )
    scope: Literal["layer", "global"] = Field(
        default="layer", description="whether layers are ranked each by itself or together"
    )
    criterion: str = Field(
        default="large_final", description="what makes a weight worth keeping; see the weight scores"
    )
    rewind_to: int = Field(
        default=0, ge=0, description="the step to whose weights it goes back; the train stage's keep_steps must have it"
    )
    kept: str = Field(default="rewind", description="what becomes of kept weights: " + ", ".join(KEPT))
    removed: str = Field(default="zero", description="where removed weights are held: " + ", ".join(REMOVED))
    control: Literal["none", "random-mask", "one-shot"] = Field(
        default="none", description="instead of a ticket: masks drawn at random, or everything left out at once"
    )

    @field_validator("kept", "removed", "criterion")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        tables: dict[str | None, Collection[str]] = {"kept": KEPT, "removed": REMOVED, "criterion": WEIGHT_SCORES}
        table = tables[info.field_name]
        if value not in table:
            raise ValueError(f'there is no "{value}"; {nearest(value, table)}')
        return value

    @field_validator("rates")
    @classmethod
    def _fractions(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= rate < 1 for rate in value.values()):
            raise ValueError("each fraction must be at least 0 and less than 1")
        return value

    def planned_epochs(self) -> int:
        return self.epochs * (1 if self.control == "one-shot" else self.rounds)

    def apply(self, bench: Workbench) -> None:
        network = bench.network
        busy = [n for n, owner, name in named_weights(network) if representations(owner, name)]
        if busy:
            raise SettingError(f"{self.label}: {busy[0]} has a representation already; look for tickets before that.")
        initial = self._initial(bench)
        rates = rates_of(network, self.rate, self.rates)
        if self.control == "one-shot":
            rates = {name: 1 - (1 - rate) ** self.rounds for name, rate in rates.items()}
        masks, densities = all_kept(network), []
        for turn in range(1, 2 if self.control == "one-shot" else self.rounds + 1):
            final = {name: weight.clone() for name, weight in prunable(network).items()}
            masks = next_masks(self._scores(bench, initial), masks, rates, scope=self.scope)
            generator = torch.Generator().manual_seed(derive_seed(bench.seed, bench.key, turn, "kept"))
            parts = self.parts(bench)
            start_again_(network, initial, masks, kept=self.kept, generator=generator)
            if self.removed != "zero":
                values = {name: REMOVED[self.removed](initial[name], final[name]) for name in masks}
                _without_masks_(network)
                parts.append(Held(masks, values))
            bench.train(self.schedule(), parts, f"round-{turn}")
            densities.append(_density(masks))
        bench.facts |= {
            "density after each round": densities,
            "density": {name: float(keep.double().mean()) for name, keep in masks.items()},
        }
        if self.removed == "zero":
            bench.warn("a mask without structure: the file shrinks, the latency does not")
        else:
            bench.warn(
                "removed weights are held at values that are not 0: nothing becomes smaller, this is an experiment"
            )

    def _initial(self, bench: Workbench) -> dict[str, Tensor]:
        if self.rewind_to not in bench.kept:
            known = ", ".join(map(str, sorted(bench.kept))) or "none"
            raise SettingError(
                f"{self.label}: the weights after step {self.rewind_to} were not kept (kept: {known}). Put a train "
                f"stage first, with "
                f"keep_steps: [{self.rewind_to}]."
            )
        return bench.kept[self.rewind_to]

    def _scores(self, bench: Workbench, initial: Mapping[str, Tensor]) -> Weights:
        seed = derive_seed(bench.seed, bench.key, "scores")
        generator = torch.Generator().manual_seed(seed)
        seed_everything(seed)
        seed_loader(bench.task.train, seed)
        if self.control == "random-mask":
            return {n: torch.rand(w.shape, generator=generator) for n, w in prunable(bench.network).items()}
        evidence = Evidence(
            batches=lambda: bench.task.batches(bench.task.train, bench.accelerator.device),
            loss=lambda network, batch: bench.task.loss(network(*batch.args, **batch.kwargs), batch.labels),
            initial=dict(initial),
            generator=generator,
        )
        return WEIGHT_SCORES[self.criterion](bench.network, evidence)


def _without_masks_(network: Network) -> None:
    for _, owner, name in list(named_weights(network)):
        if parametrize.is_parametrized(owner, name):
            parametrize.remove_parametrizations(owner, name, leave_parametrized=False)


def _density(masks: Masks) -> Json:
    return sum(int(keep.sum()) for keep in masks.values()) / max(sum(keep.numel() for keep in masks.values()), 1)

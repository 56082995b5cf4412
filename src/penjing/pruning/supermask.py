"""A mask that is learned while no weight is trained: networks that are there before training.

    weight = w * m * scale,   m ~ Bernoulli(sigmoid(logit)), drawn anew in every pass; one draw is kept in the end

What is learned are probabilities, and many stay near a half: a draw does what was learned, while keeping all weights that are
kept more often than not is another network (LeNet-300-100 after 4 epochs: 95 and 57 % right).
Source: Zhou et al. 2019 (Deconstructing Lottery Tickets), arXiv:1905.01067, section 5.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.errors import SettingError
from penjing.graph import Network, select
from penjing.measurement import answer
from penjing.representation import Codebook, Mask, named_weights, represent_, representations
from penjing.training import TrainedStage, Workbench
from penjing.training.seeding import derive_seed


def signed_constant(weight: Tensor) -> Tensor:
    """sign(w) * std(w): all weights of a layer of one size. Zhou et al. 2019, section 4.3; 0 counts as positive."""
    return torch.where(weight < 0, -1.0, 1.0) * weight.detach().std()


class LearnedMask(nn.Module):
    """The parametrization under which a supermask is learned; `Supermask` replaces it by a `Mask` when it is done.

    The gradient passes the draw as if it were the probability: dL/dlogit = dL/dm * sigmoid'(logit) (straight-through).

    Args:
        shape: of the weight.
        rescale: multiply by (number of weights) / (number kept), anew in every pass (dynamic weight rescaling).
    """

    chosen: Tensor | None

    def __init__(self, shape: torch.Size, *, rescale: bool) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(shape))
        self.rescale = rescale
        self.register_buffer("chosen", None, persistent=False)

    def forward(self, original: Tensor) -> Tensor:
        if self.chosen is None:
            probability = torch.sigmoid(self.logits)
            mask = torch.bernoulli(probability.detach()) + probability - probability.detach()
        else:
            mask = self.chosen.to(original.dtype)
        return original * mask * self.scale(mask.detach())

    @torch.no_grad()
    def draw_(self, generator: torch.Generator | None = None) -> None:
        """Draw once, and stay with it in every pass from now on; all weights where the draw has none."""
        drawn = torch.bernoulli(torch.sigmoid(self.logits).cpu(), generator=generator).bool().to(self.logits.device)
        self.chosen = drawn if bool(drawn.any()) else torch.ones_like(drawn)

    def scale(self, mask: Tensor) -> Tensor | float:
        """What makes up for the weights that are missing; 1 without rescaling."""
        return mask.numel() / mask.sum().clamp_min(1.0) if self.rescale else 1.0


@torch.no_grad()
def learn_masks_(network: Network, layers: list[str], *, constant: bool, rescale: bool) -> None:
    """Put a mask to be learned on the weights of layers, and stop everything else from learning.

    Raises: SettingError: a weight has a representation already.
    """
    network.requires_grad_(False)
    for path in layers:
        layer = network.get_submodule(path)
        if representations(layer, "weight"):
            raise SettingError(f"supermask: the weight of {path} has a representation already; learn the mask first.")
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if constant:
            weight.copy_(signed_constant(weight))
        parametrize.register_parametrization(layer, "weight", LearnedMask(weight.shape, rescale=rescale), unsafe=True)
        layer.parametrizations["weight"].original.requires_grad_(False)  # type: ignore[index, union-attr]


def draw_masks_(network: Network, generator: torch.Generator | None = None) -> None:
    """Draw all masks that are being learned, and stay with them."""
    for module in network.modules():
        if isinstance(module, LearnedMask):
            module.draw_(generator)


@torch.no_grad()
def settle_masks_(network: Network, *, constant: bool) -> None:
    """Make of each learned mask a `Mask`, and a codebook of -c, 0 and c where all weights have one size.

    A mask that has not been drawn (`draw_masks_`) is drawn now.
    """
    for _, layer, name in list(named_weights(network)):
        stack = layer.parametrizations[name] if parametrize.is_parametrized(layer, name) else []  # type: ignore[index]
        learned = next((part for part in stack if isinstance(part, LearnedMask)), None)
        if learned is None:
            continue
        if learned.chosen is None:
            learned.draw_()
        keep = learned.chosen
        assert keep is not None
        scale = learned.scale(keep.float())
        parametrize.remove_parametrizations(layer, name, leave_parametrized=False)
        weight: Tensor = getattr(layer, name)
        weight.mul_(scale)
        weight.requires_grad_(True)
        represent_(layer, name, Mask(keep))
        if constant:
            size = float(weight.detach().abs().max())
            codes = torch.where(keep, torch.where(getattr(layer, name) < 0, 1, 2), 0)
            represent_(layer, name, Codebook(codes, torch.tensor([0.0, -size, size]), zero=True))
    network.requires_grad_(True)
    for _, layer, name in named_weights(network):
        if any(isinstance(part, Codebook) for part in representations(layer, name)):
            layer.parametrizations[name].original.requires_grad_(False)  # type: ignore[index, union-attr]


class Supermask(TrainedStage):
    """Learn which of the weights to keep, and train none of them."""

    label: ClassVar[str] = "supermask"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    lr: float = Field(default=0.1, gt=0, description="largest learning rate, of the masks' logits")
    layers: tuple[str, ...] = Field(default=("*",), description="which layers: names, globs, type:Class, !not-this")
    constant: bool = Field(default=False, description="first make all weights of a layer the same size, signs kept")
    rescale: bool = Field(default=True, description="make up for the missing weights by larger ones")
    draws: int = Field(default=10, ge=1, description="masks to draw; the best one on the validation set is kept")

    def apply(self, bench: Workbench) -> None:
        weighty = {path: layer for path, layer in bench.network.layers().items() if _has_matrix(layer)}
        chosen = select(weighty.items(), self.layers, f"{self.label}: layers")
        learn_masks_(bench.network, chosen, constant=self.constant, rescale=self.rescale)
        bench.train(self.schedule(), self.parts(bench))
        values = bench.decide("draws", lambda: self._values(bench))
        sign = 1 if bench.task.metric.higher_is_better else -1
        best = max(range(self.draws), key=lambda number: sign * values[number])
        draw_masks_(bench.network, self._generator(bench, best))
        settle_masks_(bench.network, constant=self.constant)
        bench.facts["draws"] = {"metric": bench.task.metric.name, "values": values}
        masks = {path: representations(bench.network.get_submodule(path), "weight")[0] for path in chosen}
        bench.facts["density"] = {path: mask.density for path, mask in masks.items() if isinstance(mask, Mask)}

    def _values(self, bench: Workbench) -> list[float]:
        """The metric on the validation set for each draw; zeros where there are no labels to judge by."""
        values = []
        with bench.reporter.bar(f"{self.label}: draws", self.draws) as bar:
            for number in range(self.draws):
                draw_masks_(bench.network, self._generator(bench, number))
                found = answer(bench.network, bench.task, bench.task.valid)
                metric = bench.task.metric
                scores = 0.0 if found.labels is None else metric.score(found.logits, found.labels)
                values.append(float(torch.as_tensor(scores).double().mean()))
                bar.advance(1)
        return values

    def _generator(self, bench: Workbench, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(bench.seed, bench.key, f"draw {number}"))


def _has_matrix(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1

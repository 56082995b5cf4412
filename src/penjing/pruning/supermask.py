"""A mask that is learned while no weight is trained: networks that are there before training.

    weight = w * m * scale,   m ~ Bernoulli(sigmoid(logit)) in training,   m = 1[logit > 0] afterwards

Source: Zhou et al. 2019 (Deconstructing Lottery Tickets), arXiv:1905.01067, section 5.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.errors import SettingError
from penjing.graph import Network, select
from penjing.representation import Codebook, Mask, named_weights, represent_, representations
from penjing.training import TrainedStage, Workbench


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

    def __init__(self, shape: torch.Size, *, rescale: bool) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(shape))
        self.rescale = rescale

    def forward(self, original: Tensor) -> Tensor:
        if self.training:
            probability = torch.sigmoid(self.logits)
            mask = torch.bernoulli(probability.detach()) + probability - probability.detach()
        else:
            mask = self.keep().to(original.dtype)
        return original * mask * self.scale(mask.detach())

    def keep(self) -> Tensor:
        """Which weights stay, bool: those that are kept more often than not; all where none is."""
        keep = self.logits.detach() > 0
        return keep if bool(keep.any()) else torch.ones_like(keep)

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


@torch.no_grad()
def settle_masks_(network: Network, *, constant: bool) -> None:
    """Make learned masks what they say: a `Mask`, and a codebook of -c, 0 and c where all weights have one size."""
    for _, layer, name in list(named_weights(network)):
        stack = layer.parametrizations[name] if parametrize.is_parametrized(layer, name) else []  # type: ignore[index]
        learned = next((part for part in stack if isinstance(part, LearnedMask)), None)
        if learned is None:
            continue
        keep = learned.keep()
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

    def apply(self, bench: Workbench) -> None:
        weighty = {path: layer for path, layer in bench.network.layers().items() if _has_matrix(layer)}
        chosen = select(weighty.items(), self.layers, f"{self.label}: layers")
        learn_masks_(bench.network, chosen, constant=self.constant, rescale=self.rescale)
        bench.train(self.schedule(), self.parts(bench))
        settle_masks_(bench.network, constant=self.constant)
        masks = {path: representations(bench.network.get_submodule(path), "weight")[0] for path in chosen}
        bench.facts["density"] = {path: mask.density for path, mask in masks.items() if isinstance(mask, Mask)}


def _has_matrix(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1

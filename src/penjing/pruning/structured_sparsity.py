"""Train under the group lasso, take out what became zero, train on.

Filters, channels and blocks that are zero are removed from the weights, the file and the clock; shapes that are zero inside a
filter stay as masks. Everything that is removed is proved to change no answer.
Source: Wen et al. 2016 (SSL), arXiv:1608.03665.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from penjing.errors import SettingError, SurgeryError
from penjing.graph import Group, Network, channel_groups, prove_removal, remove_channels
from penjing.graph.network import MODULE
from penjing.pruning.blocks import find_blocks, remove_block
from penjing.pruning.group_lasso import ProximalGroupLasso, layer_factors
from penjing.pruning.same_answers import TOLERANCE, answer_difference
from penjing.pruning.weight_groups import KINDS, Kind, WeightGroups, weight_groups, zero_groups
from penjing.representation import Mask, represent_, representations
from penjing.shapes import Json
from penjing.training import TrainedStage, Workbench


def without_zeros(network: Network) -> tuple[Network, dict[str, int], dict[str, str]]:
    """Remove what contributes nothing: blocks whose weights are zero, channels that are zero or that nobody reads.

    A channel is zero where the filters that produce it are, and its biases, scales and shifts; nobody reads it where the
    columns of all layers that read it are zero. What nobody reads any more then goes too. At least one channel of each group
    stays. Not one answer changes: in float64, on random inputs, the relative difference is at most 1e-9.
    Returns: the smaller network; how many channels of each group, and layers of each block, are gone; by name, what would have
    changed an answer and was left.
    """
    gone: dict[str, int] = {}
    left: dict[str, str] = {}
    small = network
    for groups in weight_groups(network, ["depth"])[0]:
        block = next((b for b in find_blocks(small)[0] if b.name == groups.name), None)
        if block is None or not bool(zero_groups(network, groups).all()) or not _is_silent(network, groups)[0]:
            continue
        shorter = remove_block(small, block)
        if answer_difference(small, shorter) <= TOLERANCE:
            small = shorter
            gone[groups.name] = len(block.layers)
        else:
            left[groups.name] = "its layers are zero, but what comes out of them is not"
    while True:
        dead = {name: found for name, found in _dead_channels(small).items() if found and name not in left}
        shorter, taken, loud = _without_channels(small, dead)
        left |= loud
        for name, n in taken.items():
            gone[name] = gone.get(name, 0) + n
        if not taken:
            return small, gone, left
        small = shorter


def mask_zero_shapes_(network: Network) -> dict[str, int]:
    """Where W[:, c, m, k] of a convolution is zero, fix that by a mask, in place. Returns: how many, by layer."""
    found: dict[str, int] = {}
    for groups in weight_groups(network, ["shapes"])[0]:
        zero = zero_groups(network, groups)
        if not bool(zero.any()):
            continue
        piece = groups.pieces[0]
        layer = network.get_submodule(piece.path)
        weight: Tensor = getattr(layer, "weight")  # noqa: B009
        keep = ~zero[piece.group_of.to(zero.device)].expand(weight.shape)
        masks = [r for r in representations(layer, "weight") if isinstance(r, Mask)]
        if masks:
            masks[-1].keep &= keep
        else:
            represent_(layer, "weight", Mask(keep))
        found[piece.path] = int(zero.sum())
    return found


class GroupLasso(TrainedStage):
    """Train with a penalty on whole structures, which makes many of them exactly zero, remove these, and train on."""

    label: ClassVar[str] = "group-lasso"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    lr: float = Field(default=0.01, gt=0, description="largest learning rate")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="sgd", description="sgd with Nesterov momentum 0.9, for which the strengths are meant, or adamw"
    )
    filters: float = Field(default=1e-3, ge=0, description="strength for filters, with what is added to them")
    channels: float = Field(default=1e-3, ge=0, description="strength for the columns of a layer, one for each input")
    shapes: float = Field(
        default=0.0, ge=0, description="strength for single places of filters, the same in all of them"
    )
    depth: float = Field(default=0.0, ge=0, description="strength for whole residual blocks")
    factors: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="by layer (names, globs, type:Class): what multiplies its strengths; 0 leaves it alone"
    )
    finetune_epochs: int = Field(default=1, ge=0, description="passes without the penalty, after the zeros are gone")
    finetune_lr: float | None = Field(default=None, gt=0, description="its learning rate; none: a tenth of lr")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.average is not None:
            raise SettingError("group-lasso: a moving average of weights has no exact zeros; leave average out.")
        if not any(self.strengths.values()):
            raise SettingError("group-lasso: all strengths are 0; give filters, channels, shapes or depth one.")
        return self

    @property
    def strengths(self) -> dict[Kind, float]:
        """By kind of structure."""
        return {kind: float(getattr(self, kind)) for kind in KINDS}

    def planned_epochs(self) -> int:
        return self.epochs + self.finetune_epochs

    def apply(self, bench: Workbench) -> None:
        layer_factors(bench.network, self.factors, f"{self.label}: factors")  # a wrong name is said before the work
        bench.train(self.schedule(), [*self.parts(bench), ProximalGroupLasso(self.strengths, self.factors)])
        kinds = [kind for kind in KINDS if self.strengths[kind]]
        found, alone = weight_groups(bench.network, kinds)
        zeros: dict[str, dict[str, Json]] = {kind: {} for kind in kinds}
        for groups in found:
            zeros[groups.kind][groups.name] = [int(zero_groups(bench.network, groups).sum()), groups.n]
        bench.network, gone, left = without_zeros(bench.network)
        masked = mask_zero_shapes_(bench.network) if self.shapes else {}
        for name, reason in left.items():
            bench.warn(f"{name} stays: {reason}")
        bench.facts |= {"zero of all": zeros, "removed": gone, "masked shapes": masked, "not penalised": alone}
        if self.finetune_epochs:
            rate = self.lr / 10 if self.finetune_lr is None else self.finetune_lr
            bench.train(
                self.schedule(self.finetune_epochs).model_copy(update={"lr": rate}), self.parts(bench), "finetune"
            )


def _is_silent(network: Network, groups: WeightGroups) -> Tensor:
    """Whether all that answers besides a group's weights is zero, bool, (groups,)."""
    loud = torch.zeros(groups.n, dtype=torch.bool)
    for place in groups.silent:
        values = getattr(network.get_submodule(place.path), place.name).detach().cpu()[torch.as_tensor(place.indices)]
        loud[torch.as_tensor(place.channels)[values != 0]] = True
    return ~loud


def _dead_channels(network: Network) -> dict[str, list[int]]:
    """By group, the channels that are zero or unread; one always stays."""
    filters, _ = weight_groups(network, ["filters"])
    zero = {groups.name: zero_groups(network, groups).cpu() & _is_silent(network, groups) for groups in filters}
    found: dict[str, list[int]] = {}
    for group in channel_groups(network).groups:
        dead = _unread(network, group) | zero.get(group.name, torch.tensor(False))
        positions = torch.nonzero(dead).flatten().tolist()
        found[group.name] = positions[1:] if len(positions) == group.n_channels else positions
    return found


def _without_channels(network: Network, dead: dict[str, list[int]]) -> tuple[Network, dict[str, int], dict[str, str]]:
    """The network without them; how many went, by group; by group, why they did not. All at once, or else group by group."""
    small = _without(network, dead) if dead else None
    if small is not None or not dead:
        return small or network, {name: len(positions) for name, positions in dead.items()}, {}
    chosen: dict[str, list[int]] = {}
    left: dict[str, str] = {}
    for name, positions in dead.items():
        attempt = _without(network, chosen | {name: positions})
        if attempt is None:
            left[name] = "its filters are zero, but what is read of them is not"
        else:
            chosen[name], small = positions, attempt
    return small or network, {name: len(positions) for name, positions in chosen.items()}, left


def _unread(network: Network, group: Group) -> Tensor:
    """Which channels meet only zeros in the layers that read them, bool, (channels,)."""
    nodes = {node.name: node for node in network.nodes}
    read = torch.zeros(group.n_channels, dtype=torch.bool)
    for reader in group.reads:
        node = nodes[reader.node]
        layer = network.get_submodule(node.path) if node.op == MODULE else None
        channels = torch.as_tensor(reader.channels)
        plain = isinstance(layer, torch.nn.Linear) or (
            isinstance(layer, torch.nn.modules.conv._ConvNd) and layer.groups == 1 and not layer.transposed
        )
        if layer is None or not plain:
            read[channels] = True
            continue
        weight: Tensor = getattr(layer, "weight").detach().cpu()  # noqa: B009
        used = (weight != 0).movedim(1, 0).flatten(1).any(1)[torch.as_tensor(reader.indices)]
        read[channels[used]] = True
    return ~read & bool(group.reads)


def _without(network: Network, chosen: dict[str, list[int]]) -> Network | None:
    """The network without channels; None where that changes an answer."""
    removal = channel_groups(network).removal(chosen)
    try:
        prove_removal(network, removal)
    except SurgeryError:
        return None
    small = remove_channels(network, removal)
    return small if answer_difference(network, small) <= TOLERANCE else None

"""Channel pruning of a model by itself, without a recipe: cut, prove, give back the user's class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from penjing.errors import SettingError, SurgeryError
from penjing.graph import (
    Group,
    Network,
    Proof,
    channel_groups,
    into_own_class,
    provable,
    remove_channels,
    select,
    trace,
)
from penjing.measurement import count_parameters, macs_by_node
from penjing.pruning.channels import choose_channels
from penjing.pruning.magnitude import magnitude_scores

Score = Callable[[Network, Group], Tensor]


@dataclass(frozen=True)
class Pruned:
    """A model without some of its channels.

    Attributes:
        model: the smaller model; of the user's class where that can hold it, else `network`.
        network: the same as a graph; what a file holds.
        own_class: whether `model` is of the user's class; why_not: if not, the reason.
        removed: by group of layers, how many channels are gone of how many.
        kept: by layer, why its channels stayed.
        unproved: by group, why its removal could not be proved; such a group was left alone.
        proof: what the proof of the removal found; `proof.changed` are the steps whose statistics are over the survivors.
        parameters, macs: before and after; MACs for one sample of the example's size.
    """

    model: nn.Module = field(repr=False)
    network: Network = field(repr=False)
    own_class: bool
    why_not: str
    removed: dict[str, tuple[int, int]] = field(repr=False)
    kept: dict[str, str] = field(repr=False)
    unproved: dict[str, str] = field(repr=False)
    proof: Proof
    parameters: tuple[int, int]
    macs: tuple[int, int]

    def __str__(self) -> str:
        gone, all_of_them = (
            (sum(counts) for counts in zip(*self.removed.values(), strict=True)) if self.removed else (0, 0)
        )
        lines = [
            f"{gone} of {all_of_them} channels in {len(self.removed)} groups are gone",
            _change("parameters", *self.parameters),
            _change("multiply-accumulates", *self.macs),
            f"proved in float64: relative error {self.proof.error:.1e} on the masked network",
        ]
        if self.proof.changed:
            lines.append(
                f"{len(self.proof.changed)} norms or means now take their statistics over the channels that stay"
            )
        lines.append("the model's own class holds it" if self.own_class else f"held as a graph: {self.why_not}")
        lines += [f"left alone: {name}: {reason}" for name, reason in self.unproved.items()]
        lines += [f"kept whole: {path}: {reason}" for path, reason in self.kept.items()]
        return "\n".join(lines)


def _change(what: str, before: int, after: int) -> str:
    return f"{what}: {before:,} -> {after:,} ({100 * (before - after) / max(before, 1):.1f} % less)"


def prune_channels(
    model: nn.Module,
    inputs: Sequence[Tensor] | Mapping[str, Tensor],
    *,
    sparsity: float = 0.5,
    score: Score = magnitude_scores,
    layers: Sequence[str] = ("*",),
    keep_at_least: int = 1,
    own_class: bool = True,
) -> Pruned:
    """Remove the same fraction of the channels of every group of layers, physically, and prove it.

    Args:
        model: any module that `trace` reads; it is not modified.
        inputs: example inputs of its forward method, in order or by name, each (batch, ...).
        sparsity: fraction of each group's channels that goes, rounded down; 0 to 1.
        score: importance of a group's channels, (channels,); the least important go.
        layers: whose output channels: names, globs, type:Class, !not-this.
        keep_at_least: channels that every group keeps.
        own_class: try to give back the user's class; else the graph, which is faster.
    Raises: SettingError: a setting out of range, or no channel that can be removed. TraceError: the model cannot be read.
    Source: Li et al. 2017, arXiv:1608.08710, for the score that is the default.
    """
    if not 0 < sparsity < 1:
        raise SettingError(
            f"prune_channels: sparsity must be between 0 and 1, got {sparsity}. Write 0.2 to remove 20 %."
        )
    if keep_at_least < 1:
        raise SettingError(f"prune_channels: keep_at_least must be at least 1, got {keep_at_least}.")
    network = trace(model, inputs)
    grouping = channel_groups(network)
    chosen_layers = (
        set(select(grouping.producers.items(), layers, "prune_channels: layers")) if grouping.groups else set()
    )
    groups = [group for group in grouping.groups if chosen_layers & set(group.producers)]
    chosen: dict[str, list[int]] = {}
    for group in groups:
        n = int(sparsity * group.n_channels)
        positions = choose_channels([group], [score(network, group)], n, keep_at_least=keep_at_least)[0]
        if positions:
            chosen[group.name] = positions
    if not chosen:
        kept = "; ".join(f"{path}: {reason}" for path, reason in grouping.kept.items())
        raise SettingError(f"prune_channels: no channel can be removed ({kept or 'no layer has any to lose'}).")
    sound, unproved, proof = provable(network, grouping, chosen)
    small = remove_channels(network, grouping.removal(sound))
    result: nn.Module = small
    why_not = "not asked for"
    if own_class:
        try:
            result, why_not = into_own_class(model, network, small, inputs), ""
        except SurgeryError as error:
            why_not = str(error)
    return Pruned(
        result,
        small,
        result is not small,
        why_not,
        {group.name: (len(sound.get(group.name, ())), group.n_channels) for group in groups},
        grouping.kept,
        unproved,
        proof,
        (count_parameters(network)[0], count_parameters(small)[0]),
        (sum(macs_by_node(network).values()), sum(macs_by_node(small).values())),
    )

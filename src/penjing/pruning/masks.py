"""From scores to masks, and masks onto a network."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from penjing.errors import SettingError, SurgeryError, nearest
from penjing.graph import Network
from penjing.pruning.structures import Structure, n_of_m, read_structure, units
from penjing.representation import Mask, represent_, representations
from penjing.sensitivity import Weights, layer_weights, weighted_layers

Masks: TypeAlias = dict[str, Tensor]
"""By the weight's full name, bool, in its shape; True where the weight stays."""

_SCOPES = ("global", "layer", "row")


class Chosen(NamedTuple):
    """What `choose_masks` chose: the masks, and what did not go as asked, in sentences."""

    masks: Masks
    notes: list[str]


def choose_masks(
    scores: Weights,
    sparsity: float,
    *,
    scope: Literal["global", "layer", "row"] = "global",
    already: Mapping[str, Tensor] | None = None,
    structure: str | Structure = "weights",
) -> Chosen:
    """Keep the most important weights.

    Only weights that are still there are ranked; of equal ones the first go first. A unit of several weights has the mean score
    of those still there; units go until the number of removed weights is as near to sparsity times all of them as units
    allow. A layer, or with scope "row" a row, never loses its last unit.

    Args:
        scores: by weight, any shape (out, ...), higher is more important.
        sparsity: fraction of all these weights that are gone afterwards, those gone before included; 0 to 1.
        scope: who is compared: all weights, those of a layer, or those of a row (dimension 0); each loses the same fraction.
        already: earlier masks; what they removed stays removed.
        structure: see `structures.read_structure`; with "N:M" the scope does not matter and sparsity must be 1 - N/M.
    Returns: masks for all weights in `scores`, on the scores' devices, and notes.
    Raises: SettingError: a setting out of range, scores that are not finite, rows of a structure that crosses them.
    """
    if not 0 <= sparsity <= 1:
        raise SettingError(f"masks: sparsity must be in [0, 1], got {sparsity}. Write 0.8 to remove 80 %.")
    if scope not in _SCOPES:
        raise SettingError(f'masks: there is no scope "{scope}"; {nearest(scope, _SCOPES)}.')
    form = read_structure(structure, "masks: structure") if isinstance(structure, str) else structure
    kept = {}
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise SettingError(
                f"masks: scores of {name} are not finite; train with a smaller lr, or use another score."
            )
        earlier = None if already is None else already.get(name)
        kept[name] = torch.ones_like(score, dtype=torch.bool) if earlier is None else earlier.to(score.device).bool()
    if form.kind == "n:m":
        return _n_of_m(scores, sparsity, kept, form)
    if scope == "row" and (form.kind == "filter-shapes" or form.first > 1):
        raise SettingError(f'masks: units of "{form}" run through several rows; use scope "layer" or "global".')
    if scope == "global":
        return _remove(scores, sparsity, kept, form)
    masks: Masks = {}
    notes: list[str] = []
    for name, score in scores.items():
        found = (
            _remove({name: score}, sparsity, kept, form)
            if scope == "layer"
            else _remove_in_rows(name, score, sparsity, kept[name], form)
        )
        masks |= found.masks
        notes += found.notes
    return Chosen(masks, notes)


def _remove(scores: Weights, sparsity: float, kept: Masks, form: Structure) -> Chosen:
    """Remove the worst units of all these weights together."""
    numbers, values, sizes, tensors = [], [], [], []
    n_units = 0
    for place, (name, score) in enumerate(scores.items()):
        unit = units(score.shape, form).flatten()
        flags = kept[name].flatten().cpu()
        count = int(unit.max()) + 1 if len(unit) else 0
        size = torch.zeros(count, dtype=torch.int64).index_add_(0, unit, flags.long())
        total = torch.zeros(count, dtype=torch.float64).index_add_(0, unit, score.flatten().cpu().double() * flags)
        numbers.append(unit + n_units)
        values.append(total / size.clamp_min(1))
        sizes.append(size)
        tensors.append(torch.full((count,), place))
        n_units += count
    if not n_units:
        return Chosen(dict(kept), [])
    value, size, tensor = torch.cat(values), torch.cat(sizes), torch.cat(tensors)
    n_weights = sum(score.numel() for score in scores.values())
    goes = max(0, round(sparsity * n_weights) - (n_weights - int(size.sum())))
    order = value.argsort(stable=True)
    order = order[size[order] > 0]
    best = torch.full((len(scores),), -1)
    for place in range(len(scores)):
        best[place : place + 1] = order[tensor[order] == place][-1:]
    free = order[~torch.isin(order, best)]
    removed = size[free].cumsum(0)
    n = _nearest_count(removed, goes)
    gone = torch.zeros(n_units, dtype=torch.bool)
    gone[free[:n]] = True
    masks = {
        name: kept[name] & ~gone[number].view(score.shape).to(score.device)
        for (name, score), number in zip(scores.items(), numbers, strict=True)
    }
    rank = torch.empty(n_units, dtype=torch.int64)
    rank[order] = torch.arange(len(order))
    notes = [
        f"{name}: all of its weights would have gone; the best stay"
        for name, unit in zip(scores, best.tolist(), strict=True)
        if n and unit >= 0 and rank[unit] < rank[free[n - 1]]
    ]
    if n == len(free) and (int(removed[-1]) if n else 0) < goes:
        notes.append(
            f"only {int(removed[-1]) if n else 0:,} of {goes:,} weights of {_spoken(scores)} can go: the best stay"
        )
    return Chosen(masks, notes)


def _nearest_count(removed: Tensor, goes: int) -> int:
    """How many units go: as many as bring the sum nearest to what should go, the fewer of two that are equally near."""
    n = int((removed <= goes).sum())
    if n < len(removed) and int(removed[n]) - goes < goes - (int(removed[n - 1]) if n else 0):
        return n + 1
    return n


def _spoken(scores: Weights) -> str:
    names = list(scores)
    return names[0] if len(names) == 1 else f"{len(names)} layers"


def _remove_in_rows(name: str, score: Tensor, sparsity: float, kept: Tensor, form: Structure) -> Chosen:
    """Remove the worst units of each row."""
    rows, n_short = [], 0
    for row in range(len(score)):
        one = slice(row, row + 1)
        found = _remove({name: score[one]}, sparsity, {name: kept[one]}, form)
        rows.append(found.masks[name])
        n_short += bool(found.notes)
    notes = [f"{name}: all weights of {n_short} rows would have gone; the best of each stay"] if n_short else []
    return Chosen({name: torch.cat(rows) if rows else kept}, notes)


def _n_of_m(scores: Weights, sparsity: float, kept: Masks, form: Structure) -> Chosen:
    """The best N of every M; layers whose inputs M does not divide are left as they are."""
    n, m = form.first, form.second
    if abs(sparsity - (1 - n / m)) > 1e-6:
        raise SettingError(
            f"masks: {form} removes {1 - n / m:.4g} of the weights, got sparsity {sparsity}. Write that."
        )
    masks: Masks = {}
    notes = []
    for name, score in scores.items():
        found = n_of_m(score, n, m, kept[name])
        if found is None:
            notes.append(f"{name}: left as it is, its {score.shape[1]} inputs are no multiple of {m}")
        masks[name] = kept[name] if found is None else found
    return Chosen(masks, notes)


def mask_of(network: Network, name: str) -> Tensor | None:
    """The mask of a weight, by its full name, True where it stays; None where it has none."""
    layer = network.get_submodule(name.rpartition(".")[0])
    found = [part for part in representations(layer, "weight") if isinstance(part, Mask)]
    return found[0].keep if found else None


def masks_of(network: Network) -> Masks:
    """The masks that the weights of layers have, by full name."""
    return {name: mask for name in weighted_layers(network) if (mask := mask_of(network, name)) is not None}


def check_maskable(network: Network, names: Iterable[str]) -> None:
    """See that masks can be put on these weights.

    Raises: SettingError: a name that is no weight of a layer. SurgeryError: the weight is written in a way that a mask cannot
        go on top of.
    """
    layers = weighted_layers(network)
    for name in names:
        if name not in layers:
            raise SettingError(f'masks: there is no weight "{name}" of a layer; {nearest(name, layers)}.')
        stack = representations(layers[name], "weight")
        other = next((part for part in stack if not isinstance(part, Mask)), None)
        if other is not None:
            raise SurgeryError(
                f"masks: {name} is a {other.kind} already, and a removed weight would be one of its values. "
                "Prune weights before that."
            )


@torch.no_grad()
def apply_masks_(network: Network, masks: Mapping[str, Tensor]) -> None:
    """Put masks on weights, in place. Where there is one already, only what both keep stays.

    Raises: SettingError: a name that is no weight of a layer, or a mask of another shape. SurgeryError: the weight is written
        in a way that a mask cannot go on top of.
    """
    check_maskable(network, masks)
    layers = weighted_layers(network)
    for name, keep in masks.items():
        layer = layers[name]
        weight: Tensor = getattr(layer, "weight")  # noqa: B009
        if keep.shape != weight.shape:
            raise SettingError(f"masks: {name} has shape {tuple(weight.shape)}, its mask {tuple(keep.shape)}.")
        stack = representations(layer, "weight")
        if stack:
            mask = stack[-1]
            assert isinstance(mask, Mask)
            mask.keep.logical_and_(keep.to(mask.keep.device))
        else:
            represent_(layer, "weight", Mask(keep.to(weight.device)))


def sparsity_of(network: Network) -> float:
    """Fraction of the weights of layers that are exactly 0; 0.0 where there are none. Biases and norms do not count."""
    weights = layer_weights(network)
    n = sum(w.numel() for w in weights.values())
    return sum(int((w == 0).sum()) for w in weights.values()) / n if n else 0.0


def density_by_layer(network: Network) -> dict[str, float]:
    """Fraction of each layer's weights that are not 0, by the layer's path."""
    return {
        name.rpartition(".")[0]: float((w != 0).double().mean())
        for name, w in layer_weights(network).items()
        if w.numel()
    }

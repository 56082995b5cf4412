"""Surgery that proves itself.

The network without some channels must compute what the network with them computes when each of them is forced to zero at
every consumer's input edge. Norms and means over channels take their statistics over the survivors in both. Checked in
float64 on random inputs, with batch-norm statistics drawn at random so that nothing agrees by accident.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penjing.errors import SurgeryError
from penjing.graph.groups import Force, Grouping, Removal
from penjing.graph.modules import MODULES, kind_of
from penjing.graph.network import MODULE, Network, Node, with_tensors
from penjing.graph.sizes import Size
from penjing.graph.surgery import remove_channels

TOLERANCE = 1e-9
_SMALL_SIDE = 64
_NOTHING = 1e-12
"""An effect that rounding has too."""
_LEAST_SCALE = 1e-6
"""An answer smaller than this is 0 but for rounding, which has nothing to be compared with."""


@dataclass(frozen=True)
class Proof:
    """What a proof found.

    Attributes:
        error: largest relative difference, max |small - forced| / max |forced| over all answers and inputs.
        effect: the same between the large network and itself with channels forced to zero: what the removal does. A proof in
            which it is 0 says nothing.
        changed: the nodes whose statistics are over the survivors; there the function is another one.
    """

    error: float
    effect: float
    changed: tuple[str, ...] = ()


def prove_removal(network: Network, removal: Removal, *, n_inputs: int = 3, seed: int = 0) -> Proof:
    """Check a removal of channels before it is made.

    Args:
        network: the one to cut; not modified.
        n_inputs: random inputs to compare.
    Raises: SurgeryError: the networks differ by more than 1e-9, so the cut must not be made.
    """
    if not removal.slices:
        return Proof(0.0, 0.0)
    generator = torch.Generator().manual_seed(seed)
    shaken = with_tensors(network, lambda tensor: tensor)  # shares its tensors until they are replaced
    _randomise_(shaken, generator)
    cut = remove_channels(shaken, removal)
    _check_constants(cut, removal)
    large, small = shaken.in_float64().eval(), cut.in_float64().eval()
    large.at_any_places = small.at_any_places = True
    found = None
    for side in (_SMALL_SIDE, None):  # pictures may be smaller than the example where the network allows it
        inputs = _inputs(network, n_inputs, generator, side)
        if inputs is None:
            continue
        try:
            found = _compare(large, small, removal, inputs)
            break
        except (RuntimeError, ValueError) as error:
            if side is None:
                raise SurgeryError(
                    f"surgery: the network without these {removal.n_channels} channels cannot be computed ({error}); "
                    "nothing was changed. Please report this network."
                ) from error
    assert found is not None
    if not found.error <= TOLERANCE:
        raise SurgeryError(
            f"surgery: the network without these {removal.n_channels} channels differs from the one with them forced to zero "
            f"by {found.error:.2g} relative (at most {TOLERANCE:g}); nothing was changed. Please report this network."
        )
    return found


def provable(
    network: Network, grouping: Grouping, chosen: dict[str, list[int]]
) -> tuple[dict[str, list[int]], dict[str, str], Proof]:
    """The part of a removal that can be proved, found by halving.

    Returns: what can go, by group; for the groups that must be left alone, the reason; the proof of what can go.
    """
    left: dict[str, str] = {}

    def proved(names: Sequence[str]) -> str:
        """The reason why not; empty: it is."""
        try:
            prove_removal(network, grouping.removal({name: chosen[name] for name in names}))
        except SurgeryError as error:
            return str(error)
        return ""

    def search(names: list[str]) -> list[str]:
        reason = proved(names)
        if not reason:
            return names
        if len(names) == 1:
            left[names[0]] = reason
            return []
        middle = len(names) // 2
        sound, others = search(names[:middle]), search(names[middle:])
        if not others or not proved(sound + others):
            return sound + others
        for name in others:  # sound by themselves, not together
            reason = proved([*sound, name])
            if reason:
                left[name] = reason
            else:
                sound.append(name)
        return sound

    try:
        return dict(chosen), left, prove_removal(network, grouping.removal(chosen))
    except SurgeryError:
        part = {name: chosen[name] for name in search([name for name, positions in chosen.items() if positions])}
    return part, left, prove_removal(network, grouping.removal(part))


def _check_constants(network: Network, removal: Removal) -> None:
    """Layers must say of themselves what their tensors are: files are made of what they say."""
    owners = [change.owner for change in removal.changes if change.of == "layer"]
    layers = network.layers()
    for path in dict.fromkeys([*owners, *(piece.path for piece in removal.slices)]):
        kind = MODULES.get(str(kind_of(layers[path]))) if path in layers else None
        if kind is None:
            continue
        with torch.device("meta"):
            fresh = kind.build(kind.describe(layers[path]))
        for name, tensor in [*fresh._parameters.items(), *fresh._buffers.items()]:
            if tensor is not None and getattr(layers[path], name).shape != tensor.shape:
                raise SurgeryError(
                    f"surgery: {path}.{name} would not be what the layer says of itself; nothing was changed."
                )


def _compare(large: Network, small: Network, removal: Removal, inputs: list[Tensor]) -> Proof:
    with torch.no_grad():
        forced = _forced(large, removal, inputs)
        cut = _answers(small, inputs)
        effect = _effect([f[:1] for f in forced], _answers(large, [x[:1] for x in inputs]))  # one sample shows it
        effect = effect or _effect(forced, _answers(large, inputs))  # or, where a mask hides everything from it, all
    errors = [0.0]
    for f, c in zip(forced, cut, strict=True):
        if not f.numel():
            continue
        if f.shape != c.shape:
            raise RuntimeError(f"its answer has the shape {tuple(c.shape)}, not {tuple(f.shape)}")
        if not torch.equal(f.isfinite(), c.isfinite()):
            errors.append(math.nan)
            continue
        some = f.isfinite().reshape(len(f), -1).all(1)  # a sample whose mask hides everything has no answer, in neither
        if not bool(some.any()):
            errors.append(math.nan)
            continue
        f, c = f[some], c[some]
        scale = max(float(f.double().abs().max()), _LEAST_SCALE)
        errors.append(float((f.double() - c.double()).abs().max()) / scale)
    worst = next((e for e in errors if not math.isfinite(e)), max(errors))  # NaN is not larger than anything
    return Proof(worst, effect, tuple(dict.fromkeys(force.node for force in removal.survivors)))


def _effect(forced: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """The largest relative difference of the answers; 0 where it is rounding's."""
    found = max((_relative(f, p) for f, p in zip(forced, plain, strict=True)), default=0.0)
    return found if found > _NOTHING else 0.0


def _relative(forced: Tensor, plain: Tensor) -> float:
    """The largest relative difference where both have numbers; 0 where one has another shape."""
    if forced.shape != plain.shape or not forced.numel():
        return 0.0
    both = forced.isfinite() & plain.isfinite()
    if not bool(both.any()):
        return 0.0
    forced, plain = forced[both].double(), plain[both].double()
    return float((forced - plain).abs().max()) / max(float(plain.abs().max()), _LEAST_SCALE)


def _forced(network: Network, removal: Removal, inputs: list[Tensor]) -> list[Tensor]:
    """The answers of the large network with the removed channels at zero at every consumer's input edge."""
    edges: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}
    for zero in removal.zeros:
        inner = edges.get((zero.node, zero.position))
        edges[zero.node, zero.position] = _zeroing(zero.dim, torch.as_tensor(zero.gone), inner)
    survivors: dict[str, list[Force]] = {}
    for force in removal.survivors:
        survivors.setdefault(force.node, []).append(force)
    replaced = {
        name: partial(_over_survivors, network, node, forces)
        for node in network.nodes
        for name, forces in survivors.items()
        if node.name == name
    }
    with network.watched(edges), network.replaced(replaced):
        return _answers(network, inputs)


def _answers(network: Network, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [answer for answer in network.all_answers(*inputs) if isinstance(answer, Tensor)]


def _zeroing(dim: int, index: Tensor, inner: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    return lambda x: (inner(x) if inner else x).index_fill(dim, index, 0.0)


def _over_survivors(network: Network, node: Node, forces: Sequence[Force], x: Tensor, *affine_inputs: Tensor) -> Tensor:
    """A norm or mean whose statistics leave the removed channels out."""
    kept = x
    for force in forces:
        stay = torch.as_tensor(np.setdiff1d(np.arange(x.shape[force.dim]), force.gone))
        kept = kept.index_select(force.dim, stay)
    if node.op == "mean":
        return kept.mean(dim=node.settings["dims"], keepdim=node.settings["keepdim"])
    if node.op == "variance":
        s = node.settings
        return kept.var(dim=s["dims"], correction=s["correction"], keepdim=s["keepdim"])
    if node.op == MODULE:
        layer: Any = network.get_submodule(node.path)
        kind, eps = kind_of(layer), layer.eps
        affine = [t for t in (layer.weight, getattr(layer, "bias", None)) if t is not None]
    else:
        kind = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "group_norm": "GroupNorm"}[node.op]
        eps, affine = node.settings["eps"], list(affine_inputs)
    dims = tuple(range(1, x.dim())) if kind == "GroupNorm" else (-1,)
    if kind == "GroupNorm":
        affine = [t.reshape(-1, *[1] * (x.dim() - 2)) for t in affine]
    if kind == "RMSNorm":
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        result = x * torch.rsqrt(kept.square().mean(dim=dims, keepdim=True) + eps)
    else:
        mean = kept.mean(dim=dims, keepdim=True)
        result = (x - mean) * torch.rsqrt(kept.var(dim=dims, correction=0, keepdim=True) + eps)
    if affine:
        result = result * affine[0]
    return result + affine[1] if len(affine) > 1 else result


def _inputs(network: Network, n: int, generator: torch.Generator, side: int | None) -> list[Tensor] | None:
    """Random inputs; with a side, pictures of that size. None: there are no larger pictures."""
    inputs = network.random_inputs(n, generator, torch.float64)
    if side is None:
        return inputs
    if not all(_is_picture(shape) and shape[1] > side for shape in network.input_shapes):  # type: ignore[operator]
        return None
    return [x[..., :side, :side].contiguous() for x in inputs]


def _is_picture(shape: tuple[int | Size, ...]) -> bool:
    return len(shape) == 3 and not any(isinstance(size, Size) for size in shape) and shape[1] == shape[2]


def _randomise_(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
            for name, low, high in (
                ("running_mean", -1, 1),
                ("running_var", 0.5, 2),
                ("weight", 0.5, 2),
                ("bias", -1, 1),
            ):
                tensor = getattr(module, name)
                if tensor is not None:
                    drawn = torch.rand(tensor.shape, dtype=torch.float64, generator=generator)
                    tensor.data = (drawn * (high - low) + low).to(tensor)
    for parameter in network.parameters():
        # scales that are all 1 would hide a channel taken for another, a weight that is all 0 everything
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            drawn = torch.rand(parameter.shape, dtype=torch.float64, generator=generator)
            small = float(parameter.detach().flatten()[0].abs()) < 1e-3
            parameter.data = (0.2 * (drawn - 0.5) if small else drawn + 0.5).to(parameter)

"""What quantization adds to the mean of each channel is taken off its bias: no labels, a few hundred inputs.

    b'_o = b_o - mean over samples and places of ((W' - W) x)_o

x is what the layer gets in the network as it was before.
Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (with data).
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.errors import DataError
from penjing.graph import Network
from penjing.training import Batch

_CORRECTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def mean_changes(before: Network, after: Network, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """By layer, by how much the new weight moves the mean of each of its outputs, (outputs,).

    Args:
        before, after: networks with the same layers.
    Raises: DataError: no batches.
    """
    layers: dict[str, Any] = {
        path: layer
        for path, layer in before.layers().items()
        if isinstance(layer, _CORRECTED) and not torch.equal(layer.weight, after.get_submodule(path).weight)  # type: ignore[arg-type]
    }
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def note(path: str, x: Tensor, twin: Any) -> None:
        moved = twin(x)
        channels_first = (
            moved.movedim(-1, 0) if isinstance(twin, nn.Linear) else moved.movedim(-twin.weight.dim() + 1, 0)
        )
        flat = channels_first.flatten(1).double()
        totals[path] = totals.get(path, torch.zeros(len(flat), dtype=torch.float64)) + flat.sum(1).cpu()
        counts[path] += flat.shape[1]

    handles = []
    for path, layer in layers.items():
        twin: Any = copy.deepcopy(layer)
        if parametrize.is_parametrized(twin, "weight"):
            parametrize.remove_parametrizations(twin, "weight")
        twin.bias = None
        with torch.no_grad():
            twin.weight.copy_(after.get_submodule(path).weight - layer.weight)
        handles.append(
            layer.register_forward_pre_hook(lambda _, inputs, path=path, twin=twin: note(path, inputs[0], twin))
        )
    n = 0
    try:
        with torch.no_grad():
            for batch in batches:
                n += batch.size
                before.all_answers(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if not n:
        raise DataError("quantize: there are no samples to correct biases with; check the loader.")
    return {path: (totals[path] / max(counts[path], 1)).float() for path in totals}


@torch.no_grad()
def correct_biases_(before: Network, after: Network, batches: Iterable[Batch]) -> list[str]:
    """Take what the new weights add to the means off the biases, in place; layers without a bias get one.

    Returns: the layers whose bias was corrected. One whose bias has a representation is left as it is.
    """
    corrected = []
    for path, change in mean_changes(before, after, batches).items():
        layer: Any = after.get_submodule(path)
        if parametrize.is_parametrized(layer, "bias"):
            continue
        own = change.to(layer.weight.device)
        if layer.bias is None:
            layer.bias = nn.Parameter(-own)
        else:
            layer.bias.sub_(own)
        corrected.append(path)
    return corrected

"""Surgery that proves itself.

The network without some channels must compute what the network with them computes when each of them is forced to zero at
every consumer's input edge. Checked in float64 on random inputs, with batch-norm statistics and weights drawn at random so
that nothing agrees by accident.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from penjing.errors import SurgeryError
from penjing.graph.groups import Channel
from penjing.graph.network import Network
from penjing.graph.surgery import remove_channels

TOLERANCE = 1e-9


def prove_removal(network: Network, channels: Sequence[Channel], *, n_inputs: int = 3, seed: int = 0) -> float:
    """Check a removal of channels before it is made.

    Args:
        network: the one to cut; not modified.
        channels: what is to be removed.
        n_inputs: random inputs to compare, a batch of two each.
    Returns: the largest relative error, max |small - forced| / max |forced| over all answers; at most 1e-9.
    Raises: SurgeryError: the networks differ by more, so the cut must not be made.
    """
    generator = torch.Generator().manual_seed(seed)
    large = copy.deepcopy(network).cpu().double().eval()
    _randomise_norms_(large, generator)
    small = remove_channels(large, channels)
    _force_zeros_(large, channels)
    errors = [0.0]
    with torch.no_grad():
        for _ in range(n_inputs):
            inputs = [
                torch.randn(2, *shape, dtype=torch.float64, generator=generator) for shape in network.input_shapes
            ]
            try:
                answers = zip(large.all_answers(*inputs), small.all_answers(*inputs), strict=True)
            except RuntimeError as error:
                raise SurgeryError(
                    f"surgery: the network without these {len(channels)} channels cannot be computed ({error}); "
                    "nothing was changed. Please report this network."
                ) from error
            for forced, cut in answers:
                scale = float(forced.abs().max()) or 1.0
                errors.append(float((forced - cut).abs().max()) / scale)
    worst = next((e for e in errors if not math.isfinite(e)), max(errors))  # NaN is not larger than anything
    if not worst <= TOLERANCE:
        raise SurgeryError(
            f"surgery: the network without these {len(channels)} channels differs from the one with them forced to zero "
            f"by {worst:.2g} relative (at most {TOLERANCE:g} is allowed); nothing was changed. Please report this network."
        )
    return worst


def _randomise_norms_(network: nn.Module, generator: torch.Generator) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            shape = (module.num_features,)
            with torch.no_grad():
                for name, low, high in (
                    ("running_mean", -1, 1),
                    ("running_var", 0.5, 2),
                    ("weight", 0.5, 2),
                    ("bias", -1, 1),
                ):
                    tensor = getattr(module, name)
                    if tensor is not None:
                        tensor.copy_(torch.rand(shape, dtype=torch.float64, generator=generator) * (high - low) + low)


def _force_zeros_(network: Network, channels: Sequence[Channel]) -> None:
    columns: dict[str, set[int]] = defaultdict(set)
    for channel in channels:
        for slot in channel:
            if slot.role == "in":
                columns[slot.path].add(slot.index)
    for path, indices in columns.items():
        index = torch.tensor(sorted(indices), dtype=torch.int64)

        def force(module: nn.Module, args: tuple[Tensor, ...], index: Tensor = index) -> tuple[Tensor, ...]:
            return (args[0].index_fill(1, index, 0.0), *args[1:])

        network.get_submodule(path).register_forward_pre_hook(force)

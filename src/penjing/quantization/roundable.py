"""Which weights cannot be rounded, said by their full names before anything is changed."""

import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.representation import named_weights


def check_roundable(network: Network, where: str) -> None:
    """Raises: SettingError: a parameter of a layer that is not float32, or holds NaN or infinity; all of them are named."""
    layers = network.layers()
    types: dict[str, str] = {}
    broken: list[str] = []
    for full_name, layer, name in named_weights(network):
        value: Tensor = getattr(layer, name).detach()
        if full_name.rpartition(".")[0] not in layers:
            continue  # it stays as it is
        if value.dtype != torch.float32:
            types[full_name] = str(value.dtype).removeprefix("torch.")
        elif not bool(torch.isfinite(value).all()):
            broken.append(full_name)
    if types:
        raise SettingError(
            f"{where}: weights must be float32; {_some([f'{name} is {kind}' for name, kind in types.items()])}. "
            "Call .float() on the model before."
        )
    if broken:
        raise SettingError(
            f"{where}: weights must be finite; {_some(broken)} {'hold' if len(broken) > 1 else 'holds'} NaN or infinity. "
            "Train again with a smaller lr, or from an earlier checkpoint."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

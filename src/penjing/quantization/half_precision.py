"""Every weight in two bytes: hardly a loss, and half a file."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.quantization.roundable import check_roundable
from penjing.representation import Half, Ties, named_weights, represent_, representations
from penjing.representation.half import FORMATS, Format
from penjing.training import Stage, Workbench


def halve_(layer: nn.Module, name: str, format: Format = "float16") -> Half:
    """Write a parameter in two bytes, in place.

    Raises: SettingError: it has codes already, is not float32, or is too large for the format.
    """
    codes = [part.kind for part in representations(layer, name) if part.kind != "mask"]
    if codes:
        raise SettingError(f"half-precision: {type(layer).__name__}.{name} has a {codes[-1]} already.")
    value: Tensor = getattr(layer, name).detach()
    if value.dtype != torch.float32:
        raise SettingError(f"half-precision: {type(layer).__name__}.{name} is {value.dtype} already.")
    if not bool(torch.isfinite(value.to(FORMATS[format])).all()):
        raise SettingError(
            f"half-precision: {type(layer).__name__}.{name} reaches {float(value.abs().max()):g}, which {format} does not "
            "hold; use bfloat16, or train with a smaller lr where values are not finite."
        )
    half = Half(format)
    represent_(layer, name, half)
    return half


def halve_network(network: Network, format: Format = "float16") -> list[str]:
    """Write every parameter of the layers that has no codes in two bytes, in place.

    Returns: what stays as it is, by name: parameters that have codes already or belong to no layer.
    """
    check_roundable(network, "half-precision")
    stayed, ties = [], Ties(network)
    for full_name, layer, name in list(named_weights(network)):
        has_codes = any(part.kind != "mask" for part in representations(layer, name))
        if has_codes or full_name.rpartition(".")[0] not in network.layers():
            stayed.append(full_name)
        elif not ties.repeats(layer, name):
            halve_(layer, name, format)
    ties.share_()
    return stayed


class HalfPrecision(Stage):
    """Write weights in two bytes each, where they have no codes. Nothing is trained."""

    label: ClassVar[str] = "half-precision"
    format: Format = Field(default="float16", description="float16, or bfloat16 with less precision and a larger range")

    def apply(self, bench: Workbench) -> None:
        stayed = halve_network(bench.network, self.format)
        bench.facts["as they were"] = list(stayed)

"""Several networks in one file, such as the encoder and the decoder of one model: what they share is there once."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from penjing.errors import ArtifactError
from penjing.graph.network import Network

_MAX_NETWORKS = 64


class Networks(nn.ModuleDict):
    """Networks by name; modules and tensors may belong to several of them.

    Args:
        networks: 1 to 64 of them; a name is a Python identifier that `nn.ModuleDict` does not use itself.
    Raises: ArtifactError: no networks, too many, or an impossible name.
    """

    def __init__(self, networks: Mapping[str, Network]) -> None:
        super().__init__()
        if not 1 <= len(networks) <= _MAX_NETWORKS:
            raise ArtifactError(f"artifact: a file holds 1 to {_MAX_NETWORKS} networks by name, got {len(networks)}.")
        for name, network in networks.items():
            if not isinstance(name, str) or not name.isidentifier() or hasattr(self, name):
                raise ArtifactError(f'artifact: a network cannot be called "{name}"; use a name like "encode".')
            if not isinstance(network, Network):
                raise ArtifactError(
                    f'artifact: "{name}" must be a Network, got a {type(network).__name__}; trace it first.'
                )
            self[name] = network


def by_name(network: Network | Mapping[str, Network] | Networks) -> dict[str, Network]:
    """The networks of a file by their names; the one of a file without names is called "".

    Raises: ArtifactError: as `Networks`.
    """
    if isinstance(network, Network):
        return {"": network}
    found: dict[str, Any] = dict(network.items())
    Networks(found)  # checks them
    return found

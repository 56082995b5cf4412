"""The tensors that networks hold, in the order of the file; who saves and who loads must agree on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.artifact.modules import fresh, known_kind
from penjing.errors import TraceError
from penjing.graph.network import TENSOR, Network, module_at, tensor_at
from penjing.representation import represent_


@dataclass(frozen=True)
class Slot:
    """A place for a tensor.

    Attributes:
        name: as in the state dict.
        owner, key: the module that holds it, and its name there.
        shape: its shape.
        is_parameter: a parameter, else a buffer.
    """

    name: str
    owner: nn.Module
    key: str
    shape: tuple[int, ...]
    is_parameter: bool

    def value(self) -> Tensor:
        """The tensor as the network uses it."""
        return tensor_at(self.owner, self.key).detach()

    def identity(self) -> tuple[int, ...]:
        """Equal for slots that hold one object: a tensor, or an original under the same representations."""
        if parametrize.is_parametrized(self.owner, self.key):
            stack: Any = self.owner.parametrizations[self.key]  # type: ignore[index]
            return (id(stack.original), *map(id, stack))
        return (id(tensor_at(self.owner, self.key)),)

    def put_(self, tensor: Tensor) -> None:
        """Set the tensor; modules keep the object."""
        held = self.owner._parameters if self.is_parameter else self.owner._buffers
        held[self.key] = tensor  # type: ignore[assignment]
        if isinstance(self.owner, nn.RNNBase) and self.key in self.owner._flat_weights_names:
            setattr(self.owner, self.key, tensor)  # it has a list of its weights besides

    def share_(self, first: "Slot") -> None:
        """Hold what another slot holds, as one object, its representations included."""
        if not parametrize.is_parametrized(first.owner, first.key):
            self.put_(tensor_at(first.owner, first.key))
            return
        stack: Any = first.owner.parametrizations[first.key]  # type: ignore[index]
        self.put_(stack.original)
        for representation in stack:
            represent_(self.owner, self.key, representation)


def slots(networks: Mapping[str, Network]) -> list[Slot]:
    """For each network the tensors of its modules in the order of their first call, then what other nodes read.

    A module under several paths, or in several networks, is there once; a tensor in several modules is there for each.
    Raises: TraceError: a layer with other tensors than its class has, or a node that reads a tensor which is not there.
    """
    found: list[Slot] = []
    seen: dict[int, list[tuple[str, bool, tuple[int, ...]]]] = {}
    for entry, network in networks.items():
        prefix = f"{entry}." if entry else ""
        known: set[str] = set()
        for path, layer in network.layers().items():
            if id(layer) not in seen:  # looked at once, however many networks call it: making some layers takes long
                seen[id(layer)] = list(_own(path, layer))
                found += [Slot(f"{prefix}{path}.{key}", layer, key, shape, own) for key, own, shape in seen[id(layer)]]
            known.update(f"{path}.{key}" for key, *_ in seen[id(layer)])
        for node in network.nodes:
            if node.op == TENSOR and node.path not in known:
                known.add(node.path)
                found.append(_free(prefix, node.path, network))
    return found


def _own(path: str, layer: nn.Module) -> Iterator[tuple[str, bool, tuple[int, ...]]]:
    """Name, whether it is a parameter, and shape of the tensors of a layer."""
    kind = known_kind(path, layer)
    expected = fresh(kind, kind.describe(layer))
    for is_parameter, tensors in ((True, expected._parameters), (False, expected._buffers)):
        for key, tensor in tensors.items():
            found = getattr(layer, key)
            if (tensor is None) != (found is None) or (tensor is not None and tensor.shape != found.shape):
                raise TraceError(
                    f'artifact: "{path}.{key}" is not what a {kind.type.__name__} with these settings has.'
                )
            if tensor is not None:
                yield key, is_parameter, tuple(tensor.shape)


def _free(prefix: str, path: str, network: Network) -> Slot:
    owner_path, _, key = path.rpartition(".")
    shape = tuple(tensor_at(network, path).shape)
    owner = module_at(network, owner_path)
    return Slot(f"{prefix}{path}", owner, key, shape, key not in owner._buffers)

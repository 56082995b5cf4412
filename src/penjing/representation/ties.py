"""Weights that several layers hold: represented once, and still one weight afterwards."""

from torch import nn
from torch.nn.utils import parametrize

from penjing.representation.representation import named_weights, represent_


class Ties:
    """Which parameters of a network are one tensor in several places, as they were when this was made.

        ties = Ties(network)
        for full_name, owner, name in list(named_weights(network)):
            if not ties.repeats(owner, name):
                represent_(owner, name, ...)
        ties.share_()

    Args:
        network: any module; parameters that have a representation already are no ties.
    """

    def __init__(self, network: nn.Module) -> None:
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for _, owner, name in named_weights(network):
            if not parametrize.is_parametrized(owner, name):
                places.setdefault(id(getattr(owner, name)), []).append((owner, name))
        self._groups = [group for group in places.values() if len(group) > 1]
        self._repeats = {(id(owner), name) for group in self._groups for owner, name in group[1:]}

    def repeats(self, owner: nn.Module, name: str) -> bool:
        """Whether an earlier layer holds this parameter too."""
        return (id(owner), name) in self._repeats

    def share_(self) -> None:
        """Give every repetition the representations that the first place has got, as the same objects."""
        for (first, key), *others in self._groups:
            if not parametrize.is_parametrized(first, key):
                continue
            stack = first.parametrizations[key]  # type: ignore[index]
            for owner, name in others:
                owner._parameters[name] = stack.original  # type: ignore[union-attr]
                for representation in stack:
                    represent_(owner, name, representation)

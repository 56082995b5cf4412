"""What each sample alone says of each weight.

A sample's gradient is a product with the Jacobian of the network's answers, J^T v: for a loss v = dL/da, for other measures
another direction. So the loss is differentiated once, on answers, and the network sample by sample.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from penjing.errors import DataError
from penjing.graph import ExitOutputs, Network
from penjing.representation import plain
from penjing.sensitivity.layer_weights import weighted_layers
from penjing.training import Batch

Loss = Callable[[Network, Batch], Tensor]
Direction = tuple[Tensor, ...]
"""For the answer of each exit and the final one, a vector for each sample, in the answer's shape."""

_ENTRIES = 1 << 24
"""Gradients of so many weights are held at a time."""


class Jacobian:
    """Products of the Jacobian of a network's answers with directions, for each sample by itself.

    The network is a plain copy in evaluation mode: what its masks and codebooks give are its weights, and the caller's network
    is left alone.
    """

    def __init__(self, network: Network) -> None:
        self.network: Network = plain(network).eval()
        for parameter in self.network.parameters():
            parameter.grad = None
        owners: dict[str, Any] = weighted_layers(self.network)
        self.names = list(owners)
        by_identity: dict[int, str] = {}
        self._first = {name: by_identity.setdefault(id(layer.weight), name) for name, layer in owners.items()}
        self.weights: dict[str, Tensor] = {
            name: owners[name].weight.detach() for name in dict.fromkeys(self._first.values())
        }
        self._places = _places(self.network, {name: owners[name].weight for name in self.weights})
        self.device = next((w.device for w in self.weights.values()), torch.device("cpu"))
        self._vectorised = True

    @torch.no_grad()
    def answers(self, batch: Batch) -> ExitOutputs:
        """What every exit and the end of the network say, each (batch, ...)."""
        return self.network.all_answers(*batch.args, **batch.kwargs)

    def gradients(self, batch: Batch, direction: Direction) -> dict[str, Tensor]:
        """For every weight J^T v of each sample, (batch, *shape), float32."""
        chunks = list(self._chunks(batch, direction))
        return self._named({name: torch.cat([chunk[name] for chunk in chunks]) for name in self.weights})

    def mean(
        self,
        batches: Iterable[Batch],
        directions: Callable[[ExitOutputs, Batch], Iterable[Direction]],
        function: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """(1 / N) sum over samples n and directions v of f(J_n^T v), in the weights' shapes.

        Args:
            directions: from the answers to a batch, the directions; each is a vector for every sample.
            function: of gradients, (samples, *shape), element by element.
        """
        totals = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in self.weights.items()}
        n = 0
        for given in batches:
            batch = given.to(self.device)
            n += batch.size
            for direction in directions(self.answers(batch), batch):
                for chunk in self._chunks(batch, direction):
                    for name, gradients in chunk.items():
                        totals[name] += function(gradients).sum(0, dtype=torch.float64)
        if not n:
            raise DataError("sensitivity: there are no samples; check the loader and the number of batches.")
        return self._named({name: (total / n).float() for name, total in totals.items()})

    def _named(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Under all names: layers may share a weight."""
        return {name: found[self._first[name]] for name in self.names}

    def _chunks(self, batch: Batch, direction: Direction) -> Iterable[dict[str, Tensor]]:
        size = max(1, _ENTRIES // max(sum(w.numel() for w in self.weights.values()), 1))
        for start in range(0, batch.size, size):
            rows = slice(start, start + size)
            part = Batch(tuple(x[rows] for x in batch.args), {k: x[rows] for k, x in batch.kwargs.items()})
            yield self._one_chunk(part, tuple(v[rows].to(self.device) for v in direction))

    @contextmanager
    def _swapped(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Other tensors in place of the weights, and constants in place of what else learns.

        torch's functional_call looks modules up by attribute, and a network's own attributes may have the name of one.
        """
        held = [(place, key, place[key]) for _, place, key in self._places]
        try:
            for name, place, key in self._places:
                place[key] = place[key].detach() if name is None else weights[name]
            yield
        finally:
            for place, key, parameter in held:
                place[key] = parameter

    def _one_chunk(self, batch: Batch, direction: Direction) -> dict[str, Tensor]:
        def product(
            weights: dict[str, Tensor], args: Sequence[Tensor], kwargs: dict[str, Tensor], along: Direction
        ) -> Tensor:
            with self._swapped(weights):
                one = self.network.all_answers(
                    *(x[None] for x in args), **{name: x[None] for name, x in kwargs.items()}
                )
            return torch.stack([(a[0] * v).sum() for a, v in zip(one, along, strict=True)]).sum()

        derivative = grad(product)
        inputs = (batch.args, dict(batch.kwargs), direction)
        if self._vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    return _float32(vmap(derivative, in_dims=(None, 0, 0, 0))(self.weights, *inputs))
            except (RuntimeError, ValueError, TypeError):
                self._vectorised = (
                    False  # some operation asks for a number, or has no rule; what is wrong shows again below
                )
        each = [
            derivative(
                self.weights,
                tuple(x[i] for x in batch.args),
                {name: x[i] for name, x in batch.kwargs.items()},
                tuple(v[i] for v in direction),
            )
            for i in range(batch.size)
        ]
        return _float32({name: torch.stack([found[name] for found in each]) for name in self.weights})


def _places(network: Network, weights: dict[str, Tensor]) -> list[tuple[str | None, dict[str, Any], str]]:
    """Where parameters are held: the weight's name, None for others; a module's dictionary; the key there.

    Tied ones are held in several places.
    """
    names = {id(weight): name for name, weight in weights.items()}
    return [
        (names.get(id(parameter)), module._parameters, key)
        for module in network.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None
    ]


class _Given:
    """Stands in a loss for the network whose answers are known; for anything else it is the network."""

    def __init__(self, network: Network, answers: Sequence[Tensor]) -> None:
        self._network, self._given = network, ExitOutputs(answers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Tensor | ExitOutputs:
        return self._given if len(self._given) > 1 else self._given[0]

    def all_answers(self, *args: Tensor, **kwargs: Tensor) -> ExitOutputs:
        return self._given


def loss_of_answers(loss: Loss, network: Network, batch: Batch, answers: Sequence[Tensor]) -> Tensor:
    """The loss as a function of the answers alone, summed over the batch."""
    given: Any = _Given(network, answers)
    return loss(given, batch) * batch.size


def loss_direction(loss: Loss, network: Network, batch: Batch, answers: Sequence[Tensor]) -> Direction:
    """dL_n / da_n of each sample's own loss, for the answer of every exit; the loss is a mean over the batch."""
    leaves = [a.detach().requires_grad_() for a in answers]
    with torch.enable_grad():
        total = loss_of_answers(loss, network, batch, leaves)
        found = torch.autograd.grad(total, leaves, allow_unused=True)
    return tuple(torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True))


def per_sample_gradients(network: Network, batch: Batch, loss: Loss) -> dict[str, Tensor]:
    """The gradient of every sample's own loss, not of their mean.

    g[n] = d L(x_n, y_n) / d w, for the weights as the layers use them, in evaluation mode.

    Args:
        loss: of a network and a batch, a mean over the batch of what depends on one sample's answer each.
    Returns: by the weight's full name (batch, *shape), float32.
    """
    jacobian = Jacobian(network)
    batch = batch.to(jacobian.device)
    return jacobian.gradients(batch, loss_direction(loss, jacobian.network, batch, jacobian.answers(batch)))


def _float32(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: g.detach().float() for name, g in gradients.items()}

"""Digits of 8 x 8 pixels as something to try a topology on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from penjing.data.digits import N_TEST, SPLIT_SEED
from penjing.data.splits import hold_out
from penjing.pruning.weight_agnostic.evaluate import evaluate
from penjing.pruning.weight_agnostic.search import SearchSettings
from penjing.pruning.weight_agnostic.topology import Topology

Images = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class DigitsTrial:
    """The reward is -NLL of the softmax over the outputs, a mean over a batch of the training part.

    Attributes:
        train_x, train_y: (samples, 64) in [0, 1] and (samples,).
        test_x, test_y: held out; no reward looks at them.
        batch: samples that one generation sees.
    """

    train_x: Images
    train_y: Labels
    test_x: Images
    test_y: Labels
    batch: int = 1000
    n_inputs: int = 64
    n_outputs: int = 10

    def rewards(
        self,
        topologies: Sequence[Topology],
        weights: Sequence[float],
        generator: np.random.Generator,
        *,
        thorough: bool = False,
    ) -> NDArray[np.float64]:
        """See `search.Trial`; thorough is the whole training part."""
        n = len(self.train_y)
        chosen = slice(None) if thorough else generator.permutation(n)[: self.batch]
        x, y = self.train_x[chosen], self.train_y[chosen]
        return np.stack([-nll(evaluate(topology, x, weights), y) for topology in topologies])


def digits_trial(batch: int = 1000) -> DigitsTrial:
    """scikit-learn's digits; the held-out 450 are those of `penjing.data.digits`, the other 1,347 are for training."""
    data = load_digits()
    images, labels = np.asarray(data.data, dtype=np.float64) / 16, np.asarray(data.target, dtype=np.int64)
    train, test = (np.asarray(part) for part in hold_out(len(labels), N_TEST, SPLIT_SEED))
    return DigitsTrial(images[train], labels[train], images[test], labels[test], batch)


def digits_search(**settings: Any) -> SearchSettings:
    """Settings of a search for these: few connections at first and large tournaments, as in the paper for MNIST.

    0.15 and 16 gave the best reward on the training part after 200 generations, among 0.02 to 0.15 and 4 to 32.
    """
    return SearchSettings(**({"initial_enabled": 0.15, "tournament": 16} | settings))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the softmax over the last dimension."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def nll(logits: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """-log softmax at the right class, a mean over the samples.

    Args:
        logits: (weights, samples, classes).
    Returns: (weights,).
    """
    shares = log_softmax(logits)
    return np.asarray(-shares[:, np.arange(len(labels)), labels].mean(1))


def accuracy(logits: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """The fraction of samples whose largest output is the right one, (weights,); of equal ones the first counts."""
    return np.asarray((logits.argmax(-1) == labels).mean(-1))


def ensemble_accuracy(logits: NDArray[np.float64], labels: Labels) -> float:
    """The accuracy where the softmax answers under all weights are averaged.

    Source: Gaier and Ha 2019, section 4, the ensemble of MNIST.
    """
    shares = np.exp(log_softmax(logits)).mean(0)
    return float((shares.argmax(-1) == labels).mean())

"""How much the answers, whatever they stand for, move when a weight moves."""

from collections.abc import Iterable

import torch
from torch import Tensor

from penjing.graph import ExitOutputs, Network
from penjing.sensitivity.evidence import Evidence
from penjing.sensitivity.per_sample import Direction, Jacobian
from penjing.training import Batch


def answer_information(network: Network, evidence: Evidence, *, draws: int = 1) -> dict[str, Tensor]:
    """E_x ||d F(x) / d w_i||^2, F all numbers of the answers together: the Gauss-Newton diagonal of ||F - F'||^2 / 2.

    Estimated without bias by E (d <F(x), v> / d w_i)^2 with v ~ N(0, I), drawn for each sample with `evidence.generator`. What
    the Fisher information is for classes, this is for embeddings and values.

    Returns: by the weight's full name, in its shape, at least 0.
    Raises: SettingError: no samples in the evidence.
    Source: Hutchinson 1990, for the estimate.
    """

    def drawn(answers: ExitOutputs, batch: Batch) -> Iterable[Direction]:
        for _ in range(draws):
            yield tuple(torch.randn(a.shape, generator=evidence.generator).to(a.device, a.dtype) for a in answers)

    found = Jacobian(network).mean(evidence.samples("answer information"), drawn, torch.square)
    return {name: value / draws for name, value in found.items()}

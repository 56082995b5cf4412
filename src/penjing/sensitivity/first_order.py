"""The gradient of the loss: how it changes when a weight moves a little."""

import torch
from torch import Tensor

from penjing.errors import DataError
from penjing.graph import Network
from penjing.sensitivity.evidence import Evidence
from penjing.sensitivity.per_sample import Jacobian


def mean_gradient(network: Network, evidence: Evidence) -> dict[str, Tensor]:
    """g = d E[L] / d w over the samples, for the weights as the layers use them, in evaluation mode.

    Returns: by the weight's full name, in its shape, float32; the sign is kept.
    Raises: SettingError: no samples or no loss in the evidence. DataError: the samples are none.
    """
    batches, loss = evidence.samples("gradient"), evidence.loss_of("gradient")
    jacobian = Jacobian(network)
    owners = {name: jacobian.network.get_parameter(name) for name in jacobian.names}
    totals = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in owners.items()}
    n = 0
    for given in batches:
        batch = given.to(jacobian.device)
        with torch.enable_grad():
            value = loss(jacobian.network, batch)
            found = torch.autograd.grad(value, list(owners.values()), allow_unused=True)
        n += batch.size
        for name, gradient in zip(owners, found, strict=True):
            if gradient is not None:
                totals[name] += gradient.double() * batch.size
    if not n:
        raise DataError("gradient: there are no samples; check the loader and the number of batches.")
    return {name: (total / n).float() for name, total in totals.items()}

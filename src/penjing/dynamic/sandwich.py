"""Training at many widths that share everything, norms too: each step the widest, the narrowest and some between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parametrize

from penjing.dynamic.slimmable import removal_for
from penjing.errors import SettingError
from penjing.graph import ExitOutputs, Network, channel_groups, remove_channels
from penjing.objective import soft_target_loss
from penjing.training import Batch, Part

if TYPE_CHECKING:
    from penjing.training.fit import Fit


class Sandwich(Part):
    """Train a network at random widths; at any of them it can be cut out afterwards, see `at_width`.

    loss = loss(y_1, labels) + sum over the narrower widths w of (1 - soft) loss(y_w, labels) + soft T^2 KL(y_1 / T || y_w / T),
    w the narrowest and `between` random ones; all of them compute with slices of the same weights, scales and shifts. The
    statistics of norms are left to be measured for each width after the training.

    Args:
        narrowest: the smallest width, in (0, 1).
        between: how many random widths a step.
        soft: weight of the widest answer as the teacher, 0 to 1; temperature: T.
        both_ends: the sandwich rule; without it a step is `between` + 2 random widths, which is worse at both ends.
        widths: train at just these in every step instead of random ones.
        shared_statistics: every width updates the running statistics that all have, which is known to fail.
    Raises: SettingError: a network with exits, or weights with representations, whose slices have no gradient.
    Source: Yu and Huang 2019 (US-Nets), arXiv:1903.05134, sections 3.2 (sandwich rule), 3.3 (in-place distillation) and 3.1.
    """

    STEPS = 16
    """Random widths are multiples of 1 / 16 of the way from the narrowest to 1, so that each is made but once."""

    def __init__(
        self,
        narrowest: float,
        *,
        between: int = 2,
        soft: float = 1.0,
        temperature: float = 1.0,
        both_ends: bool = True,
        widths: tuple[float, ...] = (),
        shared_statistics: bool = False,
    ) -> None:
        if not 0 < narrowest < 1:
            raise SettingError(f"sandwich: the narrowest width must be between 0 and 1, got {narrowest}.")
        self.narrowest, self.between, self.soft, self.temperature = narrowest, between, soft, temperature
        self.both_ends, self.widths, self.shared_statistics = both_ends, widths, shared_statistics
        self._selves: dict[float, _Self] = {}

    def start(self, fit: Fit) -> None:
        if fit.network.exits:
            raise SettingError(
                f"{fit.where}: universal widths are for a network without exits; attach those afterwards."
            )
        if any(parametrize.is_parametrized(module) for module in fit.network.modules()):
            raise SettingError(f"{fit.where}: weights have representations already; make the network slimmable first.")
        self._selves = {}

    def step(self, fit: Fit, batch: Batch) -> float | None:
        widths = list(self.widths) or self._drawn()
        terms: list[Tensor] = []
        whole: Tensor | None = None
        for width in widths:
            if width == 1:
                answers = fit.forward(batch)
                assert not isinstance(answers, ExitOutputs)
                whole = answers
                terms.append(fit.loss(batch, whole))
                continue
            narrow = self._self(fit.network, width)(fit, batch)
            if self.soft < 1 or whole is None:
                terms.append((1 - self.soft if whole is not None else 1.0) * fit.task.loss(narrow, batch.labels))
            if self.soft > 0 and whole is not None:
                soft = soft_target_loss(narrow, whole.detach(), temperature=self.temperature)
                terms.append(self.soft * soft)
        return fit.update(torch.stack(terms).sum())

    def _drawn(self) -> list[float]:
        """The widths of a step, the widest first."""
        n = self.between + (0 if self.both_ends else 2)
        places = torch.randint(0, self.STEPS + 1, (n,)).tolist()
        random = [self.narrowest + (1 - self.narrowest) * place / self.STEPS for place in places]
        return sorted([*random, *((1.0, self.narrowest) if self.both_ends else ())], reverse=True)

    def _self(self, network: Network, width: float) -> _Self:
        if width not in self._selves:
            self._selves[width] = _Self(network, width, self.shared_statistics)
        return self._selves[width]


class _Self:
    """A narrower self: a cut network that is called with slices of the whole one's parameters."""

    def __init__(self, network: Network, width: float, shared_statistics: bool) -> None:
        removal = removal_for(network, channel_groups(network), width, rounded=True)
        self.cut = remove_channels(network, removal).train()
        self.network = network
        self.keep: dict[str, dict[int, np.ndarray]] = {}
        for piece in removal.slices:
            name = f"{piece.path}.{piece.name}" if piece.path else piece.name
            self.keep.setdefault(name, {})[piece.dim] = piece.keep
        self.shared_statistics = shared_statistics

    def __call__(self, fit: Fit, batch: Batch) -> Tensor:
        tensors = self._sliced(dict(self.network.named_parameters()))
        if self.shared_statistics:
            tensors |= self._sliced(dict(self.network.named_buffers()))
        self.cut.to(fit.device).train()
        batch = fit.laid_out(batch)
        with fit.accelerator.autocast():
            answers: Tensor = functional_call(self.cut, tensors, batch.args, dict(batch.kwargs))
        return answers.float()

    def _sliced(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            for dim, keep in self.keep.get(name, {}).items():
                if len(keep) == int(keep[-1]) - int(keep[0]) + 1:
                    tensor = tensor.narrow(dim, int(keep[0]), len(keep))
                else:
                    tensor = tensor.index_select(dim, torch.as_tensor(keep, device=tensor.device))
            found[name] = tensor
        return found

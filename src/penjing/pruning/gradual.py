"""Pruning within one training: masks are chosen anew every few steps, at first many weights at a time, later few."""

import base64
import zlib
from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from penjing.errors import SettingError
from penjing.pruning.masks import Masks, apply_masks_, masks_of
from penjing.training import Fit, Part


def cubic_sparsity(step: int, n_steps: int, *, final: float, initial: float = 0.0) -> float:
    """s_t = s_f + (s_i - s_f) (1 - t / n)^3, for t from 0 to n; s_f afterwards.

    Args:
        step: t, steps done.
        n_steps: n, after how many the final sparsity is reached; at least 1.
    Source: Zhu and Gupta 2018, arXiv:1710.01878, eq. 1.
    """
    if n_steps < 1:
        raise SettingError(f"gradual pruning: it must take at least 1 step, got {n_steps}.")
    left = 1 - min(max(step, 0), n_steps) / n_steps
    return final + (initial - final) * left**3


class PruneGradually(Part):
    """Chooses masks anew every `every` steps, and at the end of the ramp, by a schedule of sparsities.

    Args:
        choose: from the step and the fraction of the way, 0 to 1 (cubic), the masks. The network is looked at as it then is.
        names: the weights that it is about; they have masks already.
        every: steps between two choices.
        until: fraction of all steps after which nothing changes any more.
        regrow: removed weights keep the value that they had and are ranked with the others, so that they can come back.
    Attributes:
        choices: how often masks were chosen.
    """

    def __init__(
        self,
        choose: Callable[[int, float], Masks],
        names: Collection[str],
        *,
        every: int = 100,
        until: float = 0.75,
        regrow: bool = True,
    ) -> None:
        self.choose, self.names, self.every, self.until, self.regrow = choose, names, every, until, regrow
        self.choices = 0
        self.reads_removed = regrow

    def start(self, fit: Fit) -> None:
        self.choices = 0

    def after_step(self, fit: Fit) -> None:
        last = max(1, round(self.until * fit.total_steps))
        if fit.step > last or (fit.step % self.every and fit.step != last):
            return
        training = fit.network.training
        if self.regrow:
            masks_now = masks_of(fit.network)
            for name in self.names:
                masks_now[name].fill_(True)
        masks = self.choose(fit.step, cubic_sparsity(fit.step, last, final=1.0))
        apply_masks_(fit.network, masks)
        fit.network.train(training)
        self.choices += 1

    def state(self) -> dict[str, object]:
        return {"choices": self.choices}

    def load_state(self, state: dict[str, object]) -> None:
        self.choices = int(state["choices"])  # type: ignore[call-overload]


def masks_to_json(masks: Mapping[str, Tensor]) -> dict[str, str]:
    """Masks as text: bits in order, deflated, base 64."""
    return {
        name: base64.b64encode(zlib.compress(np.packbits(mask.cpu().numpy()).tobytes(), 9)).decode()
        for name, mask in masks.items()
    }


def masks_from_json(text: Mapping[str, str], shapes: Mapping[str, torch.Size]) -> Masks:
    """The inverse, with the shapes from the network."""
    found = {}
    for name, packed in text.items():
        bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
        flags = np.unpackbits(bits, count=shapes[name].numel()).astype(bool)
        found[name] = torch.from_numpy(flags).view(shapes[name])
    return found

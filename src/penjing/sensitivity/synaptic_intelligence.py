"""Synaptic intelligence: how much of the loss's decrease each weight's movement brought."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from penjing.errors import SettingError
from penjing.sensitivity.layer_weights import weighted_layers
from penjing.training import Fit, Part
from penjing.training.checkpoint import load_state, save_state


def path_importance(contribution: Tensor, movement: Tensor, xi: float) -> Tensor:
    """Omega = relu(w / (d^2 + xi)): what a weight brought, for the square of how far it moved in all.

    Args:
        contribution: w, the sum over steps of -g dw.
        movement: d, the weight at the end minus at the start.
        xi: damping, > 0, so that weights that hardly moved do not count without limit.
    Source: Zenke, Poole and Ganguli 2017, arXiv:1703.04200, eq. 4 and 5.
    """
    return (contribution / (movement.square() + xi)).relu()


class SynapticIntelligence(Part):
    """Adds up, while training, w_i += -g_i * dtheta_i for every weight of a layer.

    g is the gradient of the loss before clipping and without weight decay, dtheta the movement that the optimizer really made,
    whatever it is. For small steps the sum over all parameters is the decrease of the loss. Weights that do not learn, such as
    those of fixed codebooks, have no entry.

    Args:
        xi: see `path_importance`.
        keep: a file, *.safetensors, that gets the result at the end of training, for `--resume`: a finished training is only
            read, and this part does not run then.
    Attributes:
        path: the sums, by the weight's full name.
    Raises: SettingError: xi is not above 0.
    Source: Zenke, Poole and Ganguli 2017, arXiv:1703.04200, section 3.
    """

    def __init__(self, xi: float = 0.1, keep: Path | None = None) -> None:
        if not xi > 0:
            raise SettingError(f"synaptic intelligence: xi must be above 0, got {xi}.")
        self.xi, self.keep = xi, keep
        self.path: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._result: dict[str, Tensor] | None = None

    def start(self, fit: Fit) -> None:
        self._weights = {name: w for name, w in _learned(fit).items() if w.requires_grad}
        self._start = {name: w.detach().clone() for name, w in self._weights.items()}
        self._before = {name: w.clone() for name, w in self._start.items()}
        self.path = {name: torch.zeros_like(w) for name, w in self._start.items()}
        self._release()
        for name, weight in self._weights.items():

            def note(w: Tensor, name: str = name) -> None:
                if w.grad is not None:
                    self._gradients[name] = w.grad.detach().clone()  # clipping comes later and works in place

            self._hooks.append(weight.register_post_accumulate_grad_hook(note))

    @torch.no_grad()
    def after_step(self, fit: Fit) -> None:
        for name, weight in self._weights.items():
            gradient = self._gradients.pop(name, None)
            if gradient is not None:
                self.path[name].addcmul_(gradient, weight - self._before[name], value=-1)
            self._before[name].copy_(weight)

    def finish(self, fit: Fit) -> None:
        self._release()
        self._result = {
            name: path_importance(self.path[name], w.detach() - self._start[name], self.xi)
            for name, w in self._weights.items()
        }
        if self.keep is not None and fit.accelerator.is_main_process:
            save_state(self.keep, {"importance": self._result})

    def importance(self) -> dict[str, Tensor]:
        """Omega of the training that has ended, by the weight's full name; from the file where this process only read it.

        Raises: SettingError: no training has ended.
        """
        if self._result is None and self.keep is not None and self.keep.exists():
            self._result = load_state(self.keep)["importance"]
        if self._result is None:
            raise SettingError("synaptic intelligence: no training with this part has ended yet.")
        return self._result

    def state(self) -> dict[str, object]:
        return {"path": self.path, "start": self._start}

    def load_state(self, state: dict[str, object]) -> None:
        for own, stored in ((self.path, state["path"]), (self._start, state["start"])):
            for name, value in own.items():
                value.copy_(stored[name])  # type: ignore[index]
        self._before = {name: w.detach().clone() for name, w in self._weights.items()}  # the network is loaded before

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _learned(fit: Fit) -> dict[str, Tensor]:
    """What is trained for each weight: itself, or the original under its representations."""
    return {
        name: layer.parametrizations["weight"].original  # type: ignore[index, union-attr, misc]
        if parametrize.is_parametrized(layer, "weight")
        else layer.weight
        for name, layer in weighted_layers(fit.network).items()
    }

"""The pruned shape, trained from scratch: what pruning found may be the architecture, not the weights.

Source: Liu et al. 2019 (Rethinking the Value of Network Pruning), arXiv:1810.05270, section 3.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from penjing.errors import SettingError
from penjing.graph import Network
from penjing.measurement.macs import macs_by_node
from penjing.representation import Mask, named_weights, representations
from penjing.training import BASELINE, TrainedStage, Workbench


@torch.no_grad()
def draw_weights_(network: Network, generator: torch.Generator | None = None) -> None:
    """Draw all weights anew; masks stay, and so does the scale of what they keep.

    Weights of convolutions and linear layers ~ N(0, 2 / fan_in), embeddings ~ N(0, 1), biases 0, norms 1 and 0 with fresh
    statistics. Other parameters (tables, tokens) are drawn from a normal of the size that they had.
    Raises: SettingError: a weight with a codebook or grid, whose values are not its own.
    Source: He et al. 2015, arXiv:1502.01852, eq. 10.
    """
    for full_name, owner, name in named_weights(network):
        codes = [part.kind for part in representations(owner, name) if not isinstance(part, Mask)]
        if codes:
            raise SettingError(
                f"scratch: {full_name} has a {codes[-1]}, so its values are not its own; train from scratch before that."
            )
        weight = owner.parametrizations[name].original if parametrize.is_parametrized(owner, name) else getattr(owner, name)  # type: ignore[index, union-attr]  # fmt: skip
        norm = hasattr(owner, "running_mean") or hasattr(owner, "normalized_shape") or hasattr(owner, "num_groups")
        if name == "bias":
            weight.zero_()
        elif norm:
            weight.fill_(1.0)
        else:
            weight.copy_(torch.randn(weight.shape, generator=generator).mul_(_deviation(owner, weight)))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.reset_running_stats()


def _deviation(owner: nn.Module, weight: Tensor) -> float:
    if isinstance(owner, nn.Embedding):
        return 1.0
    if isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)):
        return math.sqrt(2 / nn.init._calculate_fan_in_and_fan_out(weight)[0])
    return float(weight.square().mean().sqrt())


def scratch_epochs(budget: Literal["epochs", "macs"], epochs: int, macs_large: int, macs_small: int) -> int:
    """How long the small network may train.

    epochs  (Scratch-E): as many passes as the large one
    macs    (Scratch-B): as many multiply-accumulates, int(epochs * macs_large / macs_small)
    """
    return epochs if budget == "epochs" else int(epochs * macs_large / macs_small)


class TrainFromScratch(TrainedStage):
    """Draw all weights of the pruned network anew and train it: does pruning find weights, or a shape?"""

    label: ClassVar[str] = "scratch"
    needs: ClassVar[tuple[str, ...]] = ("labels or a teacher",)
    budget: Literal["epochs", "macs"] = Field(
        default="epochs",
        description="epochs: as many passes as `epochs` says (Scratch-E); macs: as much computation as the baseline needs for "
        "that many (Scratch-B)",
    )

    def apply(self, bench: Workbench) -> None:
        small = sum(macs_by_node(bench.network).values())
        large = self._macs_of_baseline(bench) if self.budget == "macs" else small
        epochs = scratch_epochs(self.budget, self.epochs, large, small)
        draw_weights_(bench.network)
        bench.facts |= {"epochs": epochs, "MACs of the baseline": large, "MACs": small}
        bench.train(self.schedule(epochs), self.parts(bench))

    def _macs_of_baseline(self, bench: Workbench) -> int:
        baseline = bench.teacher(BASELINE, self.where())
        if not isinstance(baseline, Network):
            raise SettingError(f"{self.label}: budget: the baseline's MACs are not known. Use budget: epochs.")
        return sum(macs_by_node(baseline).values())

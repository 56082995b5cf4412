"""All measures of how important a channel is, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from penjing.errors import SettingError, nearest
from penjing.graph import Group, Network
from penjing.pruning.apoz import average_zeros
from penjing.pruning.batch_norm_scale import batch_norm_scales
from penjing.pruning.channel_fisher import fisher_scores
from penjing.pruning.geometric_median import geometric_median_scores
from penjing.pruning.grouped_weights import grouped_weights
from penjing.pruning.magnitude import magnitude_scores
from penjing.pruning.taylor import taylor_scores
from penjing.pruning.weight_scores import WEIGHT_SCORES
from penjing.sensitivity import Evidence

Need = Literal["weights", "batch norm", "ReLU", "samples", "loss"]
OF_WEIGHTS = "weights:"
"""What the name of a score begins with that is the sum of a measure of single weights."""


@dataclass(frozen=True)
class ChannelScore:
    """A measure of importance of channels.

    Attributes:
        compute: of a network, groups of its channels and what else may be looked at, (channels,) per group; higher is more
            important.
        needs: what it looks at.
        comparable: scores of different layers are in one unit; else each layer's are divided by their norm first.
    """

    compute: Callable[[Network, Sequence[Group], Evidence], list[Tensor]]
    needs: tuple[Need, ...]
    comparable: bool = False


def _each(score: Callable[[Network, Group], Tensor]) -> Callable[[Network, Sequence[Group], Evidence], list[Tensor]]:
    return lambda network, groups, evidence: [score(network, group) for group in groups]


def _taylor(network: Network, groups: Sequence[Group], evidence: Evidence) -> list[Tensor]:
    loss = evidence.loss_of("taylor")
    return taylor_scores(network, groups, lambda batch: loss(network, batch), evidence.samples("taylor"))


def _fisher(network: Network, groups: Sequence[Group], evidence: Evidence) -> list[Tensor]:
    loss = evidence.loss_of("fisher")
    return fisher_scores(network, groups, lambda batch: loss(network, batch), evidence.samples("fisher"))


def _apoz(network: Network, groups: Sequence[Group], evidence: Evidence) -> list[Tensor]:
    return [1 - share for share in average_zeros(network, groups, evidence.samples("apoz"))]


CHANNEL_SCORES: dict[str, ChannelScore] = {
    "taylor": ChannelScore(_taylor, ("samples", "loss")),
    "magnitude": ChannelScore(_each(magnitude_scores), ("weights",)),
    "l1": ChannelScore(_each(lambda network, group: magnitude_scores(network, group, norm=1)), ("weights",)),
    "fisher": ChannelScore(_fisher, ("samples", "loss"), comparable=True),
    "geometric-median": ChannelScore(_each(geometric_median_scores), ("weights",)),
    "batch-norm-scale": ChannelScore(_each(batch_norm_scales), ("batch norm",), comparable=True),
    "apoz": ChannelScore(_apoz, ("samples", "ReLU"), comparable=True),
}


def check_score(name: str, where: str) -> str:
    """The name of a score. Raises: SettingError: there is none of that name, with the nearest ones."""
    known = [*CHANNEL_SCORES, *(OF_WEIGHTS + other for other in WEIGHT_SCORES)]
    if name not in known:
        raise SettingError(f'{where}: there is no score "{name}"; {nearest(name, known)}.')
    return name


def channel_scores(name: str, network: Network, groups: Sequence[Group], evidence: Evidence) -> list[Tensor]:
    """How important each channel is, higher is more, so that channels of different groups can be compared.

    Args:
        name: in `CHANNEL_SCORES`, or "weights:NAME" for the sum of a measure of single weights, see `grouped_weights`.
    Returns: per group (channels,), float32.
    Raises: SettingError: no such score, or it needs what the evidence or the network does not have.
    """
    check_score(name, "channel scores")
    if name.startswith(OF_WEIGHTS):
        found = grouped_weights(WEIGHT_SCORES[name.removeprefix(OF_WEIGHTS)](network, evidence), groups)
        comparable = False
    else:
        found = CHANNEL_SCORES[name].compute(network, groups, evidence)
        comparable = CHANNEL_SCORES[name].comparable
    return found if comparable else [score / score.norm().clamp_min(1e-12) for score in found]

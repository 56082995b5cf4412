"""Ghost modules: some channels are computed, the others are cheap filters of these.

x ── k x k ──┬───────────────────────┬── concatenated
             └── d x d, each alone ──┘

k^2 I m + d^2 m (r - 1) weights instead of k^2 I O, m = O / r channels computed.
Source: Han et al. 2020 (GhostNet), arXiv:1911.11907, section 3.1.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor, nn

from penjing.architecture.swap import ConvSwap, Replacement, behind, like
from penjing.errors import SettingError
from penjing.graph import Node, chain
from penjing.graph.network import MODULE


def ghost_approximation(
    weight: Tensor, ratio: int, kernel: int, *, ordered: bool = False
) -> tuple[Tensor, Tensor, float, tuple[int, ...]]:
    """Which filters to compute, and the cheap filters that make the others of them.

    The m filters of largest norm are computed. A cheap filter c of a computed one W_p gives c * W_p; for every pair (p, o) the
    c of least |W_o - c * W_p|^2 is found in closed form, and who makes whom by an assignment that loses least in all (each
    computed one makes r - 1).

    Args:
        weight: (O, I, k, k), O a multiple of r. ratio: r. kernel: d, odd.
        ordered: the first m are computed and make the others in their order.
    Returns: (m, I, k, k), (m (r - 1), 1, d, d), |W - W'|^2 / |W|^2 away from the borders, and the order of outputs.
    Source: Han et al. 2020, section 3.1; the assignment is ours.
    """
    out = len(weight)
    m, margin = out // ratio, kernel // 2
    w = weight.detach().double()
    order = torch.arange(out) if ordered else w.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    computed, others = order[:m].sort().values, order[m:].sort().values
    padded = F.pad(w, (2 * margin,) * 4)
    height, width = (size + 2 * margin for size in weight.shape[2:])
    # shifts of the computed filters: (m, d^2, everything); nn.Conv2d correlates, so tap (a, b) of c moves W_p by (a, b)
    shifts = torch.stack(
        [padded[computed, :, a : a + height, b : b + width].flatten(1) for a in range(kernel) for b in range(kernel)], 1
    ).flip(1)
    targets = padded[others, :, margin : margin + height, margin : margin + width].flatten(1)  # (O - m, everything)
    gram = shifts @ shifts.transpose(1, 2) + 1e-9 * torch.eye(kernel**2, dtype=w.dtype) * w.square().sum() / out
    right = torch.einsum("mde,oe->mdo", shifts, targets)
    filters = torch.linalg.solve(gram, right)  # (m, d^2, O - m)
    gain = (filters * right).sum(1)  # (m, O - m): how much of |W_o|^2 is explained
    if ordered:
        makers, made = torch.arange(m).repeat_interleave(ratio - 1), torch.arange(out - m)
    else:
        rows, columns = linear_sum_assignment(-gain.repeat_interleave(ratio - 1, 0).numpy())
        makers, made = torch.from_numpy(rows) // (ratio - 1), torch.from_numpy(columns)
    cheap = filters[makers, :, made].reshape(-1, 1, kernel, kernel)
    lost = targets.square().sum() - gain[makers, made].sum()
    error = float(lost / w.square().sum().clamp_min(1e-300))
    found = tuple(torch.cat([computed, others[made]]).tolist())
    return w[computed].to(weight.dtype), cheap.to(weight.dtype), error, found


class GhostModules(ConvSwap):
    """Replace k x k convolutions by Ghost modules: some channels computed, the others cheap filters of these."""

    label: ClassVar[str] = "ghost-modules"
    ratio: int = Field(
        default=2, ge=2, description="output channels for each computed one; they must be a multiple of it"
    )
    kernel: int = Field(default=3, ge=1, description="of the cheap filters, odd")

    def replacement(self, conv: nn.Conv2d, places: tuple[int, int], *, ordered: bool = False) -> Replacement:
        if self.kernel % 2 == 0:
            raise SettingError(f"the cheap filters must have an odd kernel, got {self.kernel}")
        if conv.out_channels % self.ratio or conv.out_channels <= self.ratio:
            raise SettingError(
                f"its {conv.out_channels} output channels are no multiple of {self.ratio} greater than it"
            )
        m = conv.out_channels // self.ratio
        first, cheap, error, order = ghost_approximation(conv.weight, self.ratio, self.kernel, ordered=ordered)
        has_bias = conv.bias is not None
        primary: Any = like(conv, conv.in_channels, m, bias=has_bias)
        ghosts: Any = nn.Conv2d(m, m * (self.ratio - 1), self.kernel, padding=self.kernel // 2, groups=m, bias=has_bias)
        with torch.no_grad():
            primary.weight.copy_(first)
            ghosts.weight.copy_(cheap)
            if conv.bias is not None:
                bias = conv.bias[list(order)]
                primary.bias.copy_(bias[:m])
                through = cheap.sum((1, 2, 3)) * bias[:m].repeat_interleave(self.ratio - 1)
                ghosts.bias.copy_(bias[m:] - through.to(bias))
        before: dict[str, nn.Module] = {"computed": primary}
        behind("", before, m, self.norm, self.activation)
        nodes = list(chain(before))
        last = nodes[-1].name
        nodes.append(Node("ghosts", MODULE, (last,), "ghosts"))
        nodes.append(Node("joined", "concat", (last, "ghosts"), settings={"dim": 1}))
        layers = {**before, "ghosts": ghosts}
        return Replacement({n: x.to(conv.weight) for n, x in layers.items()}, tuple(nodes), error, order)

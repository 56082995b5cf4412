"""A shallow network: one hidden layer, wide, and before it, if wanted, a narrow linear one that makes it cheap.

input ── flatten ── H ── relu ── logits                        weights of the hidden layer: H D
input ── flatten ── k ── H ── relu ── logits                   k (H + D): a matrix H x D of rank k, in two factors
"""

from collections import OrderedDict

from torch import nn

from penjing.errors import SettingError


def shallow_net(
    inputs: int = 784, hidden: int = 2000, bottleneck: int | None = None, classes: int = 10
) -> nn.Sequential:
    """One hidden layer with ReLU; with a bottleneck its matrix W (H x D) is U (H x k) V (k x D), without anything in between.

    It computes what some network without a bottleneck computes, whose matrix has at most rank k: only training is different,
    and the number of multiply-accumulates. V is drawn with variance 1 / D, so that hidden units begin as they do without it.

    Args:
        inputs: D, numbers of a sample, of whatever shape.
        hidden: H, units of the hidden layer.
        bottleneck: k linear units; None for none.
    Raises: SettingError: a size that is not positive.
    Source: Ba and Caruana 2014, arXiv:1312.6184, section 2.3, "introducing a linear layer".
    """
    sizes = {"inputs": inputs, "hidden": hidden, "classes": classes}
    sizes |= {} if bottleneck is None else {"bottleneck": bottleneck}
    for name, size in sizes.items():
        if size < 1:
            raise SettingError(f"shallow_net: {name} must be at least 1, got {size}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    if bottleneck is not None:
        layers["bottleneck"] = first = nn.Linear(inputs, bottleneck, bias=False)
        nn.init.normal_(first.weight, std=inputs**-0.5)
    layers["hidden"] = nn.Linear(bottleneck or inputs, hidden)
    layers["relu"] = nn.ReLU()
    layers["out"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)

"""What heads of exits and gates see of an image: means over parts of its map, as one row of numbers.

Early layers do not bring a class into one channel, so a mean over all places loses most of what they know. Behind the second
stage of a trained ResNet-20 a linear layer that sees 1, 4 and 16 parts has 47, 61 and 74 % of 5,000 pictures of CIFAR-10 right
that it has not learned from (the ResNet has), a head with a convolution 71 %; means of 8 rows have 67 %.
"""

from collections.abc import Sequence

from penjing.graph import Network, Node
from penjing.graph.sizes import Size

MAP = 4
"""Parts a side of the map that a head sees, as in Kaya et al. 2019 (Shallow-Deep Networks), arXiv:1810.07052, section 4."""


def means_over_parts(
    network: Network, stem: str, source: str, shape: Sequence[int], places: int = MAP
) -> tuple[list[Node], int]:
    """Nodes that make (batch, numbers) of a result (batch, channels, ...), the last of them gives it; and how many numbers.

    Args:
        stem: what the nodes' names begin with.
        shape: of the result of `source`; (batch, channels) needs no nodes.
        places: parts a side, of one size, which touch or overlap; smaller maps stay as they are. It is 1 where the result has
            not two dimensions of places, and where the inputs' sizes are left open.
    """
    if places == 1 or not is_fixed_map(network, shape):
        return mean_over_all(network, stem, source, shape)
    nodes: list[Node] = []
    parts = [min(places, size) for size in shape[2:]]
    strides = [size // n for size, n in zip(shape[2:], parts, strict=True)]
    kernel = [size - (n - 1) * step for size, n, step in zip(shape[2:], parts, strides, strict=True)]
    if kernel != [1, 1]:
        pooling = {"kernel_size": tuple(kernel), "stride": tuple(strides), "padding": 0}
        nodes.append(Node(network.fresh_name(f"{stem}_pool"), "avg_pool2d", (source,), settings=pooling))
        source = nodes[-1].name
    nodes.append(Node(network.fresh_name(f"{stem}_map"), "flatten", (source,), settings={"start_dim": 1}))
    return nodes, shape[1] * parts[0] * parts[1]


def mean_over_all(network: Network, stem: str, source: str, shape: Sequence[int]) -> tuple[list[Node], int]:
    """The same with everything as one part."""
    if len(shape) == 2:
        return [], shape[1]
    settings = {"dims": tuple(range(2, len(shape))), "keepdim": False}
    return [Node(network.fresh_name(f"{stem}_mean"), "mean", (source,), settings=settings)], shape[1]


def is_fixed_map(network: Network, shape: Sequence[int]) -> bool:
    """Whether a result has two dimensions of places whose sizes no input leaves open."""
    is_open = any(isinstance(size, Size) for of_input in network.input_shapes for size in of_input)
    return len(shape) == 4 and not is_open

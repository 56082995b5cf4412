"""How each ATen operation becomes nodes: one rule an operation.

`READERS` is the table of operations, `IN_LAYER` says of which operations a layer of `torch.nn` consists, `REBUILT` makes
layers of operations whose weights a module of the user's own class holds.
"""

from penjing.graph.readers.elementwise import ELEMENTWISE
from penjing.graph.readers.layers import IN_LAYER, REBUILT
from penjing.graph.readers.norms import NORMS
from penjing.graph.readers.pools import POOLS
from penjing.graph.readers.products import PRODUCTS
from penjing.graph.readers.reading import Rule
from penjing.graph.readers.reductions import REDUCTIONS
from penjing.graph.readers.shapes import SHAPES

READERS: dict[str, Rule] = {
    **SHAPES,
    **ELEMENTWISE,
    **REDUCTIONS,
    **PRODUCTS,
    **POOLS,
    **NORMS,
}

__all__ = ["IN_LAYER", "READERS", "REBUILT"]

"""How weights are written: as themselves, under a mask, by a codebook. See `representation.Representation`."""

from penjing.representation.codebook import Codebook
from penjing.representation.grid import Grid
from penjing.representation.half import Half
from penjing.representation.in_place import MasksInPlace, masks_in_place
from penjing.representation.mask import Mask
from penjing.representation.representation import Representation, named_weights, plain, represent_, representations
from penjing.representation.scaled_codebook import ScaledCodebook
from penjing.representation.signs import Signs
from penjing.representation.ties import Ties

__all__ = [
    "Codebook",
    "Grid",
    "Half",
    "Mask",
    "MasksInPlace",
    "Representation",
    "ScaledCodebook",
    "Signs",
    "Ties",
    "masks_in_place",
    "named_weights",
    "plain",
    "represent_",
    "representations",
]

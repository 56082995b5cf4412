"""Networks that run from their compressed weights."""

from penjing.inference.backend import TOLERANCE, Accelerated, Choice, accelerate
from penjing.inference.layers import CompressedLayer

__all__ = ["TOLERANCE", "Accelerated", "Choice", "CompressedLayer", "accelerate"]

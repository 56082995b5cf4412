"""How much the loss, or the answer, depends on each weight. What pruning and quantization both ask."""

from penjing.sensitivity.evidence import Evidence, Weights

__all__ = ["Evidence", "Weights"]

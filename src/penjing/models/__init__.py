"""Networks to start from."""

from penjing.models.plain_cnn import plain_cnn

__all__ = ["plain_cnn"]

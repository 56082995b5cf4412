"""Tasks whose loss and metric are their own: what is neither classification nor a matter of a loader."""

from penjing.tasks.sentences import COSINE, sentences

__all__ = ["COSINE", "sentences"]

"""Tensors that are one object: the second place names the first."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from penjing.artifact.codecs.codec import Codec, Located, Sink, Source
from penjing.errors import ArtifactError
from penjing.representation import Representation


class Same(Codec):
    """How many tensors back the one is that this is. The container, which knows the tensors, writes and reads it."""

    kind: ClassVar[str] = "same"

    def variant(self, value: Tensor, stack: Sequence[Representation], sink: Sink) -> int:
        return 0

    def write(self, value: Tensor, stack: Sequence[Representation], variant: int, sink: Sink) -> None:
        raise NotImplementedError("the container writes how many tensors back it is")

    def locate(self, shape: tuple[int, ...], variant: int, source: Source) -> Located:
        raise ArtifactError("artifact: a tensor is the same as one that is not there.")

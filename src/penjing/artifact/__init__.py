"""What a file is: a network, small, sound, and readable without its source code."""

from penjing.artifact.container import decode, dissect, encode, load
from penjing.artifact.inspect import Row, inspect

__all__ = ["Row", "decode", "dissect", "encode", "inspect", "load"]

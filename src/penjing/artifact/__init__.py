"""What a file is: a network, small, sound, and readable without its source code."""

from penjing.artifact.container import (
    Artifact,
    decode,
    dissect,
    encode,
    load,
    load_networks,
    open_artifact,
    save,
)
from penjing.artifact.inspect import Row, inspect
from penjing.artifact.into import load_into
from penjing.artifact.networks import Networks

__all__ = [
    "Artifact",
    "Networks",
    "Row",
    "decode",
    "dissect",
    "encode",
    "inspect",
    "load",
    "load_into",
    "load_networks",
    "open_artifact",
    "save",
]

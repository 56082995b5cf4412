"""What a file is: a network, small, sound, and readable without its source code."""

from penjing.artifact.container import encode, save
from penjing.artifact.inspect import Row, inspect
from penjing.artifact.into import load_into
from penjing.artifact.networks import Networks
from penjing.artifact.opened import Artifact, TensorEntry, decode, dissect, load, load_networks, open_artifact

__all__ = [
    "Artifact",
    "Networks",
    "Row",
    "TensorEntry",
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

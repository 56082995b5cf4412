"""What a file is: a network, small, sound, and readable without its source code."""

from penjing.artifact.codecs.codec import Speed
from penjing.artifact.container import encode, save
from penjing.artifact.inspect import Row, inspect
from penjing.artifact.into import load_into
from penjing.artifact.networks import Networks
from penjing.artifact.opened import Artifact, Backend, TensorEntry, decode, dissect, load, load_networks, open_artifact
from penjing.artifact.pack import Packed, Packing, pack
from penjing.artifact.unpack import unpack, unpacked_bytes

__all__ = [
    "Artifact",
    "Backend",
    "Networks",
    "Packed",
    "Packing",
    "Row",
    "Speed",
    "TensorEntry",
    "decode",
    "dissect",
    "encode",
    "inspect",
    "load",
    "load_into",
    "load_networks",
    "open_artifact",
    "pack",
    "save",
    "unpack",
    "unpacked_bytes",
]

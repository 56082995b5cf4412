"""Data sets: small ones that are there, and how to bring one's own."""

from penjing.data.augment import Augment
from penjing.data.digits import digits
from penjing.data.hub import hub
from penjing.data.image_folder import image_folder
from penjing.data.mnist import mnist
from penjing.data.splits import Splits, in_memory_loader
from penjing.data.versions import Versioned, Versions

__all__ = ["Augment", "Splits", "Versioned", "Versions", "digits", "hub", "image_folder", "in_memory_loader", "mnist"]

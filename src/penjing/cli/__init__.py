"""The command line."""

from penjing.cli.main import main

__all__ = ["main"]

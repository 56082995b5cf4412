"""Files that are written whole or not at all, and files that are exactly those that were meant."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from penjing.errors import ArtifactError, RunError, SettingError

_CHUNK = 1 << 20


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is either the old one or the new one.

    Raises: RunError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    with written_atomically(path, "a run then goes on with --resume") as file:
        file.write(content)


@contextmanager
def written_atomically(path: Path, then: str = "then try again") -> Iterator[BinaryIO]:
    """A file to write piece by piece, in a `with` block. It gets its name when the block ends without an error.

    Args:
        then: what to do when there is room again, for the message.
    Raises: RunError: as `write_atomically`.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"{path}: could not be written ({error.strerror or error}). What was there before is untouched. "
            f"Make room or get the rights; {then}."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_sha256(file: BinaryIO, expected: str, where: str) -> None:
    """Refuse a file that is not the one that was meant; a checksum tells damage, only this tells malice.

    Args:
        expected: SHA-256 of the whole file, 64 hexadecimal digits.
    Raises: SettingError: `expected` is no such number. ArtifactError: the file has another one.
    """
    if not re.fullmatch("[0-9a-fA-F]{64}", expected):
        raise SettingError(
            f'sha256: must be 64 hexadecimal digits, got "{expected}". They are what sha256sum FILE prints.'
        )
    found = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    if found.hexdigest() != expected.lower():
        raise ArtifactError(
            f"{where}: its SHA-256 is {found.hexdigest()}, and must be {expected.lower()}. It is not the file that was "
            "meant; nothing of it was read. Get it again from where the number comes from."
        )

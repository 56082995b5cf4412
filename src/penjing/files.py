"""Files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from penjing.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is either the old one or the new one.

    Raises: RunError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"{path}: could not be written ({error.strerror or error}). What was there before is untouched. "
            "Make room or get the rights; a run then goes on with --resume."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)

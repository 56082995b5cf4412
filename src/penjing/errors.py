"""Every error that penjing raises on purpose.

    PenjingError
    ├── SettingError (ValueError)      a setting that cannot work: wrong name, type or range
    ├── DataError (ValueError)         data of the wrong shape, labels out of range, a folder without data
    ├── SurgeryError (ValueError)      a change of the network's structure that cannot be made
    ├── TraceError (ValueError)        a network whose graph cannot be read, or cannot travel in a file
    ├── TrainingError (RuntimeError)   training that cannot go on (NaN loss, no finite gradient)
    ├── ArtifactError (ValueError)     a file that is damaged, foreign, or from a newer version
    ├── RunError (RuntimeError)        a run folder that is in the way, belongs to another run, or is incomplete
    └── MissingError (ImportError)     an optional dependency that is not installed

Each is also a child of the builtin that a caller would catch. A message says where, what must hold, what was given
and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class PenjingError(Exception):
    """Base of all errors raised on purpose; catch it to catch them all."""


class SettingError(PenjingError, ValueError):
    """A setting that cannot work."""


class DataError(PenjingError, ValueError):
    """Data that does not fit the task."""


class SurgeryError(PenjingError, ValueError):
    """A change of structure that cannot be made on this network."""


class TraceError(PenjingError, ValueError):
    """A network whose graph cannot be read or cannot travel in a file."""


class TrainingError(PenjingError, RuntimeError):
    """Training that cannot go on."""


class ArtifactError(PenjingError, ValueError):
    """A file that is not a sound artifact."""


class RunError(PenjingError, RuntimeError):
    """A run folder that cannot be used as asked."""


class MissingError(PenjingError, ImportError):
    """An optional dependency that is not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that helps with a name that is not known: the nearest known one, and all of them.

    >>> nearest("temprature", ["temperature", "epochs"])
    'did you mean "temperature"? Known: epochs, temperature'
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Known: {', '.join(names) if names else '(none)'}"

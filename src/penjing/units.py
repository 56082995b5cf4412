"""Quantities as people write them: bytes, milliseconds, counts, percentage points."""

import re

from penjing.errors import SettingError

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)


def _split(text: str, where: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise SettingError(f'{where}: must be a number with a unit, got "{text}". Write for example "{example}".')
    return float(match[1]), match[2].lower()


def parse_bytes(value: int | str, where: str = "size") -> int:
    """Bytes from 4000, "4000", "4 kB" (1000 B) or "4 KiB" (1024 B).

    Raises: SettingError: not a positive number, or a unit that is not one of B, kB, MB, GB, KiB, MiB, GiB.
    """
    number, unit = (float(value), "b") if isinstance(value, int) else _split(value, where, "60 kB")
    if (unit or "b") not in _BYTES or number <= 0:
        raise SettingError(f'{where}: must be a positive size in B, kB, MB, GB, KiB, MiB or GiB, got "{value}".')
    return round(number * _BYTES[unit or "b"])


def parse_count(value: int | str, where: str = "count") -> int:
    """A count from 6400, "6.4k", "12 M".

    Raises: SettingError: not a positive number, or a unit other than k, M, G.
    """
    number, unit = (float(value), "") if isinstance(value, int) else _split(value, where, "6.4k")
    if unit not in _COUNTS or number <= 0:
        raise SettingError(f'{where}: must be a positive count, plain or with k, M or G, got "{value}".')
    return round(number * _COUNTS[unit])


def parse_latency_ms(value: float | str, where: str = "latency") -> float:
    """Milliseconds from 5, "5 ms", "300 us", "0.1 s". A bare number is in milliseconds.

    Raises: SettingError: not a positive number, or a unit other than us, ms, s.
    """
    number, unit = (float(value), "ms") if isinstance(value, (int, float)) else _split(value, where, "5 ms")
    if (unit or "ms") not in _SECONDS or number <= 0:
        raise SettingError(f'{where}: must be a positive time in us, ms or s, got "{value}".')
    return number * _SECONDS[unit or "ms"] * 1e3


def parse_points(value: float | str, where: str = "drop") -> float:
    """A difference as a fraction, from "1 pp", "0.5 pp" (percentage points) or 0.01.

    Raises: SettingError: negative, 1 or more, or a unit other than pp.
    """
    number, unit = (float(value), "") if isinstance(value, (int, float)) else _split(value, where, "1 pp")
    if unit not in ("", "pp", "%"):
        raise SettingError(f'{where}: must be in percentage points or a fraction, got "{value}". Write "1 pp" or 0.01.')
    fraction = number / 100 if unit else number
    if not 0 <= fraction < 1:
        raise SettingError(f'{where}: must be at least 0 and under 100 pp, got "{value}". Write "1 pp" or 0.01.')
    return fraction


def show_bytes(size_bytes: int) -> str:
    """The size for people: 999 B, 4.0 kB, 1.25 MB (1 kB = 1000 B)."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    for unit, factor in (("kB", 10**3), ("MB", 10**6)):
        if size_bytes < 1000 * factor:
            return (
                f"{size_bytes / factor:.3g} {unit}"
                if size_bytes >= 100 * factor
                else f"{size_bytes / factor:.2f} {unit}"
            )
    return f"{size_bytes / 10**9:.2f} GB"


def show_count(count: float) -> str:
    """The count for people: 999, 6.40k, 12.3M."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:.0f}"


def show_seconds(seconds: float) -> str:
    """A duration for people: 0.3 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""Names for types that signatures share."""

from typing import Any

Json = Any
"""What `json.dumps` takes: None, bool, int, float, str, and lists and dicts of these."""

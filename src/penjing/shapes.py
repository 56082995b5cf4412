"""Names of tensor types that signatures use, checked at run time in the tests."""

from typing import Any

from torch import Tensor

Json = Any
"""What `json.dumps` takes: None, bool, int, float, str, and lists and dicts of these."""

Logits = Tensor
"""Shape (batch, classes), float: scores before the softmax."""

Labels = Tensor
"""Shape (batch,), int64, 0 <= label < classes."""

"""The structure of an answer as bytes: which tensors stand where, in tuples, lists and under names.

    0           None
    1, 2        a tuple, a list: number of parts, the parts
    3           by names: number of parts, then name and part each
    4 + k       the output's k-th tensor

Numbers are varints. The structure is that of `graph.network`'s outputs: an index, None, or (kind, ...).
"""

from typing import Any

from penjing.artifact.values import read_string, write_string
from penjing.entropy import ByteReader, ByteWriter
from penjing.errors import ArtifactError

_NONE, _FIRST_INDEX = 0, 4
_KINDS = {1: "tuple", 2: "list", 3: "dict"}
_MAX_DEPTH = 16


def write_form(writer: ByteWriter, form: Any, n: int, depth: int = 0) -> None:
    """Append the structure of an answer of `n` tensors. Raises: ArtifactError: it is none, or deeper than 16."""
    if form is None:
        writer.uvarint(_NONE)
    elif isinstance(form, int) and not isinstance(form, bool) and 0 <= form < n:
        writer.uvarint(_FIRST_INDEX + form)
    elif isinstance(form, tuple) and form and form[0] in _KINDS.values() and depth < _MAX_DEPTH:
        kind, *parts = form
        names = parts[::2] if kind == "dict" else []
        parts = parts[1::2] if kind == "dict" else parts
        if not all(isinstance(name, str) for name in names) or (kind == "dict" and len(names) != len(parts)):
            raise ArtifactError(f"artifact: the answer's structure must have a name for each part, got {form}.")
        writer.uvarint(next(code for code, known in _KINDS.items() if known == kind))
        writer.uvarint(len(parts))
        for i, part in enumerate(parts):
            if names:
                write_string(writer, names[i])
            write_form(writer, part, n, depth + 1)
    else:
        raise ArtifactError(
            f"artifact: the answer's structure must be made of tuples, lists, dictionaries (at most {_MAX_DEPTH} deep), "
            f"None and the numbers of {n} tensors, got {form!r}."
        )


def read_form(reader: ByteReader, n: int, depth: int = 0) -> Any:
    """Read the structure of an answer of `n` tensors.

    Raises: ArtifactError: deeper than 16, or a tensor that the output does not have.
    """
    code = reader.uvarint()
    if code == _NONE:
        return None
    if code >= _FIRST_INDEX:
        if code - _FIRST_INDEX >= n:
            raise ArtifactError(f"artifact: the answer names tensor {code - _FIRST_INDEX}; the output has {n}.")
        return code - _FIRST_INDEX
    if depth >= _MAX_DEPTH:
        raise ArtifactError(f"artifact: the answer's structure is more than {_MAX_DEPTH} deep.")
    n_parts = reader.uvarint()
    if n_parts > reader.n_left:
        raise ArtifactError("artifact: the answer's structure has more parts than the graph has bytes.")
    form: list[Any] = [_KINDS[code]]
    for _ in range(n_parts):
        if _KINDS[code] == "dict":
            form.append(read_string(reader))
        form.append(read_form(reader, n, depth + 1))
    return tuple(form)

"""Words for kernels that speak to LLVM directly: loads from addresses, vectors, fused multiplication.

Numba's loops become good machine code where LLVM finds the vectors itself. Where it does not (gathers that are slower than
single loads, tables held in registers, bits used as lanes), a kernel is a Numba `intrinsic` that builds the inner loop here.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INT8, INT16, INT32, INT64, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def vector(element: Any, lanes: int) -> Any:
    """The type of so many numbers side by side."""
    return ir.VectorType(element, lanes)


def same(value: float, element: Any, lanes: int) -> Any:
    """A constant vector."""
    return ir.Constant(vector(element, lanes), [value] * lanes)


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """A number in all lanes of a vector."""
    kind = vector(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT32(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), same(0, INT32, lanes))


def add(builder: Any, address: Any, n_bytes: Any) -> Any:
    """An address so many bytes further."""
    return builder.add(address, INT64(n_bytes) if isinstance(n_bytes, int) else n_bytes)


def load(builder: Any, address: Any, kind: Any) -> Any:
    """What lies at an address; it need not be aligned."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: Any, address: Any, value: Any) -> None:
    """Write to an address, which need not be aligned."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def call(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    """An instruction of LLVM's or of the processor's, by its name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def fetch(builder: Any, address: Any) -> None:
    """Bring the cache line of an address on its way; where nothing lies there, nothing happens."""
    place = builder.inttoptr(address, INT8.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [place, INT32(0), INT32(3), INT32(1)])


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c for vectors of floats, rounded once where the processor can."""
    return call(builder, f"llvm.fma.v{a.type.count}f32", a.type, [a, b, c])


def lanes_added(builder: Any, values: Any) -> Any:
    """The sum of a vector's lanes, in any order."""
    found = call(builder, f"llvm.vector.reduce.fadd.v{values.type.count}f32", FLOAT, [ir.Constant(FLOAT, 0.0), values])
    found.fastmath.add("reassoc")
    return found


class Sums:
    """Several running sums of a kind, so that an addition need not wait for the one before."""

    def __init__(self, builder: Any, n: int, lanes: int) -> None:
        self.builder = builder
        self._places = [cgutils.alloca_once_value(builder, same(0.0, FLOAT, lanes)) for _ in range(n)]

    def update(self, k: int, change: Callable[[Any], Any]) -> None:
        """Replace the sum number k (of as many as there are, counted on) by what `change` makes of it."""
        place = self._places[k % len(self._places)]
        self.builder.store(change(self.builder.load(place)), place)

    def together(self) -> Any:
        """The sum of all sums, a vector."""
        first, *others = (self.builder.load(place) for place in self._places)
        for other in others:
            first = self.builder.fadd(first, other)
        return first


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """A number as a pointer, for `numba.carray`; kernels take addresses, since arrays as arguments cost a microsecond each."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], INT8.as_pointer())

    return types.voidptr(types.intp), generate

"""Memory that will be needed soon is asked for early; results never depend on it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

#: Bytes that the processor brings at a time.
LINE_BYTES = 64
_FOR_READING, _KEEP, _DATA = 0, 3, 1


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for all lines of element `index` of a one-dimensional array; the index must lie within the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        record = context.make_array(kind)(context, builder, arguments[0])
        at = cgutils.get_item_pointer(context, builder, kind, record, [arguments[1]])
        size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        byte = ir.IntType(8).as_pointer()
        base = builder.bitcast(at, byte)
        word = ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        called = builder.module.declare_intrinsic("llvm.prefetch", [byte], shape)
        for offset in range(0, size, LINE_BYTES):
            line = builder.gep(base, [ir.IntType(64)(offset)])
            builder.call(called, [line, word(_FOR_READING), word(_KEEP), word(_DATA)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate

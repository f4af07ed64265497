"""Data types and numbers as ONNX writes them, and as latbench does."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from latbench.errors import ModelError

#: ONNX's number of a data type → latbench's name.
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.DOUBLE: "f64", TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "f8e4m3", TensorProto.FLOAT8E5M2: "f8e5m2", TensorProto.INT64: "i64",
    TensorProto.INT32: "i32", TensorProto.INT16: "i16", TensorProto.INT8: "i8", TensorProto.UINT64: "u64",
    TensorProto.UINT32: "u32", TensorProto.UINT16: "u16", TensorProto.UINT8: "u8", TensorProto.BOOL: "bool",
    TensorProto.INT4: "i4", TensorProto.UINT4: "u4",
}  # fmt: skip
_NUMBERS = {name: number for number, name in DTYPES.items()}


def tensor_type(dtype: str) -> int:
    """ONNX's number of a data type."""
    return _NUMBERS[dtype]


def dtype_name(number: int, where: str) -> str:
    """The name of ONNX's data type. Raises :class:`ModelError` for one without elements of a fixed size (strings)."""
    if number not in DTYPES:
        known = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else number
        raise ModelError(f"{where}: data type {known} is not one that latbench can measure")
    return DTYPES[number]


def decimal(value: float) -> float:
    """The shortest decimal number that a 32-bit attribute stands for: 0.2, not 0.20000000298023224."""
    return float(str(np.float32(value)))

"""The .npy format, read without trusting it: a header is compared, and nothing is allocated by it.

NumPy's own reader evaluates a header as Python, and asks for as much memory as it says.
"""

from __future__ import annotations

import re
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=65536)
def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Returns what `np.save` writes before the numbers of a C-contiguous array."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {
            "shape": shape,
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        },
    )
    return buffer.getvalue()


# What NumPy writes, whichever version it is. A header is compared, never evaluated.
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]{0,999})\), \} *\n"
)
_MAGIC = b"\x93NUMPY"


def read_header(data: bytes) -> tuple[str, tuple[int, ...], bool, int]:
    """Returns what `.npy` bytes say of themselves, without evaluating it.

    Args:
        data: at least the first 10,012 of the bytes, or all.

    Returns:
        NumPy's name of the type, the shape, whether the order is Fortran's, and at which byte the
        numbers begin. All are claims, and nothing may be allocated by them alone.

    Raises:
        ValueError: the bytes do not begin as NumPy writes them.
    """
    if not data.startswith(_MAGIC) or len(data) < 12:
        raise ValueError(f"its data is not in the .npy format: {data[:8]!r}")
    version = (data[6], data[7])
    if version not in ((1, 0), (2, 0)):
        raise ValueError(
            f"its data is in version {version[0]}.{version[1]} of the .npy format, not 1.0 or 2.0"
        )
    begin = 10 if version == (1, 0) else 12
    start = begin + int.from_bytes(data[8:begin], "little")
    found = _HEADER.fullmatch(data[begin:start]) if start <= min(len(data), 10_012) else None
    if found is None:
        raise ValueError(f"its data has a header that is not the .npy format's: {data[:80]!r}")
    descr, fortran, numbers = (part.decode("ascii", "replace") for part in found.groups())
    try:
        dtype = np.dtype(descr)
        shape = tuple(int(number) for number in numbers.split(",") if number.strip())
    except (TypeError, ValueError):
        raise ValueError(f"its data has a header that makes no sense: {data[:80]!r}") from None
    return str(dtype), shape, fortran == "True", start


def read(data: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Returns the array in `.npy` bytes, of a dtype and shape known beforehand, without a copy.

    Nothing is allocated, whatever the bytes claim.

    Args:
        data: the bytes.
        dtype: NumPy's name of a type of numbers or booleans.
        shape: what it must be, whole numbers of at least 0.

    Raises:
        ValueError: the bytes hold something else, or not as many numbers as they claim.
    """
    if not isinstance(data, bytes):
        raise ValueError(f"its data is a {type(data).__name__}, not bytes")
    usual = header(dtype, shape)
    if data.startswith(usual):
        # The header is the one numpy writes here: nothing to parse.
        start, fortran = len(usual), False
    else:
        got_dtype, got_shape, fortran, start = read_header(data)
        if got_dtype != dtype or got_shape != shape:
            raise ValueError(
                f"its data holds {got_dtype} of shape {got_shape}, not {dtype} of shape {shape}"
            )
    expected = prod(shape) * np.dtype(dtype).itemsize
    if len(data) - start != expected:
        raise ValueError(f"its data has {len(data) - start} bytes of numbers, not {expected}")
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")

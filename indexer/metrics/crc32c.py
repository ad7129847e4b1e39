"""CRC-32C (Castagnoli), as RFC 3720 gives it, and the masked form that TFRecord files have."""

import numpy as np
import numpy.typing as npt

from indexer.jit import jit

__all__ = ["crc32c", "masked_crc32c"]

_POLYNOMIAL, _MASK_DELTA = 0x82F63B78, 0xA282EAD8


def _table() -> npt.NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1).astype(np.uint32)
    return values


_TABLE = _table()


@jit
def _update(data: npt.NDArray[np.uint8], table: npt.NDArray[np.uint32]) -> np.uint32:
    value = np.uint32(0xFFFFFFFF)
    for byte in data:
        value = table[(value ^ byte) & np.uint32(0xFF)] ^ (value >> np.uint32(8))
    return value ^ np.uint32(0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The checksum of `data`."""
    return int(_update(np.frombuffer(data, np.uint8), _TABLE))


def masked_crc32c(data: bytes) -> int:
    """The same, turned by 15 bits and moved by a constant, so that the CRC of data with CRCs in it is no trap."""
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF

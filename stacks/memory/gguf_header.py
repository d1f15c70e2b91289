"""The header of a GGUF file: its metadata and the bytes of every tensor, without reading a weight.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is a stranger's: every count is bounded.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from stacks.memory.models import NonsenseError

_MOST_ENTRIES = 100_000
_MOST_ELEMENTS = 5_000_000
_MOST_TEXT_BYTES = 4 * 2**20
_MOST_DIMENSIONS = 8
_KEPT_ELEMENTS = 4096

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# ggml type -> (name, weights per block, bytes per block)
_TYPES = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 36),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
}


class Tensor(NamedTuple):
    name: str
    type: str
    elements: int
    bytes: int


class GgufHeader(NamedTuple):
    metadata: dict[str, Any]
    """Arrays longer than 4,096 elements are kept as `Omitted`."""
    tensors: tuple[Tensor, ...]

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


class Omitted(NamedTuple):
    """A long array that was passed over: only its length is kept."""

    length: int


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def refuse(self, why: str) -> NonsenseError:
        return NonsenseError(f"{self._path} is not a readable GGUF file: {why}.")

    def take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise self.refuse("it ends within its header")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, most: int, what: str) -> int:
        value = int(self.number("<Q"))
        if value > most:
            raise self.refuse(f"it claims {value} {what}")
        return value

    def text(self) -> str:
        return self.take(self.count(_MOST_TEXT_BYTES, "bytes of text")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self.refuse(f"it has a value of the unknown kind {kind}")
        return self.number(_SCALARS[kind])

    def _array(self) -> Any:
        kind = int(self.number("<I"))
        length = self.count(_MOST_ELEMENTS, "array elements")
        if kind == _ARRAY:
            raise self.refuse("it nests arrays")
        if length <= _KEPT_ELEMENTS:
            return [self.value(kind) for _ in range(length)]
        if kind in _SCALARS:
            self.take(length * struct.calcsize(_SCALARS[kind]))
        else:
            for _ in range(length):
                self.text()
        return Omitted(length)

    def tensor(self) -> Tensor:
        name = self.text()
        dimensions = int(self.number("<I"))
        if dimensions > _MOST_DIMENSIONS:
            raise self.refuse(f"tensor {name[:60]!r} has {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= int(self.number("<Q"))
        kind = int(self.number("<I"))
        self.take(8)  # offset
        if kind not in _TYPES:
            raise self.refuse(f"tensor {name[:60]!r} has the unknown type {kind}")
        title, block, size = _TYPES[kind]
        return Tensor(name, title, elements, -(-elements // block) * size)


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises `NonsenseError` if the file is no GGUF or is cut short within its header."""
    with path.open("rb") as file:
        reader = _Reader(file, path)
        if reader.take(4) != b"GGUF":
            raise reader.refuse("it does not begin with GGUF")
        version = int(reader.number("<I"))
        if version not in {2, 3}:
            raise reader.refuse(f"its version is {version}, and 2 and 3 are known")
        tensors = reader.count(_MOST_ENTRIES, "tensors")
        entries = reader.count(_MOST_ENTRIES, "metadata entries")
        metadata = {}
        for _ in range(entries):
            key = reader.text()
            metadata[key] = reader.value(int(reader.number("<I")))
        return GgufHeader(metadata, tuple(reader.tensor() for _ in range(tensors)))

"""What is kept of the images that were judged: columns of numbers, by the images' keys."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Numbers that are moved at a time where a column is put in order.
BLOCK = 2**24


@dataclass
class _Column:
    # A bytearray grows in place, where a tensor would be copied and for a moment be there twice.
    data: bytearray
    dtype: np.dtype
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.dtype).reshape(-1, *self.shape)


class Columns:
    """Numbers of images: a column has one entry, of any shape, per image.

    A million images with features of 1280 float32 numbers are 5.1 GB and little more: there is no
    object per image but its key.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._columns: dict[str, _Column] = {}
        self._entries = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self._places)

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self._columns)

    def add(self, keys: Sequence[str], columns: Mapping[str, Tensor]) -> None:
        """Take in some images: of each name (B, ...) on the CPU, always the same names.

        Of a key that occurs again, the last entry counts.
        """
        assert not self._columns or self._columns.keys() == columns.keys()
        for name, values in columns.items():
            array = values.numpy()
            assert len(array) == len(keys)
            column = self._columns.setdefault(
                name, _Column(bytearray(), array.dtype, array.shape[1:])
            )
            assert (array.dtype, array.shape[1:]) == (column.dtype, column.shape)
            column.data += array.tobytes()
        places = range(self._entries, self._entries + len(keys))
        self._places |= zip(keys, places, strict=True)
        self._entries = places.stop

    def column(self, name: str) -> Tensor | None:
        """(n, ...), of `sort`ed images in their order; None if there is none. Not a copy.

        Nothing can be added while it is in use.
        """
        column = self._columns.get(name)
        return torch.from_numpy(column.array()) if column is not None else None

    def value(self, key: str, name: str) -> float | int:
        """The entry of one image, which is a number."""
        return self._columns[name].array()[self._places[key]].item()

    def sort(self) -> None:
        """Put the images in the order of their keys."""
        keys = sorted(self._places)
        order = np.fromiter((self._places[key] for key in keys), np.int64, len(keys))
        if np.array_equal(order, np.arange(self._entries)):
            return
        for column in self._columns.values():
            numbers = column.array().reshape(self._entries, -1)
            # Not whole entries, which could not be moved without a second copy of them all.
            width = max(1, BLOCK // self._entries)
            for start in range(0, numbers.shape[1], width):
                part = slice(start, start + width)
                numbers[: len(keys), part] = numbers[order, part]
            del numbers
            del column.data[len(keys) * column.dtype.itemsize * int(np.prod(column.shape)) :]
        self._places = {key: place for place, key in enumerate(keys)}
        self._entries = len(keys)

    def pieces(self, size: int) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
        """What `add` takes, of `size` images at a time."""
        keys = list(self._places)
        for start in range(0, len(keys), size):
            some = keys[start : start + size]
            places = [self._places[key] for key in some]
            yield some, {n: torch.from_numpy(c.array()[places]) for n, c in self._columns.items()}

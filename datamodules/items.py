"""What a run makes images of."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch.utils.data import Dataset

Item = dict[str, Any]
"""key: names the image in the run; path: where its source is; image: that, uint8 (R, R, C), if
there is one; and whatever further fields the data has, as JSON has them, which stand in the
manifest of a run."""


TAKEN = frozenset(("key", "path", "image", "mask", "target", "digest", "source", "output"))
"""What batches and manifests say of every image; no name for a further field."""


class Items(Dataset[Item]):
    """What a run makes images of, where there are no sources: keys, and what is known of each.

    Args:
        keys: relative POSIX paths, all different, in order.
        fields: further fields of the items, by key, such as texts and seeds; of each the same.

    Raises:
        ValueError: a field has a name that is taken, or an item lacks one that others have.
    """

    def __init__(
        self, keys: Sequence[str], fields: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.keys, self.fields = list(keys), fields or {}
        names = {name for known in self.fields.values() for name in known}
        if taken := names & TAKEN:
            raise ValueError(f"a further field cannot be called {min(taken)}")
        for key in self.keys if names else ():
            if lacking := names - self.fields.get(key, {}).keys():  # A batch has it of all or none.
                raise ValueError(f"{key} has no {min(lacking)}, which other images have")

    @property
    def in_memory(self) -> bool:
        """Whether an item is at hand without reading a file."""
        return True

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Item:
        key = self.keys[index]
        return {"key": key, "path": "", **self.fields.get(key, {})}

    @cached_property
    def index(self) -> dict[str, int]:
        """Where each key is in `keys`."""
        return {key: index for index, key in enumerate(self.keys)}

    def changed(self, entries: Iterable[Mapping[str, Any]]) -> set[str]:
        """The keys of items that are others than the entry of their key says.

        Of several processes all must ask, since each may know something else.

        Args:
            entries: `key`, `digest` and the fields, such as those of a manifest; the last one of
                each key counts.
        """
        return set(self.differing(entries).values())

    def differing(self, entries: Iterable[Mapping[str, Any]]) -> dict[int, str]:
        """What this process knows to have `changed`, by index."""
        differs: dict[int, bool] = {}
        for entry in entries:
            index = self.index.get(entry["key"])
            if index is not None:
                differs[index] = self._differs(index, entry)
        return {index: self.keys[index] for index, differ in differs.items() if differ}

    def _differs(self, index: int, entry: Mapping[str, Any]) -> bool:
        fields = self.fields.get(self.keys[index], {})
        return any(entry.get(name) != value for name, value in fields.items())

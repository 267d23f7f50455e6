"""Artifacts in memory: the most recently used ones, as far as their bytes fit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class _Entry:
    tensors: Mapping[str, torch.Tensor]
    versions: tuple[int, ...]
    size: int


class ArtifactMemory:
    """A bounded, thread-safe store of tensors that drops the least recently used first.

    Tensors are handed out without a copy. An artifact that a caller changed in place is dropped instead of handed out
    again (autograd's version counter tells).

    Args:
        max_bytes: Bytes of tensors that may stay; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of the tensors that are kept."""
        return self._bytes

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Returns the tensors of a key, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if _versions(entry.tensors) != entry.versions:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return dict(entry.tensors)

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keeps tensors, which must own their memory; drops others for them, and refuses what alone is too large."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        with self._lock:
            if key in self._entries:
                self._drop(key)
            if size > self.max_bytes:
                return
            while self._bytes + size > self.max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[key] = _Entry(dict(tensors), _versions(tensors), size)
            self._bytes += size

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key).size


def _versions(tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors.values())

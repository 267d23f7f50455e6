"""Content-addressed artifacts: what one worker computed, no other has to.

Three tiers, fastest first: the memory of this process, files that all processes of a machine share, and an exchange
between machines. A key is the digest of everything that determines the tensors, so whatever is found under it, in any
tier, is what computing it again would give.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from qsearch.cache import cache_dir
from qsearch.errors import QSearchError
from qsearch.evaluate.artifact_files import ArtifactFiles, canonical, decode, encode
from qsearch.evaluate.artifact_memory import ArtifactMemory

#: Tensors that a cache keeps in memory, bytes.
MEMORY_BYTES = 256 * 2**20

#: Longest wait for another process that makes the same artifact, seconds.
WAIT_S = 300.0

_logger = logging.getLogger(__name__)


class ArtifactExchange(Protocol):
    """Artifacts of other machines. Both methods fail silently: an artifact can always be computed."""

    def fetch(self, key: str) -> bytes | None:
        """Returns what was published under a key, or None."""
        ...

    def publish(self, key: str, content: bytes) -> None:
        """Offers the content of an artifact to others; publishing a key again changes nothing."""
        ...


class ArtifactCache:
    """Tensors by the digest of everything that determines them; safe under threads and concurrent processes.

    Returned tensors are shared with later calls: they must not be changed in place. A directory that cannot be written
    costs a warning (to the log, once), never an evaluation: the artifacts then stay in memory only.

    Args:
        directory: Where files are kept; the user's cache by default.
        memory_bytes: Tensors kept in memory at most, bytes.
        remote: Artifacts of other machines.
        disk_bytes: Files kept at most, bytes; the least recently used are removed now and then. None: no bound.
        wait_s: Longest wait in :meth:`get_or_make` for another process that makes the same artifact, seconds.
    """

    def __init__(
        self,
        directory: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
        remote: ArtifactExchange | None = None,
        disk_bytes: int | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self.directory = directory or cache_dir() / "artifacts"
        self.remote = remote
        self.disk_bytes = disk_bytes
        self.wait_s = wait_s
        self._files = ArtifactFiles(self.directory)
        self._memory = ArtifactMemory(memory_bytes)
        self._unpruned = 0
        self._warned = False

    @property
    def memory_bytes(self) -> int:
        """Bytes of the tensors in memory now."""
        return self._memory.bytes

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Returns the tensors of a key, on the CPU, or None; a damaged file counts as absent and is removed."""
        found = self._get_here(key)
        return self._get_remote(key) if found is None else found

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keeps a copy of tensors under a key, wherever that is possible.

        Raises:
            EvaluationError: A tensor is named ``sha256``.
        """
        self._keep(key, tensors)

    def get_or_make(self, key: str, make: Callable[[], Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Returns the tensors of a key, computing them if nobody has.

        Of the processes of one machine one computes and the others wait for it, :attr:`wait_s` at most; then they
        compute it themselves. Neither a dead process nor one that hangs keeps them longer, and nothing breaks when two
        do compute: what they write is equal.

        Args:
            key: Digest of everything that determines the tensors.
            make: Computes them; may use the cache for other keys that do not depend on this one.

        Raises:
            Exception: Whatever ``make`` raises; then nothing is kept.
        """
        found = self.get(key)
        if found is None:
            with self._files.locked(key, self.wait_s):
                found = self._get_here(key)  # whoever held the lock before has it made
                if found is None:
                    found = self._keep(key, make())
        return found

    def prune(self, max_bytes: int) -> int:
        """Removes the least recently used files until the rest fits; safe while others read and write.

        Args:
            max_bytes: Bytes of files that may stay.

        Returns:
            Bytes removed.
        """
        return self._files.prune(max_bytes)

    def _get_here(self, key: str) -> dict[str, torch.Tensor] | None:
        found = self._memory.get(key)
        if found is not None:
            return found
        content = self._files.read(key)
        if content is None:
            return None
        tensors = decode(content)
        if tensors is None:
            self._files.remove(key)
            return None
        self._memory.put(key, tensors)
        if self.remote is not None:  # made before this exchange was: other machines may lack it
            self.remote.publish(key, content)
        return tensors

    def _get_remote(self, key: str) -> dict[str, torch.Tensor] | None:
        content = None if self.remote is None else self.remote.fetch(key)
        tensors = None if content is None else decode(content)
        if content is None or tensors is None:
            return None
        self._write(key, content)
        self._memory.put(key, tensors)
        return tensors

    def _keep(self, key: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = canonical(tensors)
        content = encode(kept)
        self._write(key, content)
        self._memory.put(key, kept)
        if self.remote is not None:
            self.remote.publish(key, content)
        return kept

    def _write(self, key: str, content: bytes) -> None:
        try:
            self._files.write(key, content)
        except (QSearchError, OSError) as error:
            if not self._warned:
                self._warned = True
                _logger.warning("artifacts stay in memory only, and are computed again after it is full: %s", error)
            return
        if self.disk_bytes is not None:
            self._unpruned += len(content)
            if self._unpruned > self.disk_bytes // 16:  # looking through the directory has its price
                self._unpruned = 0
                self._files.prune(self.disk_bytes - self.disk_bytes // 16)


class _DefaultExchange:
    """Whatever exchange is set at the moment, so that caches made earlier use it too."""

    exchange: ArtifactExchange | None = None

    def fetch(self, key: str) -> bytes | None:
        exchange = self.exchange
        return None if exchange is None else exchange.fetch(key)

    def publish(self, key: str, content: bytes) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.publish(key, content)


_default_exchange = _DefaultExchange()
_default_lock = threading.Lock()
_default: ArtifactCache | None = None


def default_cache() -> ArtifactCache:
    """Returns the cache that this process shares, in the user's cache directory as it is now.

    It is a new one when that directory changed (``$QSEARCH_CACHE_DIR``) since the last call.
    """
    global _default
    directory = cache_dir() / "artifacts"
    with _default_lock:
        if _default is None or _default.directory != directory:
            _default = ArtifactCache(directory, remote=_default_exchange)
        return _default


def set_default_exchange(exchange: ArtifactExchange | None) -> None:
    """Sets the exchange that every :func:`default_cache` of this process uses from now on.

    Args:
        exchange: Artifacts of other machines; None for no exchange.
    """
    _default_exchange.exchange = exchange

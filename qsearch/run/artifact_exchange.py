"""Artifacts shared between machines through Ray's object store.

The bytes stay where they were made, as objects of the store; a small actor on the driver's machine knows which there
are. It is only ever a shortcut: when anything fails, an artifact counts as absent and is computed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

#: Share of the smallest node's object store that published artifacts may take; Ray's own traffic needs the rest.
STORE_SHARE = 0.25

#: Artifacts known at most.
MAX_COUNT = 10_000

#: Longest wait for the index or for the transfer of an artifact, seconds.
TIMEOUT_S = 20.0

#: After a failure nothing is tried for this long, so that a lost index costs one wait and not one an artifact, seconds.
PAUSE_S = 60.0

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


class ArtifactIndex:
    """Which artifacts are in the object store; runs as an actor. Drops the least recently used ones to stay bounded.

    Args:
        max_bytes: Content that may be held, bytes.
        max_count: Artifacts that may be held.
    """

    def __init__(self, max_bytes: int, max_count: int = MAX_COUNT) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._held: OrderedDict[str, tuple[Any, int]] = OrderedDict()  # least recently used first
        self._bytes = 0

    def wants(self, key: str, size: int) -> bool:
        """Whether an artifact of ``size`` bytes is new and could be held."""
        return key not in self._held and size <= self._max_bytes and self._max_count > 0

    def keep(self, key: str, references: list[Any], size: int) -> None:
        """Holds an object; its reference is in a list, or Ray would hand over the content in its place."""
        if not self.wants(key, size):
            return
        while len(self._held) >= self._max_count or self._bytes + size > self._max_bytes:
            self._drop(next(iter(self._held)))
        self._held[key] = (references[0], size)
        self._bytes += size

    def find(self, key: str) -> list[Any]:
        """The reference of an artifact in a list, which is empty where it is unknown."""
        if key not in self._held:
            return []
        self._held.move_to_end(key)
        return [self._held[key][0]]

    def forget(self, key: str, references: list[Any]) -> None:
        """Drops an artifact whose object is lost, unless it was replaced meanwhile."""
        if key in self._held and self._held[key][0] == references[0]:
            self._drop(key)

    def held(self) -> tuple[int, int]:
        """How many artifacts are held, and their bytes."""
        return len(self._held), self._bytes

    def _drop(self, key: str) -> None:
        self._bytes -= self._held.pop(key)[1]


class RayArtifactExchange:
    """A :class:`qsearch.evaluate.artifacts.ArtifactExchange` over the index; travels to workers.

    Args:
        index: Handle of the :class:`ArtifactIndex` actor.
        timeout_s: Longest wait for it, seconds.
        pause_s: How long nothing is tried after a failure, seconds.
    """

    def __init__(self, index: Any, timeout_s: float = TIMEOUT_S, pause_s: float = PAUSE_S) -> None:
        self.index = index
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, self._timeout_s, self._pause_s)

    def fetch(self, key: str) -> bytes | None:
        """Returns the content published under a key, or None."""
        references = self._try(lambda: self._get(self.index.find.remote(key)))
        if not references:
            return None
        try:
            content: bytes = self._get(references[0])
            return content
        except ray.exceptions.RayError:  # whoever published it is gone, and the object with it
            self._try(lambda: self._get(self.index.forget.remote(key, references)))
            return None

    def publish(self, key: str, content: bytes) -> None:
        """Puts content into the object store, unless it is there already or too large."""
        if self._try(lambda: self._get(self.index.wants.remote(key, len(content)))):
            self._try(lambda: self._get(self.index.keep.remote(key, [ray.put(content)], len(content))))

    def _get(self, reference: Any) -> Any:
        return ray.get(reference, timeout=self._timeout_s)

    def _try(self, call: Callable[[], Result]) -> Result | None:
        """Calls the index; None when it does not answer, or did not a short while ago."""
        if time.monotonic() < self._silent_until:
            return None
        try:
            return call()
        except (ray.exceptions.RayError, ConnectionError) as error:
            with self._lock:
                first, self._silent_until = self._silent_until == 0.0, time.monotonic() + self._pause_s
            if first:
                _logger.warning("artifacts are not shared between machines for now: %s", str(error).split("\n")[0])
            return None


@contextmanager
def artifact_exchange(max_bytes: int | None = None) -> Iterator[RayArtifactExchange]:
    """Starts an index on this machine and yields the exchange; Ray must be initialised.

    Args:
        max_bytes: Content that may be held, bytes; :data:`STORE_SHARE` of the smallest node's object store by default.
    """
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    make_remote: Any = ray.remote(num_cpus=0, max_restarts=-1)
    index = (
        make_remote(ArtifactIndex)
        .options(scheduling_strategy=here)
        .remote(_share() if max_bytes is None else max_bytes)
    )
    try:
        yield RayArtifactExchange(index)
    finally:
        ray.kill(index)


def _share() -> int:
    stores = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return int(STORE_SHARE * min((size for size in stores if size), default=0.0))

"""A directory of artifact files: checked when read, written whole, locked while they are made, pruned by last use.

The files are safetensors. That format has no checksum, so each file carries one as a tensor of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from qsearch.cache import write_atomically
from qsearch.errors import EvaluationError

_CHECKSUM = "sha256"

#: Temporary and lock files of this age were left by a killed process, seconds.
_ABANDONED_S = 3600.0

#: First and longest pause between two looks at a lock, seconds.
_POLL_S = (0.002, 0.1)


def canonical(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies tensors to what reading them back would give: on the CPU, contiguous, with memory of their own.

    Raises:
        EvaluationError: A tensor has the name that the checksum has in the file.
    """
    if _CHECKSUM in tensors:
        raise EvaluationError(f"an artifact may not hold a tensor named {_CHECKSUM!r}", "give the tensor another name")
    with torch.inference_mode(False):  # an inference tensor could not take part in a later backward pass
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Serialises tensors that are :func:`canonical`, with their checksum; equal tensors give equal bytes."""
    return save({**tensors, _CHECKSUM: _checksum(tensors)})


def decode(content: bytes) -> dict[str, torch.Tensor] | None:
    """Inverse of :func:`encode`; None when the content is cut short, damaged or something else."""
    try:
        with torch.inference_mode(False):
            tensors = load(content)
            return tensors if torch.equal(tensors.pop(_CHECKSUM), _checksum(tensors)) else None
    except (SafetensorError, ValueError, KeyError, RuntimeError):
        return None


def _checksum(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """sha256 over names, types, shapes and values, 32 bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: numpy has no bfloat16
    return torch.frombuffer(bytearray(sha.digest()), dtype=torch.uint8)


class ArtifactFiles:
    """Files ``DIRECTORY/KE/KEY.safetensors``, shared by any number of processes.

    Args:
        directory: Where they are; made when first written to.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> bytes | None:
        """Returns the content of a file and notes the use; None where it is absent or cannot be read."""
        path = self._path(key)
        try:
            content = path.read_bytes()  # at once: a file that is mapped may be replaced while it is read
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # `prune` goes by it; the access time is not kept on most systems
        return content

    def write(self, key: str, content: bytes) -> None:
        """Writes a file so that readers see all of it or nothing.

        Raises:
            QSearchError: The directory cannot be written, or the disk is full.
        """
        write_atomically(self._path(key), lambda path: path.write_bytes(content))

    def remove(self, key: str) -> None:
        """Removes a file if that is possible."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    @contextlib.contextmanager
    def locked(self, key: str, wait_s: float) -> Iterator[bool]:
        """Holds the right to make an artifact, which one process (or thread) of a machine has at a time.

        The kernel's ``flock`` decides, and lets go by itself when the holder dies.

        Args:
            key: The artifact.
            wait_s: Longest wait for another holder, seconds.

        Yields:
            Whether the right was had: not after the wait, nor where locks cannot be made.
        """
        path = self._path(key).with_name(f".{key}.lock")
        descriptor = _acquire(path, wait_s)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                _release(path, descriptor)

    def prune(self, max_bytes: int) -> int:
        """Removes the files used longest ago until the rest fits; also what killed processes left.

        Readers and writers may work meanwhile: a reader has all of a file or finds it absent, a file used or written
        since it was looked at stays.

        Args:
            max_bytes: Bytes of artifacts that may stay.

        Returns:
            Bytes removed.
        """
        self._remove_abandoned()
        found = []
        for path in self.directory.glob("*/*.safetensors"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in found) - max_bytes
        removed = 0
        for used, size, path in sorted(found):
            if removed >= excess:
                break
            with contextlib.suppress(OSError):
                if path.stat().st_mtime_ns == used:
                    path.unlink()
                    removed += size
        return removed

    def _remove_abandoned(self) -> None:
        for path in self.directory.glob("*/.*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime < _ABANDONED_S:
                    continue
                if path.suffix != ".lock":
                    path.unlink()
                elif (descriptor := _acquire(path, 0.0)) is not None:
                    _release(path, descriptor)


def _acquire(path: Path, wait_s: float) -> int | None:
    """Returns the descriptor of a locked file; None after the wait, or where files cannot be made or locked."""
    deadline = time.monotonic() + wait_s
    pause, longest = _POLL_S
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
            held = False  # its last holder removed the file between our two calls
        except BlockingIOError:
            held = True
        except OSError:  # a file system without locks
            deadline, held = 0.0, True
        os.close(descriptor)
        if held:
            if time.monotonic() >= deadline:
                return None
            time.sleep(pause)
            pause = min(2 * pause, longest)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink()  # while it is locked: whoever waits for it sees that it is gone and makes a new one
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for copies of the descriptor in forked children
    os.close(descriptor)

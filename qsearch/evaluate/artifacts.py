"""Content-addressed artifacts on disk: what one worker reconstructed, no other has to."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from qsearch.cache import cache_dir, write_atomically

_CHECKSUM = "sha256"


class ArtifactCache:
    """Small tensors by the digest of everything that determines them; safe under concurrent writers.

    Args:
        directory: Where they are kept; the user's cache by default.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or cache_dir() / "artifacts"

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Returns the tensors of a key, or None; a damaged file counts as absent and is removed."""
        path = self._path(key)
        try:
            tensors = load(path.read_bytes())  # at once: a file that is mapped may be replaced while it is read
            if torch.equal(tensors.pop(_CHECKSUM), _checksum(tensors)):
                return tensors
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError):
            pass
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keeps tensors under a key.

        Raises:
            QSearchError: The cache cannot be written.
        """
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        content = save({**contiguous, _CHECKSUM: _checksum(contiguous)})
        write_atomically(self._path(key), lambda path: path.write_bytes(content))


def _checksum(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """sha256 over names, types, shapes and values, 32 bytes; the file format has none of its own."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.numpy().tobytes())
    return torch.frombuffer(bytearray(sha.digest()), dtype=torch.uint8)

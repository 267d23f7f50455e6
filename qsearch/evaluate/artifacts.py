"""Content-addressed artifacts on disk: what one worker reconstructed, no other has to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qsearch.cache import cache_dir, write_atomically


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
            return load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError):
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keeps tensors under a key.

        Raises:
            QSearchError: The cache cannot be written.
        """
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_atomically(self._path(key), lambda path: save_file(contiguous, path))

"""Large tensors by name (calibration inputs, targets) in bounded memory: what does not fit is on disk, bit for bit.

Nothing is rounded to save memory, so a result never depends on the memory limit. Files are read and written by
position, not mapped: mapped pages would count as memory of this process, and a full disk would kill it instead of
raising. They have no name in the file system, so that even a killed process leaves none.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

from qsearch.errors import EvaluationError, nearest

_CPU = torch.device("cpu")


class StreamStore:
    """Keeps tensors ``[rows, ...]`` of any type by name, contiguous; use it in a ``with`` statement.

    While their bytes fit into ``max_bytes`` they are in memory. To make room the least recently used ones go to disk,
    where they stay; a tensor too large to fit at all goes there at once. Thread-safe.

    Args:
        max_bytes: Bytes of tensors in memory, at most.
        spill_directory: Where files are, made if missing; the system's directory for temporary files by default
            (``$TMPDIR``), which must not itself be in memory.
        device: Where :meth:`get` and :meth:`batch` return tensors. Those kept are on the CPU always; batches for a GPU
            pass through pinned memory.
    """

    def __init__(self, max_bytes: int, spill_directory: Path | None = None, device: torch.device = _CPU) -> None:
        if max_bytes < 0:
            raise EvaluationError(f"the memory limit of a stream store is {max_bytes} bytes", "give 0 or more")
        self.max_bytes = max_bytes
        self.spill_directory = spill_directory
        self.device = device
        self._streams: OrderedDict[str, _Stream] = OrderedDict()  # least recently used first
        self._lock = threading.RLock()

    @property
    def resident_bytes(self) -> int:
        """Bytes of the tensors that are in memory; never above :attr:`max_bytes`."""
        with self._lock:
            return sum(stream.nbytes for stream in self._streams.values() if stream.tensor is not None)

    @property
    def spilled_bytes(self) -> int:
        """Bytes of the tensors that are on disk."""
        with self._lock:
            return sum(stream.nbytes for stream in self._streams.values() if stream.file is not None)

    def __contains__(self, name: str) -> bool:
        return name in self._streams

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Keeps a whole tensor, in the place of one of that name.

        Args:
            name: Its name.
            tensor: ``[rows, ...]``. The store takes it over where it can: do not change it afterwards.

        Raises:
            EvaluationError: It is a scalar, or the disk is full.
        """
        if tensor.dim() == 0:
            raise EvaluationError(f"stream {name!r} is a scalar", "streams have rows")
        with self._lock:
            self.discard(name)
            stream = _Stream(name, len(tensor), tuple(tensor.shape[1:]), tensor.dtype)
            if self._make_room(stream.nbytes):
                stream.tensor = _own(tensor)
            else:
                stream.to_file(self.spill_directory)
                try:
                    stream.write(0, tensor)
                except EvaluationError:
                    stream.close()
                    raise
            stream.filled = stream.rows
            self._streams[name] = stream

    def writer(self, name: str, total_rows: int) -> StreamWriter:
        """Starts a tensor that is built batch by batch, in the place of one of that name.

        Its memory, or its file, is set aside at the first batch: there is never a second copy, as ``torch.cat`` makes.

        Args:
            name: Its name; it can be read once all rows are there.
            total_rows: Rows that will be added.

        Raises:
            EvaluationError: There is not at least one row.
        """
        if total_rows < 1:
            raise EvaluationError(f"stream {name!r} is to have {total_rows} rows", "streams that are written have some")
        self.discard(name)
        return StreamWriter(self, name, total_rows)

    def get(self, name: str) -> torch.Tensor:
        """Returns a whole tensor, not to be changed; one on disk is read into memory that is not counted here.

        Raises:
            EvaluationError: There is no complete tensor of that name.
        """
        with self._lock:
            stream = self._use(name)
            if stream.tensor is not None:
                return stream.tensor.to(self.device)
            whole = self._empty(stream, stream.rows)
            stream.read(range(stream.rows), whole)
        return whole.to(self.device, non_blocking=True)

    def batch(self, name: str, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Returns a copy of some rows; only they are read from disk.

        Args:
            name: Name of the tensor.
            indices: Rows, in any order, with repetitions if wanted; a sequence or an integer tensor ``[n]``.

        Returns:
            ``[n, ...]`` on :attr:`device`.

        Raises:
            EvaluationError: There is no complete tensor of that name, or no such row.
        """
        rows = torch.as_tensor(indices if isinstance(indices, torch.Tensor) else list(indices)).to(_CPU, torch.int64)
        with self._lock:
            stream = self._use(name)
            if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < stream.rows:
                raise EvaluationError(f"stream {name!r} has {stream.rows} rows, asked for others", "rows count from 0")
            chosen = self._empty(stream, len(rows))
            if stream.tensor is not None:
                torch.index_select(stream.tensor, 0, rows, out=chosen)
            else:
                stream.read(rows.tolist(), chosen)
        return chosen.to(self.device, non_blocking=True)

    def discard(self, name: str) -> None:
        """Frees a tensor and its file; does nothing where there is none."""
        with self._lock:
            stream = self._streams.pop(name, None)
            if stream is not None:
                stream.close()

    def close(self) -> None:
        """Frees everything; the store may be used again."""
        with self._lock:
            for name in list(self._streams):
                self.discard(name)

    def __enter__(self) -> StreamStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _use(self, name: str) -> _Stream:
        stream = self._streams.get(name)
        if stream is None:
            raise EvaluationError(f"there is no stream {name!r}", nearest(name, self._streams))
        if stream.filled < stream.rows:
            raise EvaluationError(
                f"stream {name!r} has only {stream.filled} of its {stream.rows} rows so far", "add the others first"
            )
        self._streams.move_to_end(name)
        return stream

    def _start(self, name: str, rows: int, like: torch.Tensor) -> _Stream:
        """Sets aside the memory or the file of a tensor that has the row shape and type of ``like``."""
        stream = _Stream(name, rows, tuple(like.shape[1:]), like.dtype)
        self.discard(name)
        if self._make_room(stream.nbytes):
            stream.tensor = _new(stream.rows, stream)
        else:
            stream.to_file(self.spill_directory)
        self._streams[name] = stream
        return stream

    def _append(self, stream: _Stream, batch: torch.Tensor) -> None:
        """Adds rows to a stream that was started."""
        if self._streams.get(stream.name) is not stream:
            raise EvaluationError(f"stream {stream.name!r} was discarded while it was written", "start another writer")
        if (tuple(batch.shape[1:]), batch.dtype) != (stream.shape, stream.dtype):
            raise EvaluationError(
                f"stream {stream.name!r} has rows {list(stream.shape)} of {stream.dtype}, "
                f"a batch has {list(batch.shape[1:])} of {batch.dtype}",
                "all batches of a stream are alike",
            )
        if stream.filled + len(batch) > stream.rows:
            raise EvaluationError(
                f"stream {stream.name!r} is to have {stream.rows} rows, but gets {stream.filled + len(batch)}",
                "tell the writer the true number of rows",
            )
        stream.write(stream.filled, batch)
        stream.filled += len(batch)
        self._streams.move_to_end(stream.name)

    def _make_room(self, size: int) -> bool:
        """Spills streams until ``size`` more bytes fit; returns whether they can."""
        if size > self.max_bytes:
            return False
        excess = self.resident_bytes + size - self.max_bytes
        for stream in self._streams.values():
            if excess <= 0:
                break
            if stream.tensor is not None and stream.nbytes:
                stream.to_file(self.spill_directory)
                excess -= stream.nbytes
        return True

    def _empty(self, stream: _Stream, rows: int) -> torch.Tensor:
        """Memory for rows on their way to the device; from pinned memory a GPU copies while the CPU goes on."""
        return _new(rows, stream, pinned=self.device.type == "cuda")


class StreamWriter:
    """Builds one tensor of a :class:`StreamStore` batch by batch; see :meth:`StreamStore.writer`."""

    def __init__(self, store: StreamStore, name: str, total_rows: int) -> None:
        self._store = store
        self.name = name
        self.total_rows = total_rows
        self._stream: _Stream | None = None

    def add(self, batch: torch.Tensor) -> None:
        """Copies the next rows.

        Args:
            batch: ``[n, ...]`` on any device, all batches of one type and row shape.

        Raises:
            EvaluationError: The batch is unlike those before, there are too many rows, or the disk is full.
        """
        if batch.dim() == 0:
            raise EvaluationError(f"a batch of stream {self.name!r} is a scalar", "batches have rows")
        with self._store._lock:
            if self._stream is None:
                self._stream = self._store._start(self.name, self.total_rows, batch)
            self._store._append(self._stream, batch)


class _Stream:
    """One tensor, either in memory (``tensor``) or on disk (``file``), and how many of its rows were written."""

    def __init__(self, name: str, rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.name = name
        self.rows = rows
        self.shape = shape
        self.dtype = dtype
        self.row_bytes = math.prod(shape) * dtype.itemsize
        self.filled = 0
        self.tensor: torch.Tensor | None = None
        self.file: IO[bytes] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes

    def to_file(self, directory: Path | None) -> None:
        """Moves the rows to a nameless file; those not yet written will be written there."""
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
            self.file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - `close` closes it
        except OSError as error:
            raise self._failure(error) from error
        tensor, self.tensor = self.tensor, None
        if tensor is None:
            return
        try:
            self.write(0, tensor[: self.filled])
        except BaseException:
            self.tensor = tensor  # nothing is lost when the disk is full
            self.close()
            raise

    def write(self, start: int, rows: torch.Tensor) -> None:
        """Stores rows from index ``start`` on."""
        if self.tensor is not None:
            self.tensor[start : start + len(rows)] = rows.detach()
        elif self.file is not None:
            content = _as_bytes(rows.detach().to(_CPU).contiguous())
            try:
                self.file.seek(start * self.row_bytes)
                while content:  # a single write takes 2 GiB at most
                    content = content[self.file.write(content) :]
            except OSError as error:
                raise self._failure(error) from error

    def read(self, rows: Sequence[int], into: torch.Tensor) -> None:
        """Reads rows from the file into ``into``, ``[len(rows), ...]`` and contiguous."""
        content = _as_bytes(into)
        if self.file is None or not content:
            return
        for position, first, count in _runs(rows):
            part = content[position * self.row_bytes : (position + count) * self.row_bytes]
            try:
                self.file.seek(first * self.row_bytes)
                while part:
                    got = self.file.readinto(part)  # type: ignore[attr-defined]
                    if not got:
                        raise EvaluationError(f"the file of stream {self.name!r} is cut short", "run it again")
                    part = part[got:]
            except OSError as error:
                raise self._failure(error) from error

    def close(self) -> None:
        """Removes the file."""
        file, self.file = self.file, None
        if file is not None:
            file.close()

    def _failure(self, error: OSError) -> EvaluationError:
        return EvaluationError(
            f"stream {self.name!r} ({self.nbytes / 1e9:.2f} GB) cannot be moved between memory and disk: "
            f"{error.strerror or error}",
            "free some space there, set TMPDIR or the spill directory to a larger disk, or raise max_cache_gb",
        )


def _new(rows: int, like: _Stream, pinned: bool = False) -> torch.Tensor:
    with torch.inference_mode(False):  # an inference tensor could not take part in a later backward pass
        return torch.empty((rows, *like.shape), dtype=like.dtype, pin_memory=pinned)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, contiguous, and not part of a larger one that it would keep alive uncounted."""
    with torch.inference_mode(False):
        own = tensor.detach().to(_CPU).contiguous()
        return own.clone() if own.is_inference() or own.untyped_storage().nbytes() != own.nbytes else own


def _as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, not a copy; through bytes, because numpy has no bfloat16."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields (position, first row, count) of every run of consecutive rows, so that each is one read."""
    start = 0
    for position in range(1, len(rows) + 1):
        if position == len(rows) or rows[position] != rows[position - 1] + 1:
            yield start, rows[start], position - start
            start = position

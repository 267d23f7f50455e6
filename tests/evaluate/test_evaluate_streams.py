"""Large tensors by name: never more in memory than allowed, and the same bits whatever is allowed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.errors import EvaluationError
from qsearch.evaluate import streams as streams_module
from qsearch.evaluate.streams import StreamStore

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool)


def bits(tensor: torch.Tensor) -> bytes:
    """Type, shape and memory: NaN payloads and signed zeros count."""
    content: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + content


def any_bits(rows: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """float32 of any bit pattern: NaN, infinities, denormals."""
    content = np.random.default_rng(seed).integers(0, 256, (rows, *shape, 4), dtype=np.uint8)
    return torch.from_numpy(content).view(torch.float32)[..., 0]


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """What a user may do with three streams."""
    name = st.sampled_from("xyz")
    shape = st.sampled_from([(), (3,), (2, 2, 1)])
    rows = st.integers(1, 9)
    seed = st.integers(0, 99)
    step = st.one_of(
        st.tuples(st.just("put"), name, rows, shape, seed),
        st.tuples(st.just("write"), name, rows, shape, seed, st.integers(1, 4)),
        st.tuples(st.just("batch"), name, st.lists(st.integers(0, 8), max_size=12)),
        st.tuples(st.just("get"), name),
        st.tuples(st.just("discard"), name),
    )
    return draw(st.lists(step, min_size=4, max_size=25))


@given(programs(), st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_no_memory_limit_changes_a_bit_and_every_limit_is_kept(program: list[tuple[Any, ...]], limit: int) -> None:
    model: dict[str, torch.Tensor] = {}
    with StreamStore(limit) as store:
        for action, name, *rest in program:
            if action in ("put", "write"):
                rows, shape, seed, *size = rest
                model[name] = any_bits(rows, shape, seed)
                if action == "put":
                    store.put(name, model[name].clone())
                else:
                    writer = store.writer(name, rows)
                    for batch in torch.split(model[name], size[0]):
                        writer.add(batch)
                        assert store.resident_bytes <= limit
            elif action == "discard":
                store.discard(name)
                model.pop(name, None)
            elif name in model:
                whole = model[name]
                if action == "get":
                    assert bits(store.get(name)) == bits(whole)
                else:
                    rows = [row % len(whole) for row in rest[0]]
                    assert bits(store.batch(name, rows)) == bits(whole[rows])
                    assert bits(store.batch(name, torch.tensor(rows, dtype=torch.int32))) == bits(whole[rows])
            assert store.resident_bytes <= limit
            assert store.resident_bytes + store.spilled_bytes == sum(tensor.nbytes for tensor in model.values())
            assert all((name in store) == (name in model) for name in "xyz")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0, 10**6])
def test_every_type_comes_back(dtype: torch.dtype, limit: int) -> None:
    tensor = (torch.arange(24).reshape(6, 4) % 3).to(dtype)
    with StreamStore(limit) as store:
        store.put("t", tensor.clone())
        assert bits(store.get("t")) == bits(tensor)
        assert bits(store.batch("t", [5, 0, 0])) == bits(tensor[[5, 0, 0]])


@pytest.mark.parametrize("limit", [0, 10**6])
def test_layout_does_not_depend_on_where_a_stream_is(limit: int) -> None:
    """A convolution of a channels-last tensor may differ in its last bits, so all come back alike."""
    tensor = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    with StreamStore(limit) as store:
        store.put("t", tensor)
        for found in (store.get("t"), store.batch("t", [1, 2])):
            assert found.is_contiguous()
            assert not found.is_contiguous(memory_format=torch.channels_last)


def test_the_least_recently_used_go_to_disk() -> None:
    with StreamStore(80) as store:
        for name in "abc":
            store.put(name, torch.ones(8))
            if name == "b":
                store.batch("a", [0])
        where = {name: store._streams[name].tensor is not None for name in "abc"}
        assert where == {"a": True, "b": False, "c": True}
        store.put("large", torch.ones(100))
        assert store.resident_bytes == 64, "what can never fit drives nothing out"
        assert store.spilled_bytes == 432


def test_a_view_does_not_keep_its_base_in_memory() -> None:
    base = torch.zeros(1000, 4)
    with StreamStore(64) as store:
        store.put("t", base[:4])
        assert store.get("t").untyped_storage().nbytes() == 64
        base.fill_(1)
        assert store.get("t").sum() == 0


def test_only_the_rows_asked_for_are_read_and_runs_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    open_file = tempfile.TemporaryFile

    class Counted:
        def __init__(self, **arguments: Any) -> None:
            self._file = open_file(**arguments)

        def readinto(self, part: memoryview) -> int:
            reads.append(len(part))
            return int(self._file.readinto(part))  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(streams_module.tempfile, "TemporaryFile", Counted)
    with StreamStore(0) as store:
        store.put("t", torch.randn(100, 5))
        store.batch("t", [7, 8, 9, 40, 3, 4])
        assert reads == [60, 20, 40]
        reads.clear()
        store.get("t")
        assert reads == [2000]


def test_short_reads_and_writes_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does beyond 2 GiB."""
    open_file = tempfile.TemporaryFile

    class Short:
        def __init__(self, **arguments: Any) -> None:
            self._file = open_file(**arguments)

        def readinto(self, part: memoryview) -> int:
            return int(self._file.readinto(part[:7]))  # type: ignore[attr-defined]

        def write(self, content: memoryview) -> int:
            return self._file.write(content[:5])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(streams_module.tempfile, "TemporaryFile", Short)
    tensor = torch.randn(10, 3)
    with StreamStore(0) as store:
        store.put("t", tensor)
        assert torch.equal(store.batch("t", [9, 1, 2]), tensor[[9, 1, 2]])
        store._streams["t"].file.truncate(50)  # type: ignore[union-attr]
        with pytest.raises(EvaluationError, match="cut short"):
            store.get("t")


def test_files_go_to_the_directory_have_no_name_and_vanish(tmp_path: Path) -> None:
    def open_files() -> int:
        links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(str(tmp_path) in os.readlink(link) for link in links if link.is_symlink())

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list open files")
    spill = tmp_path / "spill"
    with StreamStore(0, spill) as store:
        store.put("a", torch.ones(10))
        store.put("b", torch.ones(10))
        assert open_files() == 2
        assert list(spill.iterdir()) == [], "a killed process leaves nothing"
        store.put("a", torch.ones(5))
        store.discard("b")
        assert open_files() == 1
    assert open_files() == 0
    assert "a" not in store


def test_a_full_disk_is_said_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = tempfile.TemporaryFile

    class Full:
        def __init__(self, **arguments: Any) -> None:
            self._file = open_file(**arguments)

        def write(self, content: memoryview) -> int:
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(streams_module.tempfile, "TemporaryFile", Full)
    with StreamStore(40) as store:
        store.put("a", torch.ones(8))
        for put in (lambda: store.put("b", torch.ones(8)), lambda: store.put("large", torch.ones(80))):
            with pytest.raises(EvaluationError, match="No space left") as error:
                put()
            assert "max_cache_gb" in error.value.hint
        assert store.get("a").sum() == 8
        assert (store.resident_bytes, store.spilled_bytes) == (32, 0)
        assert "b" not in store


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with StreamStore(0, tmp_path / "file") as store, pytest.raises(EvaluationError, match="cannot be moved"):
        store.put("t", torch.ones(3))


@pytest.mark.parametrize("limit", [0, 10**6])
def test_a_stream_is_read_when_it_is_complete(limit: int) -> None:
    with StreamStore(limit) as store:
        store.put("t", torch.ones(1))
        writer = store.writer("t", 5)
        with pytest.raises(EvaluationError, match="no stream"):
            store.get("t")
        writer.add(torch.zeros(3, 2))
        with pytest.raises(EvaluationError, match="only 3 of its 5 rows"):
            store.batch("t", [0])
        for wrong in (torch.zeros(2, 3), torch.zeros(2, 2).double(), torch.zeros(3, 2)):
            with pytest.raises(EvaluationError):
                writer.add(wrong)
        writer.add(torch.ones(2, 2))
        assert store.get("t").sum(1).tolist() == [0, 0, 0, 2, 2]


def test_a_stream_that_is_being_written_may_be_moved_to_disk() -> None:
    tensor = torch.randn(6, 2)
    with StreamStore(48) as store:
        writer = store.writer("t", 6)
        writer.add(tensor[:2])
        store.put("other", torch.ones(12))
        assert store.spilled_bytes == 48
        writer.add(tensor[2:])
        assert torch.equal(store.get("t"), tensor)


def test_a_writer_does_not_revive_a_stream_that_was_discarded() -> None:
    with StreamStore(100) as store:
        writer = store.writer("t", 4)
        writer.add(torch.ones(2))
        store.discard("t")
        with pytest.raises(EvaluationError, match="discarded"):
            writer.add(torch.ones(2))
        assert "t" not in store


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(EvaluationError, match="-1 bytes"):
        StreamStore(-1)
    with StreamStore(100) as store:
        store.put("inputs", torch.arange(3.0))
        for rows in ([3], [-1], torch.tensor([0, 7])):
            with pytest.raises(EvaluationError, match="has 3 rows"):
                store.batch("inputs", rows)
        with pytest.raises(EvaluationError, match="no stream") as error:
            store.get("input")
        assert "'inputs'" in error.value.hint
        with pytest.raises(EvaluationError, match="scalar"):
            store.put("s", torch.tensor(1.0))
        with pytest.raises(EvaluationError, match="scalar"):
            store.writer("s", 1).add(torch.tensor(1.0))
        with pytest.raises(EvaluationError, match="0 rows"):
            store.writer("s", 0)
        assert store.batch("inputs", []).shape == (0,)


@pytest.mark.parametrize("limit", [0, 10**6])
def test_streams_made_in_inference_mode_serve_a_backward_pass(limit: int) -> None:
    with StreamStore(limit) as store:
        with torch.inference_mode():
            store.put("put", torch.ones(4, 2))
            writer = store.writer("written", 4)
            writer.add(torch.ones(4, 2))
            batches = [store.batch(name, [0, 1]) for name in ("put", "written")]
        batches += [store.batch("put", [2]), store.get("put"), store.get("written")]
    for batch in batches:
        scale = torch.ones(2, requires_grad=True)
        (batch * scale).sum().backward()
        assert scale.grad is not None
        assert scale.grad.tolist() == [len(batch)] * 2


def test_a_batch_is_the_callers_own() -> None:
    with StreamStore(100) as store:
        store.put("t", torch.zeros(4))
        store.batch("t", [0, 1, 2, 3]).fill_(1)
        assert store.get("t").sum() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("limit", [0, 10**6])
def test_on_a_gpu_batches_arrive_there_and_streams_stay_on_the_cpu(limit: int) -> None:
    device = torch.device("cuda")
    tensor = torch.randn(50, 20)
    before = torch.cuda.memory_allocated()
    with StreamStore(limit, device=device) as store:
        store.put("put", tensor.to(device))
        writer = store.writer("written", 50)
        for part in torch.split(tensor.to(device), 16):
            writer.add(part)
        del part
        assert torch.cuda.memory_allocated() == before
        for name in ("put", "written"):
            for _ in range(20):  # pinned memory is used again; never before its copy is done
                rows = torch.randint(50, (8,))
                batch = store.batch(name, rows.to(device))
                assert batch.device.type == "cuda"
                assert torch.equal(batch.cpu(), tensor[rows])
            assert torch.equal(store.get(name).cpu(), tensor)

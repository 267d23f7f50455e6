"""Artifacts by content: three tiers that agree, damage and full disks survived, one maker at a time, bounded sizes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.errors import EvaluationError
from qsearch.evaluate import artifact_files
from qsearch.evaluate.artifact_files import ArtifactFiles, canonical, decode, encode
from qsearch.evaluate.artifact_memory import ArtifactMemory
from qsearch.evaluate.artifacts import ArtifactCache, default_cache, set_default_exchange

KEY = "ab" + "0" * 62
OTHER = "cd" + "0" * 62
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool)


class Shelf:
    """An exchange in a dictionary."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.fetched: list[str] = []

    def fetch(self, key: str) -> bytes | None:
        self.fetched.append(key)
        return self.content.get(key)

    def publish(self, key: str, content: bytes) -> None:
        self.content[key] = content


def files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


def same(found: dict[str, torch.Tensor] | None, wanted: dict[str, torch.Tensor]) -> bool:
    """Equal names, types, shapes and bits."""
    return found is not None and encode(canonical(found)) == encode(canonical(wanted))


def never() -> dict[str, torch.Tensor]:
    raise AssertionError("computed again")


def test_put_and_get(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    assert cache.get(KEY) is None
    tensors = {"0": torch.tensor([[1, -2]], dtype=torch.int8), "3": torch.arange(6.0).reshape(2, 3).T}
    cache.put(KEY, tensors)
    found = cache.get(KEY)
    assert found is not None
    assert sorted(found) == ["0", "3"]
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [f"{KEY}.safetensors"]


def test_the_users_cache_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path))
    ArtifactCache().put(KEY, {"0": torch.zeros(1)})
    assert files(tmp_path / "artifacts")


WRITER = """
import sys, torch
from pathlib import Path
from qsearch.evaluate.artifacts import ArtifactCache
cache = ArtifactCache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for i in range(150):
    cache.put(sys.argv[2], {"0": torch.full((5000,), int(sys.argv[3]), dtype=torch.int8)})
"""


def test_concurrent_writers_are_safe(tmp_path: Path) -> None:
    """Readers see the work of one writer or of the other, whole; nothing temporary stays."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), KEY, str(value)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for value in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    cache, seen, path = ArtifactCache(tmp_path, memory_bytes=0), set(), tmp_path / "ab" / f"{KEY}.safetensors"
    while any(writer.poll() is None for writer in writers):
        existed = path.exists()
        found = cache.get(KEY)
        if found is None:
            assert not existed, "a file under its final name is never half written"
        else:
            values = found["0"].unique().tolist()
            assert len(values) == 1
            assert len(found["0"]) == 5000
            seen.add(values[0])
    assert all(writer.wait() == 0 for writer in writers)
    assert seen <= {1, 2}
    assert cache.get(KEY) is not None
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove any file")
def test_a_damaged_file_that_cannot_be_removed_counts_as_absent(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    cache.put(KEY, {"0": torch.zeros(1)})
    path = tmp_path / "ab" / f"{KEY}.safetensors"
    path.write_bytes(b"")
    path.parent.chmod(0o500)
    try:
        assert ArtifactCache(tmp_path).get(KEY) is None
    finally:
        path.parent.chmod(0o700)


def test_a_file_that_cannot_be_read_just_now_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ArtifactCache(tmp_path).put(KEY, {"0": torch.ones(1)})

    def too_many(path: Path) -> bytes:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", too_many)
        assert ArtifactCache(tmp_path).get(KEY) is None
    assert ArtifactCache(tmp_path).get(KEY) is not None


# Content


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_every_type_and_shape_comes_back_from_every_tier(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensors = {"t": torch.randint(0, 2, shape).to(dtype), "view": torch.arange(12.0).reshape(3, 4).T[1:]}
    shelf = Shelf()
    cache = ArtifactCache(tmp_path / "a", remote=shelf)
    cache.put(KEY, tensors)
    for reader in (cache, ArtifactCache(tmp_path / "a"), ArtifactCache(tmp_path / "b", remote=shelf)):
        assert same(reader.get(KEY), tensors)


def test_what_is_kept_is_a_copy_and_what_a_caller_changed_is_not_handed_out(tmp_path: Path) -> None:
    mine = torch.arange(4.0)
    cache = ArtifactCache(tmp_path)
    cache.put(KEY, {"0": mine})
    mine.zero_()
    found = cache.get(KEY)
    assert same(found, {"0": torch.arange(4.0)})
    assert found is not None
    found["0"][1:].add_(1)
    found["more"] = mine
    assert same(cache.get(KEY), {"0": torch.arange(4.0)})


def test_artifacts_made_or_read_in_inference_mode_serve_a_backward_pass(tmp_path: Path) -> None:
    with torch.inference_mode():
        made = ArtifactCache(tmp_path).get_or_make(KEY, lambda: {"0": torch.ones(3)})
        read = ArtifactCache(tmp_path).get(KEY)
    assert read is not None
    for tensors in (made, read):
        scale = torch.ones(3, requires_grad=True)
        (scale * tensors["0"]).sum().backward()
        assert scale.grad is not None
        assert scale.grad.tolist() == [1, 1, 1]


def test_the_name_of_the_checksum_is_taken(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="sha256"):
        ArtifactCache(tmp_path).put(KEY, {"sha256": torch.zeros(1)})


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_changed_byte_goes_unnoticed(data: st.DataObject) -> None:
    tensors = {"a": torch.arange(5.0), "b": torch.tensor([1, -2], dtype=torch.int8)}
    content = bytearray(encode(tensors))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    found = decode(bytes(content))
    assert found is None or same(found, tensors), "only a byte without a meaning may differ"
    assert decode(bytes(content[:place])) is None


# Memory


@given(
    st.integers(0, 40),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.one_of(st.none(), st.integers(0, 20))), max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_memory_is_bounded_and_drops_the_least_recently_used(limit: int, steps: list[tuple[str, int | None]]) -> None:
    """Against a model; a step without a size reads."""
    memory, model = ArtifactMemory(limit), OrderedDict[str, int]()
    for key, size in steps:
        if size is None:
            found = memory.get(key)
            assert (None if found is None else found["t"].nbytes) == model.get(key)
            if key in model:
                model.move_to_end(key)
        else:
            memory.put(key, {"t": torch.zeros(size, dtype=torch.int8)})
            model.pop(key, None)
            if size <= limit:
                while sum(model.values()) + size > limit:
                    model.popitem(last=False)
                model[key] = size
        assert memory.bytes == sum(model.values()) <= limit


def test_memory_serves_when_the_file_is_gone_and_the_file_when_memory_is_full(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, memory_bytes=40)
    cache.put(KEY, {"0": torch.ones(10)})
    for path in files(tmp_path):
        path.unlink()
    assert cache.get(KEY) is not None
    cache.put(OTHER, {"0": torch.ones(10)})
    assert cache.memory_bytes == 40
    assert cache.get(KEY) is None, "dropped from memory for the other one"
    assert cache.get(OTHER) is not None


def test_threads_share_a_cache(tmp_path: Path) -> None:
    cache, wrong = ArtifactCache(tmp_path, memory_bytes=200), []

    def work(seed: int) -> None:
        for step in range(60):
            value = (seed + step) % 5
            found = cache.get_or_make(f"{value}" * 64, lambda value=value: {"0": torch.full((20,), float(value))})
            if found["0"].unique().tolist() != [value]:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.memory_bytes <= 200


# A disk that fails


def test_a_directory_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ArtifactCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING, "qsearch"):
        assert same(cache.get_or_make(KEY, lambda: {"0": torch.ones(2)}), {"0": torch.ones(2)})
        cache.put(OTHER, {"0": torch.zeros(1)})
    assert same(cache.get_or_make(KEY, never), {"0": torch.ones(2)})
    assert len(caplog.records) == 1
    assert "QSEARCH_CACHE_DIR" in caplog.text


def test_a_full_disk_costs_one_warning_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = ArtifactCache(tmp_path)
    with caplog.at_level(logging.WARNING, "qsearch"):
        for key in (KEY, OTHER):
            cache.get_or_make(key, lambda: {"0": torch.ones(2)})
    assert "No space left" in caplog.text
    assert len(caplog.records) == 1
    assert not files(tmp_path)
    assert same(cache.get_or_make(OTHER, never), {"0": torch.ones(2)})


# One maker at a time

MAKER = """
import sys, time, torch
from pathlib import Path
from qsearch.evaluate.artifacts import ArtifactCache
torch.set_num_threads(1)
cache = ArtifactCache(Path(sys.argv[1]), memory_bytes=0)
def make():
    print("making", flush=True)
    time.sleep(float(sys.argv[3]))
    return {"0": torch.ones(3)}
print("ready", flush=True)
sys.stdin.readline()
print(cache.get_or_make(sys.argv[2], make)["0"].tolist(), flush=True)
"""


def start_maker(directory: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(directory), KEY, str(seconds)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_processes_of_a_machine_make_an_artifact_once(tmp_path: Path) -> None:
    makers = [start_maker(tmp_path, 0.3) for _ in range(3)]
    go(*makers)
    said = [maker.communicate(timeout=60)[0].splitlines() for maker in makers]
    assert sorted(len(lines) for lines in said) == [1, 1, 2], "one made it, two waited"
    assert {lines[-1] for lines in said} == {"[1.0, 1.0, 1.0]"}
    assert {path.suffix for path in files(tmp_path)} == {".safetensors"}, "no lock is left"


def test_the_lock_of_a_killed_maker_is_taken_over(tmp_path: Path) -> None:
    maker = start_maker(tmp_path, 600)
    go(maker)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "making\n"
    killer = threading.Timer(0.3, maker.kill)
    killer.start()
    found = ArtifactCache(tmp_path, wait_s=60).get_or_make(KEY, lambda: {"0": torch.ones(3)})
    assert maker.wait(timeout=10) != 0, "it had not ended by itself"
    assert same(found, {"0": torch.ones(3)})


def test_a_maker_that_hangs_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    with ArtifactFiles(tmp_path).locked(KEY, 0) as held:
        assert held
        made = ArtifactCache(tmp_path, wait_s=0.1).get_or_make(KEY, lambda: {"0": torch.ones(3)})
    assert same(made, {"0": torch.ones(3)})
    assert same(ArtifactCache(tmp_path).get_or_make(KEY, never), made)


def test_a_maker_that_raises_frees_the_lock(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, wait_s=60)

    def fail() -> dict[str, torch.Tensor]:
        raise EvaluationError("no luck")

    for _ in range(2):
        with pytest.raises(EvaluationError, match="no luck"):
            cache.get_or_make(KEY, fail)
    assert not files(tmp_path)


def test_a_lock_file_that_vanished_before_it_was_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removes it on release, just between another's opening and locking it."""
    flock, path = artifact_files.fcntl.flock, tmp_path / "ab" / f".{KEY}.lock"
    calls: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(artifact_files.fcntl, "flock", late)
    with ArtifactFiles(tmp_path).locked(KEY, 0) as held:
        assert held
        assert path.exists()
        with ArtifactFiles(tmp_path).locked(KEY, 0) as again:
            assert not again
    assert not path.exists()


def test_making_one_artifact_may_need_another(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path)
    made = cache.get_or_make(KEY, lambda: {"0": 2 * cache.get_or_make(OTHER, lambda: {"0": torch.ones(1)})["0"]})
    assert made["0"].item() == 2
    assert len(files(tmp_path)) == 2


def test_without_locks_everything_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(artifact_files.fcntl, "flock", no_locks)
    started = time.monotonic()
    assert same(
        ArtifactCache(tmp_path, wait_s=600).get_or_make(KEY, lambda: {"0": torch.ones(1)}), {"0": torch.ones(1)}
    )
    assert time.monotonic() - started < 300, "it did not wait for a lock that nobody can have"


# Pruning


def test_the_files_used_longest_ago_are_removed(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, memory_bytes=0)
    keys = [letter * 64 for letter in "abcd"]
    for age, key in enumerate(keys):
        cache.put(key, {"0": torch.zeros(100)})
        os.utime(tmp_path / key[:2] / f"{key}.safetensors", (age + 1, age + 1))
    size = next(iter(files(tmp_path))).stat().st_size
    assert cache.get(keys[0]) is not None  # which makes it the one used last
    assert cache.prune(2 * size + 1) == 2 * size
    assert [cache.get(key) is not None for key in keys] == [True, False, False, True]
    assert cache.prune(2 * size) == 0


def test_a_bounded_cache_prunes_itself(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, memory_bytes=0, disk_bytes=20_000)
    for value in range(60):
        cache.put(f"{value:02}" * 32, {"0": torch.zeros(100)})
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 20_000 + 1000
    assert cache.get("59" * 32) is not None
    assert cache.get("00" * 32) is None


def test_pruning_clears_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    shard = tmp_path / "ab"
    shard.mkdir()
    left = [shard / f".{KEY}.safetensors.123.abc", shard / f".{OTHER}.lock"]
    fresh = shard / f".{KEY}.safetensors.124.abc"
    for path in (*left, fresh):
        path.write_bytes(b"half")
    for path in left:
        os.utime(path, (1, 1))
    with ArtifactFiles(tmp_path).locked(KEY, 0) as held:
        assert held
        os.utime(shard / f".{KEY}.lock", (1, 1))
        ArtifactCache(tmp_path).prune(0)
        assert files(tmp_path) == {fresh, shard / f".{KEY}.lock"}


def test_readers_and_writers_go_on_while_another_prunes(tmp_path: Path) -> None:
    stop = threading.Event()

    def prune() -> None:
        while not stop.is_set():
            ArtifactCache(tmp_path).prune(500)

    pruner = threading.Thread(target=prune)
    pruner.start()
    cache = ArtifactCache(tmp_path, memory_bytes=0)
    try:
        for step in range(300):
            value = step % 7
            found = cache.get_or_make(f"{value}" * 64, lambda value=value: {"0": torch.full((20,), float(value))})
            assert found["0"].unique().tolist() == [value]
    finally:
        stop.set()
        pruner.join()
    assert cache.prune(0) >= 0
    assert not files(tmp_path)


# Other machines


def test_what_one_machine_made_another_fetches_once(tmp_path: Path) -> None:
    shelf = Shelf()
    made = ArtifactCache(tmp_path / "a", remote=shelf).get_or_make(KEY, lambda: {"0": torch.arange(3)})
    other = ArtifactCache(tmp_path / "b", remote=shelf)
    shelf.fetched.clear()
    assert same(other.get_or_make(KEY, never), made)
    assert same(other.get(KEY), made)
    assert shelf.fetched == [KEY]
    assert same(ArtifactCache(tmp_path / "b").get(KEY), made), "it is on that machine's disk now"


def test_damaged_content_of_another_machine_counts_as_absent(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.content[KEY] = encode({"0": torch.ones(2)})[:-1] + b"x"
    cache = ArtifactCache(tmp_path, remote=shelf)
    assert cache.get(KEY) is None
    assert same(cache.get_or_make(KEY, lambda: {"0": torch.ones(2)}), {"0": torch.ones(2)})
    assert decode(shelf.content[KEY]) is not None, "replaced"


def test_files_of_an_earlier_run_are_offered_to_others(tmp_path: Path) -> None:
    ArtifactCache(tmp_path).put(KEY, {"0": torch.ones(2)})
    shelf = Shelf()
    assert ArtifactCache(tmp_path, remote=shelf).get(KEY) is not None
    assert decode(shelf.content[KEY]) is not None


def test_the_default_cache_is_one_per_directory_and_follows_the_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path / "a"))
    cache = default_cache()
    assert cache is default_cache()
    assert cache.directory == tmp_path / "a" / "artifacts"
    shelf = Shelf()
    set_default_exchange(shelf)
    try:
        cache.put(KEY, {"0": torch.ones(1)})
        assert list(shelf.content) == [KEY], "a cache made before uses it too"
        monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path / "b"))
        assert default_cache() is not cache
        assert same(default_cache().get_or_make(KEY, never), {"0": torch.ones(1)})
    finally:
        set_default_exchange(None)
    default_cache().put(OTHER, {"0": torch.ones(1)})
    assert list(shelf.content) == [KEY]

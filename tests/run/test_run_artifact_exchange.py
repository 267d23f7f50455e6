"""Artifacts through Ray's object store: found by other machines, bounded, and never needed."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.evaluate.artifacts import ArtifactCache, default_cache
from qsearch.evaluate.target import Target
from qsearch.run.artifact_exchange import ArtifactIndex, RayArtifactExchange, artifact_exchange

KEY = "ab" + "0" * 62
OTHER = "cd" + "0" * 62


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


class Machine:
    """A worker with a disk of its own."""

    def __init__(self, directory: Path, exchange: RayArtifactExchange | None) -> None:
        torch.set_num_threads(1)
        self._cache = ArtifactCache(directory, remote=exchange)

    def make(self, key: str, value: float, count: int) -> tuple[list[float], bool]:
        """The distinct values of an artifact, and whether it was computed here."""
        made = []

        def compute() -> dict[str, torch.Tensor]:
            made.append(key)
            return {"0": torch.full((count,), value)}

        return self._cache.get_or_make(key, compute)["0"].unique().tolist(), bool(made)


def machine(directory: Path, exchange: RayArtifactExchange | None) -> Any:
    start: Any = ray.remote(num_cpus=0)(Machine)
    return start.remote(directory, exchange)


def make(worker: Any, key: str, value: float, count: int = 50_000) -> tuple[list[float], bool]:
    found: tuple[list[float], bool] = ray.get(worker.make.remote(key, value, count))
    return found


def held(exchange: RayArtifactExchange) -> tuple[int, int]:
    found: tuple[int, int] = ray.get(exchange.index.held.remote())
    return found


def test_what_one_machine_made_another_fetches_until_it_is_gone(tmp_path: Path) -> None:
    """The whole life: shared, kept on the second disk, lost with its owner, computed again, index gone, computed."""
    with artifact_exchange() as exchange:
        first, second = (machine(tmp_path / name, exchange) for name in ("first", "second"))
        assert make(first, KEY, 1.0) == ([1.0], True)
        assert make(first, OTHER, 2.0) == ([2.0], True)
        assert make(second, KEY, 99.0) == ([1.0], False), "the content of the first"
        count, size = held(exchange)
        assert count == 2
        assert 400_000 <= size < 410_000
        assert ArtifactCache(tmp_path / "second").get(KEY) is not None
        assert ArtifactCache(tmp_path / "second").get(OTHER) is None

        ray.kill(first)  # and with it what it had put into the object store
        assert _eventually(lambda: exchange.fetch(OTHER) is None)
        assert held(exchange)[0] == 1, "what is lost is forgotten"
        assert make(second, OTHER, 3.0) == ([3.0], True)
        assert held(exchange)[0] == 2, "and may be published again"

        ray.kill(exchange.index)
        third = "ef" + "0" * 62
        assert make(second, third, 4.0) == ([4.0], True)
        assert make(second, KEY, 99.0) == ([1.0], False)


def test_a_lost_index_costs_one_warning_and_one_wait(caplog: pytest.LogCaptureFixture) -> None:
    with artifact_exchange() as exchange:
        exchange.publish(KEY, b"content")
        assert exchange.fetch(KEY) == b"content"
        ray.kill(exchange.index)
        with caplog.at_level(logging.WARNING, "qsearch"):
            assert exchange.fetch(KEY) is None
            asked = []
            exchange.index = _Silent(asked)
            assert exchange.fetch(KEY) is None
            exchange.publish(OTHER, b"more")
        assert asked == []
        assert len(caplog.records) == 1


def test_an_index_that_hangs_is_not_waited_for() -> None:
    @ray.remote(num_cpus=0)
    class Hanging:
        def find(self, key: str) -> list[Any]:
            time.sleep(600)
            return []

    index = Hanging.remote()  # type: ignore[attr-defined]
    assert RayArtifactExchange(index, timeout_s=0.2).fetch(KEY) is None
    ray.kill(index)


def test_the_index_is_asked_again_after_a_pause() -> None:
    with artifact_exchange() as good, artifact_exchange() as bad:
        ray.kill(bad.index)
        exchange = RayArtifactExchange(bad.index, pause_s=0.0)
        assert exchange.fetch(KEY) is None
        exchange.index = good.index
        exchange.publish(KEY, b"content")
        assert exchange.fetch(KEY) == b"content"


def test_the_object_store_is_not_filled() -> None:
    with artifact_exchange(max_bytes=1000) as exchange:
        exchange.publish(OTHER, b"x" * 1001)
        assert held(exchange) == (0, 0)
        for number in range(5):
            exchange.publish(f"{number}" * 64, bytes([number]) * 300)
        assert held(exchange) == (3, 900)
        assert exchange.fetch("0" * 64) is None
        assert exchange.fetch("4" * 64) == bytes([4]) * 300


@given(
    st.lists(st.tuples(st.sampled_from(["keep", "find", "forget"]), st.sampled_from("abcdef"), st.integers(0, 9))),
    st.integers(0, 4),
)
@settings(max_examples=100, deadline=None)
def test_the_index_is_bounded_and_drops_the_least_recently_used(steps: list[tuple[str, str, int]], count: int) -> None:
    """Against a model; numbers stand for references."""
    index, model = ArtifactIndex(max_bytes=20, max_count=count), OrderedDict[str, int]()
    for action, key, size in steps:
        if action == "keep":
            assert index.wants(key, size) == (key not in model and count > 0)
            index.keep(key, [size], size)
            if key not in model and count > 0:
                while len(model) >= count or sum(model.values()) + size > 20:
                    model.popitem(last=False)
                model[key] = size
        elif action == "find":
            assert index.find(key) == ([model[key]] if key in model else [])
            if key in model:
                model.move_to_end(key)
        else:
            index.forget(key, [size])
            if model.get(key) == size:
                del model[key]
        assert index.held() == (len(model), sum(model.values()))


def test_workers_use_the_exchange_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the executor hands to a worker reaches the default cache, and leaves it with the worker."""
    from qsearch.run import tune

    made: list[Any] = []
    monkeypatch.setattr(tune, "Worker", lambda target, settings, on_timeout: made.append((target, settings)))
    monkeypatch.setenv("QSEARCH_CACHE_DIR", str(tmp_path))
    target = Target.__new__(Target)
    with artifact_exchange() as exchange:
        worker = tune.EvaluationTrainable.__new__(tune.EvaluationTrainable)
        worker.setup({"lease": "one"}, broker=None, target=target, settings=object(), exchange=exchange)  # type: ignore[arg-type]
        default_cache().put(KEY, {"0": torch.ones(2)})
        assert held(exchange)[0] == 1
        worker.cleanup()
        default_cache().put(OTHER, {"0": torch.ones(2)})
        assert held(exchange)[0] == 1
    assert len(made) == 1


@pytest.mark.parametrize("share", [True, False])
def test_the_executor_starts_an_exchange_where_there_are_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    from qsearch.run import tune

    started: list[RayArtifactExchange] = []
    given_to: list[RayArtifactExchange | None] = []

    @contextmanager
    def recorded() -> Iterator[RayArtifactExchange]:
        with artifact_exchange() as exchange:
            started.append(exchange)
            yield exchange

    def fit(self: Any, broker: Any, target: Any, settings: Any, exchange: RayArtifactExchange | None, *_: Any) -> None:
        given_to.append(exchange)
        if exchange is not None:
            exchange.publish(KEY, b"content")
            assert exchange.fetch(KEY) == b"content"

    class Broker:
        def __init__(self, *_: Any) -> None:
            pass

        def open(self) -> str:
            return "open"

        def status(self) -> str:
            return "done"

        def shut_down(self) -> None:
            pass

    class Settings:
        timeout_s = None

    monkeypatch.setattr(tune, "artifact_exchange", recorded)
    monkeypatch.setattr(tune.TuneExecutor, "_fit", fit)
    monkeypatch.setattr(tune, "BrokerActor", Broker)
    executor = tune.TuneExecutor(1, 1.0, 0.0, tmp_path, share_artifacts=share)
    status = executor.run(lambda: None, None, Settings(), lambda status: None)  # type: ignore[arg-type, return-value]
    assert status == "done"
    assert given_to == (started if share else [None])
    assert len(started) == share
    for exchange in started:
        with pytest.raises(ray.exceptions.RayActorError):
            held(exchange)


class _Silent:
    """Stands for an index that must not be asked."""

    def __init__(self, asked: list[str]) -> None:
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        self._asked.append(name)
        raise AttributeError(name)


def _eventually(check: Any, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True

from __future__ import annotations

from typing import Any

import pytest

from qsearch.spec import Difference, describe, diff, locked, spec_from_mapping
from qsearch.spec.diff import ABSENT

BASE: dict[str, Any] = {
    "study": {"name": "s"},
    "model": "qsearch:net",
    "data": "qsearch:digits",
    "devices": ["a"],
    "space": {"layers": [{"match": "x", "weights": [4]}, {"match": "y", "weights": [4]}]},
    "searcher": {"name": "genetic", "population": 32},
}


def resolved(**sections: Any) -> dict[str, Any]:
    return spec_from_mapping({**BASE, **sections}).resolved()


@pytest.mark.parametrize(
    "sections",
    [
        {"budget": {"evaluations": 5, "wall_time_s": 9}},
        {"store": {"url": "sqlite:///x.db"}},
        {"evaluation": {"timeout_s": None}},
        {
            "execution": {
                "executor": "serial",
                "workers": 3,
                "cpus_per_worker": 2,
                "gpus_per_worker": 0.5,
                "device": "cuda",
                "max_attempts": 9,
                "lease_seconds": 1,
                "max_failed_fraction": 0.1,
            }
        },
    ],
)
def test_these_may_change(sections: dict[str, Any]) -> None:
    assert resolved(**sections) != resolved()
    assert diff(resolved(), resolved(**sections)) == []


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"study": {"name": "t"}}, Difference("study.name", "s", "t")),
        ({"model": "qsearch:x"}, Difference("model.source", "qsearch:net", "qsearch:x")),
        ({"data": {"source": "qsearch:digits", "test": 5}}, Difference("data.test", None, 5)),
        ({"evaluation": {"seed": 1}}, Difference("evaluation.seed", 0, 1)),
        (
            {"execution": {"scheduling": "generational"}},
            Difference("execution.scheduling", "steady_state", "generational"),
        ),
        (
            {"objectives": ["error", "size"]},
            Difference("objectives", ["error", "size", "latency@a"], ["error", "size"]),
        ),
        ({"constraints": ["size <= 1 kB"]}, Difference("constraints", [], [{"metric": "size", "max": 1000.0}])),
        ({"finalists": {"max": 3}}, Difference("finalists.max", 64, 3)),
        ({"fidelities": {"brecq": {"iterations": 2}}}, Difference("fidelities.brecq", ABSENT, {"iterations": 2})),
        ({"searcher": "genetic"}, Difference("searcher.options.population", 32, ABSENT)),
        ({"searcher": {"name": "genetic", "population": True}}, Difference("searcher.options.population", 32, True)),
        (
            {"space": {"layers": [BASE["space"]["layers"][0], {"match": "y", "weights": [5]}]}},
            Difference("space.layers[1].weights", [4], [5]),
        ),
        ({"quantizer": {"add_policy": "both_inputs"}}, Difference("quantizer.add_policy", "after_relu", "both_inputs")),
        ({"quantizer": {"units": ["a"]}}, Difference("quantizer.units", "auto", ["a"])),
        ({"quantizer": {"weights": {"grid": "affine"}}}, Difference("quantizer.weights.grid", "symmetric", "affine")),
        ({"quantizer": {"equalize": True}}, Difference("quantizer.equalize", False, True)),
    ],
)
def test_these_may_not(sections: dict[str, Any], expected: Difference) -> None:
    assert diff(resolved(), resolved(**sections)) == [expected]


def test_true_is_not_one() -> None:
    one, true = (resolved(searcher={"name": "x", "flag": flag}) for flag in (1, True))
    assert diff(one, true) == [Difference("searcher.options.flag", 1, True)]


def test_locked_takes_a_study_or_its_dictionary() -> None:
    spec = spec_from_mapping(BASE)
    assert locked(spec) == locked(spec.resolved())
    assert locked(spec)["execution"] == {"scheduling": "steady_state"}
    assert locked(spec)["evaluation"] == {"fidelity": "ptq", "seed": 0}


def test_the_description_lists_old_and_new() -> None:
    differences = diff(resolved(), resolved(study={"name": "s", "seed": 3}, searcher="genetic"))
    assert describe(differences) == (
        "2 settings differ from the study that was started:\n"
        "  study.seed: 0 -> 3\n"
        "  searcher.options.population: 32 -> (not set)"
    )
    assert describe(differences[:1]).startswith("1 setting differs from")
    assert describe([]) == ""

"""Whole studies through `qsearch.run.study`: a user's network, and the mistakes people make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import qsearch as qs
from qsearch.errors import (
    DataError,
    DeviceError,
    ModelError,
    PluginError,
    SpaceError,
    SpecError,
    StoreError,
    StudyLockedError,
    StudyMismatchError,
)
from qsearch.models.torchvision_compat import import_torchvision
from qsearch.run.study import RunOptions
from qsearch.store import StudyLock

SERIAL = RunOptions(executor="serial")

SMALL = """
study: {name: small, seed: 0}
model: qsearch:digits_resnet
data: {source: qsearch:digits, validation: 100, test: 100}
devices: [bismo_edge, systolic_vta]
objectives: [error, latency@bismo_edge, energy@systolic_vta, size]
searcher: {name: genetic, population: 6}
budget: {evaluations: 12}
execution: {scheduling: generational}
"""


def write(directory: Path, text: str, name: str = "study.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    qs.launch(write(directory, SMALL), directory / "run", SERIAL)
    return directory


def test_a_front_carries_everything_a_user_needs(finished: Path) -> None:
    front = qs.front(finished / "run")
    assert front.is_final
    assert front.counts["complete"] == 12
    assert 0 < front.hypervolume <= 1
    assert len(front.layers) == 11
    point = front.points[0]
    assert set(point.accuracy) == {"validation", "test"}
    assert set(point.costs) == {
        "size", "latency@bismo_edge", "energy@bismo_edge", "latency@systolic_vta", "energy@systolic_vta",
    }  # fmt: skip
    assert (point.config.weights[0], point.config.weights[-1]) == (8, 8)
    assert sum(p.is_knee for p in front.points) == 1
    assert front.target["float"]["test"] >= 97.0


def test_launching_again_continues_and_changes_nothing(finished: Path) -> None:
    before = qs.front(finished / "run")
    again = qs.launch(finished / "study.yaml", finished / "run", SERIAL)
    assert again.points == before.points


def test_the_same_study_elsewhere_gives_the_same_front(finished: Path, tmp_path: Path) -> None:
    other = qs.launch(write(tmp_path, SMALL), tmp_path / "run", SERIAL)
    assert other.points == qs.front(finished / "run").points


def test_a_larger_budget_in_the_directory_continues_the_study(tmp_path: Path) -> None:
    qs.launch(write(tmp_path, SMALL), tmp_path / "run", SERIAL)
    kept = tmp_path / "run" / "study.yaml"
    kept.write_text(kept.read_text().replace("evaluations: 12", "evaluations: 20"))
    assert qs.resume(tmp_path / "run", SERIAL).counts["complete"] == 20


def test_another_seed_in_the_directory_is_refused_with_a_diff(finished: Path, tmp_path: Path) -> None:
    qs.launch(write(tmp_path, SMALL), tmp_path / "run", SERIAL)
    kept = tmp_path / "run" / "study.yaml"
    kept.write_text(kept.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(StudyMismatchError, match=r"study\.seed"):
        qs.resume(tmp_path / "run", SERIAL)


def test_another_study_in_the_directory_is_refused(finished: Path, tmp_path: Path) -> None:
    other = write(tmp_path, SMALL.replace("population: 6", "population: 8"))
    with pytest.raises(StudyMismatchError, match="belongs to study 'small'"):
        qs.launch(other, finished / "run", SERIAL)


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(StudyMismatchError, match=r"chapter1\.tex"):
        qs.launch(write(tmp_path, SMALL), tmp_path / "thesis", SERIAL)
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_study_that_never_began_may_be_corrected_and_launched_again(tmp_path: Path) -> None:
    with pytest.raises(SpaceError):
        qs.launch(write(tmp_path, SMALL + 'constraints: ["size <= 1 kB"]\n'), tmp_path / "run", SERIAL)
    front = qs.launch(write(tmp_path, SMALL + 'constraints: ["size <= 20 kB"]\n'), tmp_path / "run", SERIAL)
    assert front.counts["complete"] == 12


def test_evaluations_say_with_what_they_were_computed(finished: Path) -> None:
    provenance = qs.front(finished / "run").points[0].provenance
    assert provenance["threads"] == 1
    assert provenance["device"] == "cpu"
    assert provenance["torch"] == torch.__version__


def test_resume_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        qs.resume(tmp_path / "nowhere", SERIAL)


def test_two_drivers_are_refused(finished: Path) -> None:
    with (
        StudyLock(finished / "run" / "study.lock").acquire(),
        pytest.raises(StudyLockedError, match="driven by process"),
    ):
        qs.resume(finished / "run", SERIAL)


def test_a_damaged_log_is_said_and_kept(finished: Path, tmp_path: Path) -> None:
    qs.launch(write(tmp_path, SMALL), tmp_path / "run", SERIAL)
    database = tmp_path / "run" / "study.db"
    database.write_bytes(b"not a database, but somebody's file " * 100)
    with pytest.raises(StoreError):
        qs.resume(tmp_path / "run", SERIAL)
    assert database.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("evaluations: 12", "evalautions: 12"), SpecError, r"evaluations"),
        (("bismo_edge, systolic", "bismo_edgy, systolic"), SpecError, r"bismo_edge"),
        (("name: genetic", "name: genetics"), PluginError, "genetic"),
        (("population: 6", "popluation: 6"), SpecError, "population"),
        (("qsearch:digits_resnet", "qsearch:digit_resnet"), PluginError, "digits_resnet"),
        (("source: qsearch:digits,", "source: qsearch:digit,"), PluginError, "digits"),
    ],
)
def test_a_typo_names_what_was_meant(
    tmp_path: Path, change: tuple[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        qs.launch(write(tmp_path, SMALL.replace(*change)), tmp_path / "run", SERIAL)


def test_an_unknown_preset_names_the_nearest(tmp_path: Path) -> None:
    text = SMALL.replace("bismo_edge", "bismo_egde")
    with pytest.raises(DeviceError, match="bismo_edge"):
        qs.launch(write(tmp_path, text), tmp_path / "run", SERIAL)


def test_options_of_an_unknown_fidelity_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="brecq"):
        qs.launch(write(tmp_path, SMALL + "fidelities: {breqc: {iterations: 3}}\n"), tmp_path / "run", SERIAL)


def test_an_impossible_constraint_prints_what_is_attainable(tmp_path: Path) -> None:
    with pytest.raises(SpaceError) as caught:
        qs.launch(write(tmp_path, SMALL + 'constraints: ["size <= 1 kB"]\n'), tmp_path / "run", SERIAL)
    text = str(caught.value)
    least, most = min_and_max_size(tmp_path)
    assert f"{least:.6g}" in text.replace(" ", "").replace(",", "") or str(int(least)) in text
    assert str(int(most)) in text


def min_and_max_size(tmp_path: Path) -> tuple[float, float]:
    from qsearch.evaluate import build_target
    from qsearch.run.problem import build_problem
    from qsearch.spec import load_spec

    spec = load_spec(write(tmp_path, SMALL, "plain.yaml"))
    graph = build_target(spec.model, spec.data, spec.quantizer).graph
    groups = {t.index: t.group for t in graph.tensors}
    problem = build_problem(spec, graph.layers, groups, graph.classes, graph.float_parameters)
    return problem.costs(problem.space.min_config())["size"], problem.costs(problem.space.max_config())["size"]


def test_several_tight_constraints_hold_on_the_whole_front(tmp_path: Path) -> None:
    text = SMALL + 'constraints: ["mean_weight_bits <= 2.2", "size <= 12.4 kB", "latency@bismo_edge <= 39 us"]\n'
    front = qs.launch(write(tmp_path, text), tmp_path / "run", SERIAL)
    assert all(p.costs["size"] <= 12_400 and p.costs["latency@bismo_edge"] <= 39e-6 for p in front.points)


def test_a_layer_override_that_matches_nothing_names_a_layer(tmp_path: Path) -> None:
    text = SMALL + "space: {layers: [{match: blokc3.depthwise.0, weights: [8]}]}\n"
    with pytest.raises(SpecError, match=r"block3\.depthwise\.0"):
        qs.launch(write(tmp_path, text), tmp_path / "run", SERIAL)


class Undecided(torch.nn.Module):
    """Control flow on values: cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Branch()
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.inner(x).flatten(1))


class _Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def undecided() -> torch.nn.Module:
    return Undecided()


def overlapping() -> dict[str, Any]:
    from qsearch.data.digits import digits

    splits: dict[str, Any] = dict(digits())
    return {**splits, "test": splits["validation"]}


def test_a_network_that_cannot_be_traced_names_the_module(tmp_path: Path) -> None:
    text = SMALL.replace("qsearch:digits_resnet", f"{__name__}:undecided")
    with pytest.raises(ModelError, match="module 'inner'"):
        qs.launch(write(tmp_path, text), tmp_path / "run", SERIAL)


def test_splits_that_overlap_are_refused(tmp_path: Path) -> None:
    text = SMALL.replace("source: qsearch:digits", f"source: {__name__}:overlapping")
    with pytest.raises(DataError, match="identical images"):
        qs.launch(write(tmp_path, text), tmp_path / "run", SERIAL)


def three_channel_digits() -> dict[str, Any]:
    """Digits as 32 x 32 colour images, for torchvision networks; few, because there is no training."""
    from torch.utils.data import TensorDataset

    from qsearch.data.digits import digits

    made = {}
    for name, dataset in digits().items():
        images, labels = dataset.tensors
        made[name] = TensorDataset(images[:48].repeat(1, 3, 4, 4), labels[:48])
    return made


TORCHVISION = """
study: {{name: small}}
model: {{source: "torchvision:squeezenet1_1", weights: {weights}, arguments: {{num_classes: 10}}}}
data: {module}:three_channel_digits
devices: [bismo_edge]
searcher: {{name: genetic, population: 4}}
budget: {{evaluations: 6}}
"""


def test_a_torchvision_network_with_a_checkpoint_beside_the_study(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.squeezenet1_1(num_classes=10)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    study = write(tmp_path, TORCHVISION.format(weights="weights.pt", module=__name__))
    front = qs.launch(study, tmp_path / "run", SERIAL)
    assert len(front.layers) == 26
    assert front.counts["complete"] == 6
    # The copy in the study's directory finds the checkpoint, too.
    assert qs.resume(tmp_path / "run", SERIAL).points == front.points


def test_a_checkpoint_of_the_wrong_shape_says_which_tensor(tmp_path: Path) -> None:
    network = import_torchvision().models.squeezenet1_1(num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    study = write(tmp_path, TORCHVISION.format(weights="weights.pt", module=__name__))
    with pytest.raises(ModelError, match=r"classifier\.1\.weight: shape \(7, 512, 1, 1\)"):
        qs.launch(study, tmp_path / "run", SERIAL)


def test_changed_weights_are_noticed_on_resume(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.squeezenet1_1(num_classes=10)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    qs.launch(write(tmp_path, TORCHVISION.format(weights="weights.pt", module=__name__)), tmp_path / "run", SERIAL)
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(StudyMismatchError, match="the network changed"):
        qs.resume(tmp_path / "run", SERIAL)


CIFAR = """
study: {name: cifar, seed: 0}
model: factories:cifar_resnet20
data: {source: "factories:cifar10", calibration: 128, validation: 300, test: 300}
devices: [bismo_cloud]
objectives: [error, latency, size]
space: {weights: [2, 3, 4, 6, 8], activations: [4, 8]}
searcher: {name: genetic, population: 6}
budget: {evaluations: 8}
finalists: {max: 3}
"""


def test_resnet20_on_cifar10_with_the_users_own_factories(shared_data: Path, tmp_path: Path) -> None:
    front = qs.launch(write(tmp_path, CIFAR), tmp_path / "run", SERIAL)
    assert len(front.layers) == 20
    assert front.target["float"]["validation"] > 88
    widest = max(front.points, key=lambda p: p.mean_weight_bits)
    assert widest.accuracy["test"] > front.target["float"]["test"] - 2.0
    assert front.is_final

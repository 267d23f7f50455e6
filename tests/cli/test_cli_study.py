from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import write_study

from qsearch.store import Store, StudyLock

DEVICES = ("systolic_vta", "bismo_edge")


def points(study: Path) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = json.loads((study / "results" / "front.json").read_text(encoding="utf-8"))["points"]
    return value


# ---- launch ---------------------------------------------------------------------------------------------------------


def test_launch_shows_progress_and_the_front(launched: tuple[Path, Any]) -> None:
    study, ended = launched
    assert f"study directory: {study}" in ended.err
    assert "11 layers" in ended.err
    assert "scoring the finalists" in ended.err
    assert "done: 12/12" in ended.err
    assert "float32" in ended.out
    assert "knee" in ended.out
    assert f"results: {study / 'results'}" in ended.out
    for command in (f"qsearch front {study}", f"qsearch export {study} --out OUT", f"qsearch evaluate {study}"):
        assert command in ended.out


def test_launch_writes_the_results(study: Path) -> None:
    names = {str(path.relative_to(study / "results")) for path in (study / "results").rglob("*") if path.is_file()}
    configs = {f"configs/point-{point['point']:04d}.json" for point in points(study)}
    assert names == {"front.csv", "front.json", "front.png", "export.json", *configs}


def test_launching_again_continues_and_evaluates_nothing(qsearch: Any, study: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(study, tmp_path / "study")
    before = json.loads(qsearch("status", copied, "--json").out)
    ended = qsearch("launch", write_study(tmp_path), "--dir", copied)
    assert ended.code == 0
    assert f"continuing the study in {copied}" in ended.err
    after = json.loads(qsearch("status", copied, "--json").out)
    assert after == before


def test_quiet_prints_nothing(qsearch: Any, study: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(study, tmp_path / "study")
    shutil.rmtree(copied / "results")
    ended = qsearch("resume", copied, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (copied / "results" / "front.csv").read_bytes() == (study / "results" / "front.csv").read_bytes()


def test_a_larger_budget_is_resumed(qsearch: Any, study: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(study, tmp_path / "study")
    text = (copied / "study.yaml").read_text(encoding="utf-8")
    (copied / "study.yaml").write_text(text.replace("evaluations: 12", "evaluations: 16"), encoding="utf-8")
    assert qsearch("resume", copied, "-q").code == 0
    status = json.loads(qsearch("status", copied, "--json").out)
    assert status["candidates"]["complete"] == 16
    assert status["phase"] == "done"
    assert status["last_session"]["workers"] == 1
    assert 0 < status["last_session"]["efficiency"] <= 1


def test_the_directory_is_named_after_the_study(qsearch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "stranger.txt").write_text("", encoding="utf-8")
    ended = qsearch("launch", write_study(tmp_path))
    assert ended.code == 2
    assert "runs/tiny is not empty" in ended.err


def test_the_directory_of_another_study(qsearch: Any, study: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path, "other")
    ended = qsearch("launch", other, "--dir", study)
    assert ended.code == 2
    assert 'study.name: "tiny" -> "other"' in ended.err
    assert "hint: choose another --dir" in ended.err


def test_two_drivers(qsearch: Any, study: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(study, tmp_path / "study")
    with StudyLock(copied / "study.lock").acquire():
        ended = qsearch("resume", copied)
        status = qsearch("status", copied)
        assert ended.code == 2
        assert f"being driven by process {os.getpid()}" in ended.err
        assert f"running: process {os.getpid()}" in status.out
        assert json.loads(qsearch("status", copied, "--json").out)["running"] is True
        assert qsearch("front", copied).code == 0


@pytest.mark.parametrize("command", ["resume", "status", "front"])
def test_no_study_there(qsearch: Any, tmp_path: Path, command: str) -> None:
    ended = qsearch(command, tmp_path / "nowhere")
    assert ended.code == 2
    assert "holds no study" in ended.err
    assert "hint: " in ended.err


def test_a_wrong_study_file(qsearch: Any, tmp_path: Path) -> None:
    path = write_study(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + "budgett: {}\n", encoding="utf-8")
    ended = qsearch("launch", path)
    assert ended.code == 2
    assert "budgett" in ended.err
    assert "did you mean 'budget'?" in ended.err
    assert qsearch("launch", tmp_path / "tiny.yml").code == 2


@pytest.mark.parametrize("option", [("--workers", "2"), ("--address", "auto")])
def test_serial_has_neither_workers_nor_cluster(qsearch: Any, tmp_path: Path, option: tuple[str, str]) -> None:
    ended = qsearch("launch", write_study(tmp_path), "--executor", "serial", *option)
    assert ended.code == 2
    assert option[0] in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_study_says_how_to_go_on_and_loses_nothing(
    qsearch: Any, study: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    file = write_study(tmp_path, "long", evaluations=100_000)
    command = [sys.executable, "-m", "qsearch", "launch", str(file), "--dir", str(tmp_path / "a b")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if (tmp_path / "a b" / "study.db").exists() and evaluated(tmp_path / "a b") > 10:
            break
        time.sleep(0.2)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert f"qsearch resume '{tmp_path / 'a b'}'" in errors
    assert "Traceback" not in errors
    status = qsearch("status", tmp_path / "a b").out
    assert "not running" in status
    assert "search" in status
    assert evaluated(tmp_path / "a b") > 10


def evaluated(directory: Path) -> int:
    with Store.open(directory / "study.db", read_only=True) as store:
        studies = store.studies()
        return len(store.study(studies[0].name).evaluations()) if studies else 0


# ---- status ---------------------------------------------------------------------------------------------------------


def test_status(qsearch: Any, study: Path) -> None:
    facts = dict(line.split("  ", 1) for line in qsearch("status", study).out.splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["phase"] == "done"
    assert facts["driver"] == "not running"
    assert facts["candidates"] == "12 complete"
    assert "12 ptq on validation" in facts["evaluations"]
    assert "brecq on test" in facts["evaluations"]
    assert facts["failures"] == "none"
    assert facts["workers"].startswith("1, ")


def test_status_as_json(qsearch: Any, study: Path) -> None:
    status = json.loads(qsearch("status", study, "--json").out)
    assert status["study"] == "tiny"
    assert status["running"] is False
    assert status["budget"] == {"evaluations": 12, "wall_time_s": None}
    assert status["front"] == len(points(study))
    assert 0 < status["hypervolume"] < 1
    assert status["last_session"]["evaluations"] >= 12
    counts = {(e["fidelity"], e["split"]): e["count"] for e in status["evaluations"]}
    assert counts["ptq", "validation"] == 12
    assert counts["brecq", "validation"] == counts["brecq", "test"]


def test_status_before_the_first_evaluation(qsearch: Any, study: Path, tmp_path: Path) -> None:
    shutil.copy(study / "study.yaml", tmp_path)
    assert json.loads(qsearch("status", tmp_path, "--json").out)["phase"] == "not started"
    ended = qsearch("front", tmp_path)
    assert ended.code == 2
    assert "has no results yet" in ended.err


# ---- front ----------------------------------------------------------------------------------------------------------


def test_front_as_a_table(qsearch: Any, study: Path) -> None:
    lines = qsearch("front", study).out.splitlines()
    rows = [line.split() for line in lines]
    first = next(i for i, row in enumerate(rows) if row and row[0] == "float32")
    for row, point in zip(rows[first + 1 :], points(study), strict=False):
        assert int(row[0]) == point["point"]
        assert float(row[1]) == pytest.approx(point["accuracy"]["validation"], abs=0.005)
        assert float(row[2]) == pytest.approx(point["accuracy"]["test"], abs=0.005)
        assert float(row[3]) == pytest.approx(point["mean_weight_bits"], abs=0.005)
        assert float(row[5]) * 1000 == pytest.approx(point["size_bytes"], rel=1e-3)
        assert float(row[6]) * 1e-6 == pytest.approx(point["metrics"]["systolic_vta"]["latency_s"], rel=1e-3)
        assert (row[-1] == "knee") == point["is_knee"]
    text = "\n".join(lines)
    assert sum(point["is_knee"] for point in points(study)) == 1
    assert "unvalidated" in text  # what the numbers were checked against stands with them
    assert not [character for character in text if ord(character) > 127]


def test_front_as_csv(qsearch: Any, study: Path) -> None:
    text = qsearch("front", study, "--format", "csv").out
    assert text == (study / "results" / "front.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [int(row["point"]) for row in rows] == [point["point"] for point in points(study)]
    assert float(rows[0]["energy_j@bismo_edge"]) == points(study)[0]["metrics"]["bismo_edge"]["energy_j"]


def test_front_as_json(qsearch: Any, study: Path) -> None:
    value = json.loads(qsearch("front", study, "-f", "json").out)
    assert value["points"] == points(study)
    assert value["is_final"] is True
    assert value["float"]["accuracy"]["validation"] > 50


def test_front_as_parquet(qsearch: Any, study: Path, tmp_path: Path) -> None:
    ended = qsearch("front", study, "--format", "parquet")
    assert ended.code == 2
    assert "--out" in ended.err
    assert qsearch("front", study, "--format", "parquet", "--out", tmp_path / "front.parquet").code == 0
    table = pd.read_parquet(tmp_path / "front.parquet")
    assert table["point"].tolist() == [point["point"] for point in points(study)]


def test_parquet_without_pyarrow(qsearch: Any, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ended = qsearch("front", study, "-f", "parquet", "-o", tmp_path / "front.parquet")
    assert ended.code == 2
    assert "hint: pip install 'qsearch[export]'" in ended.err


@pytest.mark.parametrize("kind", ["table", "csv", "json"])
def test_front_into_a_file_is_what_is_printed(qsearch: Any, study: Path, tmp_path: Path, kind: str) -> None:
    printed = qsearch("front", study, "-f", kind).out
    ended = qsearch("front", study, "-f", kind, "-o", tmp_path / "out")
    assert (ended.code, ended.out) == (0, "")
    assert (tmp_path / "out").read_text(encoding="utf-8") == printed


def test_an_unknown_format(qsearch: Any, study: Path) -> None:
    ended = qsearch("front", study, "--format", "xml")
    assert ended.code == 2
    assert "parquet" in ended.err


def test_reading_the_front_needs_neither_torch_nor_ray(study: Path) -> None:
    code = (
        "import sys\n"
        "from qsearch.cli.app import app\n"
        f"app(['front', {str(study)!r}], standalone_mode=False)\n"
        f"app(['status', {str(study)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_early_gets_no_traceback(study: Path) -> None:
    command = f"{sys.executable} -m qsearch front {study} -f json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


# ---- export ---------------------------------------------------------------------------------------------------------


def test_export(qsearch: Any, study: Path, tmp_path: Path) -> None:
    ended = qsearch("export", study, "--out", tmp_path / "out")
    assert ended.code == 0
    listed = {Path(line) for line in ended.out.splitlines()}
    assert listed == {path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "export.json"}
    assert (tmp_path / "out" / "front.csv").read_bytes() == (study / "results" / "front.csv").read_bytes()


@pytest.mark.parametrize("wanted", ["knee", "number"])
def test_export_of_one_point(qsearch: Any, study: Path, tmp_path: Path, wanted: str) -> None:
    knee = next(point["point"] for point in points(study) if point["is_knee"])
    assert qsearch("export", study, "-o", tmp_path, "--point", "knee" if wanted == "knee" else knee).code == 0
    assert [path.name for path in (tmp_path / "configs").iterdir()] == [f"point-{knee:04d}.json"]


def test_export_of_a_point_that_is_not_there(qsearch: Any, study: Path, tmp_path: Path) -> None:
    ended = qsearch("export", study, "-o", tmp_path / "out", "--point", "999")
    assert ended.code == 2
    assert "there is no point '999' on the front" in ended.err
    assert not (tmp_path / "out").exists()


def test_export_without_matplotlib(qsearch: Any, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = qsearch("export", study, "-o", tmp_path / "out")
    assert ended.code == 0
    assert "qsearch[report]" in ended.err
    assert not (tmp_path / "out" / "front.png").exists()


def test_export_over_strange_files(qsearch: Any, study: Path, tmp_path: Path) -> None:
    (tmp_path / "front.csv").write_text("mine", encoding="utf-8")
    ended = qsearch("export", study, "-o", tmp_path)
    assert ended.code == 2
    assert "is there already" in ended.err
    assert (tmp_path / "front.csv").read_text(encoding="utf-8") == "mine"

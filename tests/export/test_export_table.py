from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from fronts import LAYERS, POINTS, make_front

from qsearch.errors import ExportError
from qsearch.export import MissingExtra, float_size_bytes, front_json, front_table, front_text, write_front
from qsearch.export import table as module

COLUMNS = [
    *("point", "is_knee", "fidelity", "validation_accuracy_percent", "test_accuracy_percent"),
    *("search_accuracy_percent", "mean_weight_bits", "mean_activation_bits", "size_bytes"),
    *("latency_s@edge", "latency_s@cloud", "energy_j@edge", "energy_j@cloud", "weight_bits", "activation_bits"),
]


def test_table_has_the_documented_columns() -> None:
    table = front_table(make_front())
    assert list(table.columns) == COLUMNS
    documented = re.findall(r"^``([^`]+)``", module.__doc__ or "", re.MULTILINE)
    assert [name.partition("@")[0] for name in documented] == list(
        dict.fromkeys(name.partition("@")[0] for name in COLUMNS)
    )


def test_table_values() -> None:
    table = front_table(make_front())
    assert table["point"].tolist() == [3, 10, 17, 24]
    assert table["is_knee"].tolist() == [False, True, False, False]
    assert table["validation_accuracy_percent"].tolist() == [point[2] for point in POINTS]
    assert table["weight_bits"].tolist() == ["8 8 8", "8 4 8", "8 3 8", "8 2 8"]
    assert table["latency_s@cloud"].tolist() == pytest.approx([16 * v for v in table["latency_s@edge"]])


def test_missing_test_accuracy_is_not_a_number() -> None:
    table = front_table(make_front([(*POINTS[0][:3], None)]))
    assert table["test_accuracy_percent"].isna().all()
    assert table["test_accuracy_percent"].dtype == "float64"


def test_an_empty_front_keeps_columns_and_types() -> None:
    table = front_table(make_front([]))
    assert list(table.columns) == COLUMNS
    assert len(table) == 0
    assert front_text(make_front([]), "csv").strip() == ",".join(COLUMNS)


def test_csv_reads_back_exactly() -> None:
    front = make_front()
    rows = list(csv.DictReader(io.StringIO(front_text(front, "csv"))))
    assert list(rows[0]) == COLUMNS
    for row, expected in zip(rows, front_table(front).to_dict("records"), strict=True):
        for name, value in expected.items():
            assert (float(row[name]) if isinstance(value, float) else row[name]) == (
                value if isinstance(value, float) else str(value)
            )


def test_parquet_reads_back_exactly(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    front = make_front()
    write_front(front, tmp_path / "a" / "front.parquet", "parquet")
    again = pd.read_parquet(tmp_path / "a" / "front.parquet")
    pd.testing.assert_frame_equal(again, front_table(front), check_exact=True)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="pyarrow") as error:
        write_front(make_front(), tmp_path / "front.parquet", "parquet")
    assert error.value.hint == "pip install 'qsearch[export]'"
    assert not list(tmp_path.iterdir())


def test_json() -> None:
    value = json.loads(front_text(make_front(), "json"))
    assert value == json.loads(json.dumps(front_json(make_front())))
    assert value["schema"] == "qsearch.front/1"
    assert value["layers"] == [layer.name for layer in LAYERS]
    assert value["points"][1]["is_knee"] is True
    assert value["points"][2]["metrics"]["edge"]["latency_s"] == pytest.approx(1e-6 * (64 + 12 + 64))
    assert value["devices"]["cloud"] == {"batch": 16, "validation": "unvalidated", "notes": "made up"}


def test_float_size_counts_weights_biases_and_the_rest() -> None:
    assert float_size_bytes(make_front()) == 4 * ((36 + 4) + (288 + 8) + (80 + 10) + 12)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "front.csv"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o640)
    write_front(make_front(), path, "csv")
    assert path.read_text(encoding="utf-8") == front_text(make_front(), "csv")
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["front.csv"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_front(make_front(), tmp_path / "link.csv", "csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text(encoding="utf-8").startswith("point,")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_places_that_cannot_be_written(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ExportError, match="cannot write") as error:
        write_front(make_front(), tmp_path / "file" / "front", kind)
    assert "--out" in error.value.hint
    with pytest.raises(ExportError, match="Is a directory"):
        write_front(make_front(), tmp_path, kind)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk() -> None:
    with pytest.raises(ExportError, match="No space left") as error:
        write_front(make_front(), Path("/dev/full"), "csv")
    assert "free some space" in error.value.hint

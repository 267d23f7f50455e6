from __future__ import annotations

import re
import struct
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fronts import POINTS, make_front

from qsearch.errors import ExportError
from qsearch.export import MissingExtra
from qsearch.report import figure as module
from qsearch.report import front_figure
from qsearch.run.results import Front

matplotlib_figure = pytest.importorskip("matplotlib.figure")

ONLY_GOOD = POINTS[:3]


def texts(front: Front, tmp_path: Path) -> list[str]:
    """All texts of the figure, as a reader of the SVG finds them."""
    path = tmp_path / "front.svg"
    front_figure(front, path)
    root = ET.parse(path).getroot()
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(scope="module")
def good_texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return texts(make_front(ONLY_GOOD), tmp_path_factory.mktemp("good"))


def size_of(path: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


@pytest.mark.parametrize("devices", [{}, {"a": 1, "b": 1, "c": 8}])
def test_a_png_is_at_least_1200_pixels_wide(tmp_path: Path, devices: dict[str, int]) -> None:
    front_figure(make_front(devices=devices), tmp_path / "front.png")
    width, height = size_of(tmp_path / "front.png")
    assert 1200 <= width <= 2400
    assert 500 <= height <= 2400


def test_every_device_and_the_size_have_a_panel_with_units(good_texts: list[str]) -> None:
    found = good_texts
    assert {"edge", "cloud (batch of 16)", "Model size"} <= set(found)
    assert {"Latency (µs)", "Latency (ms)", "Size (kB)", "Top-1 accuracy (%)"} <= set(found)
    assert "made: 3 Pareto-optimal candidates" in found


def test_legend_names_what_is_drawn(good_texts: list[str], tmp_path: Path) -> None:
    found = set(good_texts)
    assert {"validation", "test", "knee", "float32, validation", "float32, test"} <= found
    untested = make_front([(*point[:3], None) for point in ONLY_GOOD], is_final=False)
    found = set(texts(untested, tmp_path))
    assert {"validation", "float32, validation"} <= found
    assert not {"test", "float32, test"} & found
    assert "made: 3 Pareto-optimal candidates so far" in found


def test_the_knee_is_labelled_in_every_panel(good_texts: list[str], tmp_path: Path) -> None:
    found = good_texts
    assert found.count("knee: point 10") == 3
    assert {"97.0 %, 160 µs", "97.0 %, 2.56 ms", "97.0 %, 6.00 kB"} <= set(found)
    assert not [text for text in texts(make_front(ONLY_GOOD, knee=None), tmp_path) if "knee" in text]


def test_hopeless_candidates_are_left_out_and_counted(tmp_path: Path) -> None:
    hopeless = [*POINTS, ((2, 2, 2), (4, 4, 4), 12.0, 11.0)]
    assert "made: 5 Pareto-optimal candidates (1 below 68 % not shown)" in texts(make_front(hopeless), tmp_path)


def test_a_hopeless_knee_is_shown_all_the_same(tmp_path: Path) -> None:
    hopeless = [*POINTS, ((2, 2, 2), (4, 4, 4), 12.0, 11.0)]
    found = texts(make_front(hopeless, knee=4), tmp_path)
    assert "made: 5 Pareto-optimal candidates" in found
    assert found.count("knee: point 31") == 3


def test_markers_stand_where_the_front_says() -> None:
    front = make_front(ONLY_GOOD)
    drawn = module._draw(front, matplotlib_figure.Figure)
    edge = drawn.axes[0]
    places = {
        tuple(round(float(v), 6) for v in xy)
        for collection in edge.collections
        if collection.get_label() in ("validation", "test", module._PALE)
        for xy in collection.get_offsets()
    }
    expected = {
        (round(point.costs["latency@edge"] * 1e6, 6), value)
        for point in front.points
        for value in point.accuracy.values()
    }
    assert places == expected
    low, high = edge.get_ylim()
    assert low < 92.0
    assert high > 98.5


def test_the_label_covers_no_marker() -> None:
    crowd = [((8, bits, 8), (8, 8, 8), 97.0 - 0.2 * i, 97.1 - 0.2 * i) for i, bits in enumerate((8, 7, 6, 5, 4, 3, 2))]
    for knee in (0, 3, 6):
        drawn = module._draw(make_front(crowd, knee=knee), matplotlib_figure.Figure)
        for ax in drawn.axes:
            (label,) = ax.texts
            label.get_window_extent()
            box = matplotlib_text_box(label)
            panel = ax.get_window_extent()
            assert panel.x0 <= box.x0 < box.x1 <= panel.x1
            assert panel.y0 <= box.y0 < box.y1 <= panel.y1
            for collection in ax.collections:
                if collection.get_label() in ("validation", "test", module._PALE):
                    for x, y in ax.transData.transform(collection.get_offsets()):
                        assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1)


def matplotlib_text_box(label: object) -> object:
    from matplotlib.text import Text

    return Text.get_window_extent(label)  # type: ignore[arg-type]


def test_a_cost_that_hardly_changes_is_not_blown_up() -> None:
    flat = [((8, 8, 8), (8, 8, 8), 98.0, 97.0), ((8, 8, 8), (8, 8, 8), 97.0, 96.0)]
    drawn = module._draw(make_front(flat, devices={"edge": 1}), matplotlib_figure.Figure)
    low, high = drawn.axes[0].get_xlim()
    assert high - low >= 0.1 * 192.0


@pytest.mark.parametrize("points", [POINTS[:1], POINTS])
def test_small_fronts_draw_without_a_warning(tmp_path: Path, points: tuple[object, ...]) -> None:
    front_figure(make_front(points, knee=0), tmp_path / "front.png")  # type: ignore[arg-type]
    assert size_of(tmp_path / "front.png")[0] >= 1200


def test_the_same_front_gives_the_same_svg(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        front_figure(make_front(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_global_settings_of_matplotlib_are_left_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    front_figure(make_front(), tmp_path / "front.png")
    assert dict(mpl.rcParams) == before


def test_an_empty_front(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="empty"):
        front_figure(make_front([]), tmp_path / "front.png")


@pytest.mark.parametrize("name", ["front.bmp", "front"])
def test_unknown_formats(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=re.escape(str(tmp_path / name))):
        front_figure(make_front(), tmp_path / name)


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match="matplotlib") as error:
        front_figure(make_front(), tmp_path / "front.png")
    assert error.value.hint == "pip install 'qsearch[report]'"

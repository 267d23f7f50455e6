from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qsearch.errors import SpecError
from qsearch.spec import load_spec, parse_spec

HEAD = "study: {name: s}\nmodel: qsearch:net\ndata: qsearch:digits\n"  # lines 1 to 3


def refusal(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "s.yaml")
    return caught.value


def test_a_single_error_is_one_line_and_a_hint() -> None:
    error = refusal(HEAD + "space:\n  wieghts: [2]\n")
    assert error.message == "s.yaml:5: space.wieghts: unknown key"
    assert error.hint == "did you mean 'weights'?"


def test_all_errors_are_shown_in_the_order_of_the_file() -> None:
    error = refusal(
        "study: {name: 123, seed: true}\n"
        "modle: x\n"
        "data: qsearch:digits\n"
        "space:\n"
        "  weights:\n"
        "    - 2\n"
        "    - 9\n"
        "  layers:\n"
        "    - match: b*\n"
        "      activatoins: [8]\n"
        "devices: [a]\n"
        "objectives:\n"
        "  - error\n"
        "  - latency@b\n"
    )
    assert error.message.splitlines() == [
        "s.yaml has 7 errors:",
        "  s.yaml:1: study.name: should be text, not 123 (put it in quotes)",
        "  s.yaml:1: study.seed: should be a whole number, not true",
        "  s.yaml:1: model: is missing (this key has no default)",
        "  s.yaml:2: modle: unknown key (did you mean 'model'?)",
        "  s.yaml:7: space.weights[1]: should be at most 8, not 9",
        "  s.yaml:10: space.layers[0].activatoins: unknown key (did you mean 'activations'?)",
        "  s.yaml:14: objectives[1]: the study has no device 'b' (known: a)",
    ]


def test_more_than_ten_errors_are_counted() -> None:
    error = refusal(HEAD + "".join(f"zz{i}: 1\n" for i in range(13)))
    lines = error.message.splitlines()
    assert lines[0] == "s.yaml has 13 errors:"
    assert len(lines) == 12
    assert lines[1].startswith("  s.yaml:4: zz0: unknown key (known: budget, constraints, ")
    assert lines[-1] == "  and 3 more"


def test_broken_devices_do_not_cause_errors_elsewhere() -> None:
    assert refusal(HEAD + "devices: [3]\n").message.startswith("s.yaml:4: devices[0]: should be a mapping")
    error = refusal(HEAD + "devices: [{preset: a, name: 'a b'}]\nobjectives: [latency@x]\n")
    assert error.message.startswith("s.yaml:4: devices[0].name: ")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "s.yaml: the file is empty", "study: {name: ...}"),
        ("# nothing\n---\n", "s.yaml: the file is empty", "model"),
        ("\n- a\n", "s.yaml:2: this is a list, not a mapping", "data"),
        ("hello", "s.yaml:1: this is the text 'hello', not a mapping", "data"),
        ("a: 1\n\tb: 2\n", "s.yaml:2: ", "spaces"),
        ("a: [1, 2\nb: 3\n", "s.yaml:2: ", "brackets"),
        ("a: 'b\n", "s.yaml:", "quotes"),
        ("a: b: c\n", "s.yaml:1: mapping values are not allowed here", "colons"),
        ("a: *nowhere\n", "s.yaml:1: found undefined alias", ""),
        ("a: 1\n---\nb: 2\n", "s.yaml:2: but found another document", "one study per file"),
        ("a: \x01\n", "s.yaml: ", "remove that character"),
        ("[" * 3000, "s.yaml: nested too deeply", "few levels"),
        (HEAD + "budget: {evaluations: 3, evaluations: 4}\n", "s.yaml:4: budget.evaluations: is given twice", "remove"),
        (HEAD + "model: qsearch:x\n", "s.yaml:4: model: is given twice, first on line 2", "remove one"),
        (HEAD + "budget: {3: 4}\n", "s.yaml:4: budget.3: the key '3' is not text", "quotes"),
        (HEAD + "budget: {[3]: 4}\n", "the key a list or mapping is not text", "quotes"),
        (HEAD + "evaluation: {timeout_s: .nan}\n", "s.yaml:4: evaluation.timeout_s: .nan is not", "finite"),
        (HEAD + "searcher: {name: x, a: {b: [-.inf]}}\n", "s.yaml:4: searcher.a.b[0]: -.inf is not", "finite"),
        (HEAD + "searcher: {name: x, a: 2024-01-31}\n", "searcher.a: YAML reads '2024-01-31' as a date", "quotes"),
        (HEAD + "searcher: {name: x, a: !!python/name:os.system y}\n", "searcher.a: 'y' cannot be read", "quotes"),
        (HEAD + "searcher: {name: x, a: !mine {}}\n", "searcher.a: the tag !mine is not used", "remove"),
        (HEAD + "searcher: {name: x, a: !!int abc}\n", "searcher.a: 'abc' cannot be read as int", "quotes"),
        (HEAD + "searcher: {name: x, a: &a [*a]}\n", "s.yaml:4: searcher.a[0]: refers to itself", "alias"),
        (HEAD + "budget: {<<: 3}\n", "s.yaml:4: budget: '<<' is not followed by a mapping", "*anchor"),
    ],
)
def test_what_is_not_a_study_is_explained(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert message in error.message
    assert hint in error.hint


def test_aliases_that_explode_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert "too large" in refusal("\n".join(lines)).message


def test_anchors_and_merges_work() -> None:
    spec = parse_spec(
        HEAD + "space:\n  pin: {first: &pin {weights: 4, activations: 6}, last: {<<: *pin, weights: 5}}\n", "s.yaml"
    )
    assert spec.space.pin.first is not None
    assert spec.space.pin.last is not None
    assert (spec.space.pin.first.weights, spec.space.pin.first.activations) == (4, 6)
    assert (spec.space.pin.last.weights, spec.space.pin.last.activations) == (5, 6)


def test_yaml_words_stay_words() -> None:
    assert parse_spec(HEAD + "searcher: {name: on, no: 'yes'}\n").searcher.options == {"no": "yes"}


def test_a_missing_file_hints_at_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(HEAD)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "digit.yaml")
    assert caught.value.message == f"{tmp_path / 'digit.yaml'}: no such file"
    assert caught.value.hint == "did you mean 'digits.yaml'?"
    with pytest.raises(SpecError, match="there is no YAML file"):
        load_spec(tmp_path / "nowhere" / "digit.yaml")


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="directory"):
        load_spec(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes("study: {name: s}\n# für\n".encode("latin-1"))
    with pytest.raises(SpecError, match=r"latin.yaml:2: the file is not UTF-8"):
        load_spec(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(HEAD)
    path.chmod(stat.S_IWUSR)
    with pytest.raises(SpecError, match="Permission"):
        load_spec(path)


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(HEAD, encoding="utf-8-sig")
    assert load_spec(path).study.name == "s"


def test_files_beside_the_study_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "a.pt").touch()
    (tmp_path / "mine.yaml").write_text("class: bismo\nname: chip\n")
    (tmp_path / "other.yaml").write_text("class: bismo\n")
    (tmp_path / "broken.yaml").write_text("class: [\n")
    (tmp_path / "bismo_edge").touch()  # not a device file
    path = tmp_path / "s.yaml"
    path.write_text(
        "study: {name: s}\nmodel: {source: 'a:b', weights: nets/a.pt}\ndata: qsearch:digits\n"
        "devices: [mine.yaml, ./other.yaml, broken.yaml, absent.yaml, bismo_edge]\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    spec = load_spec(Path("../s.yaml"))
    assert spec.model.weights == str(tmp_path / "nets" / "a.pt")
    assert [d.name for d in spec.devices] == ["chip", "other", "broken", "absent", "bismo_edge"]
    assert [d.entry for d in spec.devices] == [
        str(tmp_path / "mine.yaml"),
        str(tmp_path / "other.yaml"),
        str(tmp_path / "broken.yaml"),
        "absent.yaml",
        "bismo_edge",
    ]
    assert load_spec(str(path)).digest == spec.digest


def test_what_is_no_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("study: {name: s}\nmodel: {source: 'torchvision:resnet18', weights: DEFAULT}\ndata: qsearch:d\n")
    assert load_spec(path).model.weights == "DEFAULT"

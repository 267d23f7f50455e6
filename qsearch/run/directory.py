"""The directory of a study: what is in it, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from qsearch.cache import write_atomically
from qsearch.errors import StoreError, StudyMismatchError
from qsearch.spec import StudySpec, describe, diff, load_spec, parse_spec
from qsearch.store import Store

_SPEC = "study.yaml"
_DATABASE = "study.db"


@dataclass(frozen=True, slots=True)
class StudyDirectory:
    """Paths of one study.

    ``study.yaml`` is the study file as it was launched, ``study.db`` the log, ``study.lock`` the driver's lock,
    ``results/`` what is written for people at the end.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def spec_file(self) -> Path:
        """The study file."""
        return self.path / _SPEC

    @property
    def lock_file(self) -> Path:
        """The driver's lock."""
        return self.path / "study.lock"

    @property
    def scratch(self) -> Path:
        """What an executor needs while it runs."""
        return self.path / "scratch"

    @property
    def results(self) -> Path:
        """Tables and figures of the front."""
        return self.path / "results"

    def store_url(self, spec: StudySpec) -> str | Path:
        """Where the log is: the study file's ``store.url``, or a database in the directory."""
        return spec.store.url or self.path / _DATABASE

    def prepare(self, spec: StudySpec, text: str) -> None:
        """Makes the directory for a launch, or checks that it holds this very study.

        Args:
            spec: The study to launch.
            text: Its file.

        Raises:
            StudyMismatchError: The directory belongs to another study or holds something else.
            StoreError: It cannot be made.
        """
        if self.spec_file.is_file() and ((self.path / _DATABASE).exists() or spec.store.url):
            self._check_same(spec)
            return
        if self.spec_file.is_file():  # launched before, but it never came to a log: nothing to lose
            write_atomically(self.spec_file, lambda temporary: self._write_spec(temporary, spec, text))
            return
        try:
            strangers = sorted(entry.name for entry in self.path.iterdir()) if self.path.exists() else []
        except OSError as error:
            raise StoreError(f"{self.path} is not a directory", "choose another --dir") from error
        if any(name == _DATABASE for name in strangers) or (strangers and strangers != ["study.lock"]):
            raise StudyMismatchError(
                f"{self.path} is not empty and holds no study file ({', '.join(strangers[:4])})",
                "choose another --dir, or empty it",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {self.path}: {error.strerror}", "choose another --dir") from error
        write_atomically(self.spec_file, lambda temporary: self._write_spec(temporary, spec, text))

    def _write_spec(self, temporary: Path, spec: StudySpec, text: str) -> None:
        """Keeps the file verbatim where it still means the same; else with its paths made absolute."""
        if parse_spec(text, str(self.spec_file), base=self.path).resolved() == spec.resolved():
            temporary.write_text(text, encoding="utf-8")
            return
        with temporary.open("w", encoding="utf-8") as file:
            file.write("# As launched, with all defaults and absolute paths.\n")
            YAML().dump(spec.resolved(), file)

    def _check_same(self, spec: StudySpec) -> None:
        there = load_spec(self.spec_file)
        differences = diff(there.resolved(), spec.resolved())
        if there.study.name != spec.study.name or differences:
            raise StudyMismatchError(
                f"{self.path} belongs to study {there.study.name!r}, which differs from the one to launch:\n"
                f"{describe(differences)}",
                "choose another --dir, or continue the study that is there with `qsearch resume`",
            )

    def load(self) -> StudySpec:
        """Reads the study file.

        Raises:
            StoreError: The directory holds no study.
            SpecError: The file is wrong.
        """
        if not self.spec_file.is_file():
            raise StoreError(
                f"{self.path} holds no study (there is no {_SPEC})",
                "give the directory that `qsearch launch` printed; a launch that was killed before it made the "
                "directory is simply launched again",
            )
        return load_spec(self.spec_file)

    def open_store(self, spec: StudySpec, *, read_only: bool = False) -> Store:
        """Opens the log.

        Raises:
            StoreError: It cannot be opened.
        """
        return Store.open(self.store_url(spec), read_only=read_only)

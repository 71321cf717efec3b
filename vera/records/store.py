"""A folder of records: one file a run, written whole or not at all, read with validation.

results_dir/runs/<model>--<task>--<method>--<cell8>--s<seed>.json    finished runs
results_dir/outputs/<the same>.<suffix>                              texts that a run's scores were computed from
results_dir/failed/...                                               runs that ended with an error
results_dir/claims/...                                               runs that a worker is computing (vera.records.workers)
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from vera.errors import RecordError
from vera.io.files import os_error_as, remove_temporaries, write_atomic
from vera.records.record import Failure, Record, is_output, output_path, parse, text_hash

_NAME = re.compile(r".+--.+--.+--([0-9a-f]{8})--s\d+")


class Store:
    """One results folder."""

    def __init__(self, results_dir: str | Path):
        self.root = Path(results_dir)
        self.runs = self.root / "runs"
        self.failed = self.root / "failed"

    def path(self, name: str) -> Path:
        return self.runs / f"{name}.json"

    def find(self, name: str) -> Record | None:
        """The record of a run, or None when it has not finished. Raises RecordError for a file that is not a valid record."""
        path = self.path(name)
        if path.is_symlink() and not path.exists():
            raise RecordError(f"{path} is a link to a file that is not here, so whether the run has finished is not known")
        return self.read(path) if path.exists() else None

    def write(self, record: Record, outputs: dict[str, str] | None = None) -> Path:
        """Write a record after the outputs that it names (path to text), and forget the run's earlier failure.

        Raises RecordError when the folder cannot be written, or has this record: none is ever overwritten.
        """
        parse(record.to_json(), record.name)
        for name, text in (outputs or {}).items():
            if not is_output(record.name, name):
                raise RecordError(
                    f"{record.name} may not write {name!r}: its outputs are called outputs/{record.name}.<suffix>"
                )
            self._write(self.root / name, text)
        path = self._write(self.path(record.name), record.to_json(), replace=False)
        (self.failed / f"{record.name}.json").unlink(missing_ok=True)
        return path

    def read_output(self, record: Record, suffix: str) -> str:
        """The text of one of a record's outputs. Raises RecordError when it is missing or not what the record was made from."""
        name = output_path(record.name, suffix)
        path = self.root / name
        try:
            text = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path} cannot be read: {error}") from None
        if text_hash(text) != record.outputs.get(name):
            raise RecordError(f"{path} is not the file that the record {record.name} was made with: its SHA-256 differs")
        return text

    def write_failure(self, failure: Failure) -> Path:
        return self._write(self.failed / f"{failure.name}.json", failure.to_json())

    def check_writable(self, name: str) -> None:
        """Raises RecordError before any work is done when a run's record could not be written at its end."""
        with os_error_as(RecordError, f"results_dir={self.root} is not writable"):
            self.runs.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.runs, prefix=f".{name}.")
            os.close(handle)
            Path(temporary).unlink(missing_ok=True)  # a worker that took the run over may have tidied up

    def remove_temporaries(self, name: str) -> None:
        """Remove what killed workers have left half-written of one run. For the worker that holds its claim."""
        for folder in (self.runs, self.failed, self.root / "outputs"):
            remove_temporaries(folder, name)

    def names(self) -> list[str]:
        """The names of all finished runs, in no order."""
        return stems(self.runs)

    def records(self) -> list[Record]:
        """Every record, sorted by file name. Raises RecordError for an invalid one."""
        return [self.read(self.path(name)) for name in sorted(self.names())]

    def by_cell(self) -> Cells:
        """Records by cell_id, each list sorted by seed. Raises RecordError for a file whose name is not a run's."""
        return Cells(self)

    @staticmethod
    def read(path: Path) -> Record:
        """The record in one file, wherever it lies. Raises RecordError where it is none or has not its run's name."""
        with os_error_as(RecordError, f"{path} cannot be read"):
            text = path.read_bytes()
        record = parse(text, str(path))
        if path.stem != record.name:
            raise RecordError(f"{path}: the file should be called {record.name}.json")
        return record

    @staticmethod
    def _write(path: Path, text: str, replace: bool = True) -> Path:
        try:
            return write_atomic(path, text, replace)
        except FileExistsError:
            raise RecordError(f"{path} is there already; a record is never overwritten") from None
        except OSError as error:
            raise RecordError(f"{path} cannot be written: {error.strerror or error}") from None


def stems(folder: Path) -> list[str]:
    """The names of the JSON files in a folder, without their ending; [] when there is no folder. Hidden files, such as those
    that macOS writes beside others on some disks, are none."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name[:-5] for entry in entries if entry.name.endswith(".json") and not entry.name.startswith(".")]


class Cells(Mapping[str, list[Record]]):
    """The records of a folder by cell_id, by seed; a cell is read, and its records validated, when it is asked for.

    Files are found by name, so that a table of a few hundred runs costs the same beside a hundred thousand others.
    """

    def __init__(self, store: Store):
        self._store = store
        self._files: dict[str, list[str]] = defaultdict(list)
        self._read: dict[str, dict[str, list[Record]]] = {}
        for name in store.names():
            found = _NAME.fullmatch(name)
            if found is None:
                raise RecordError(f"{store.path(name)}: not the name of a run's record")
            self._files[found[1]].append(name)

    def __getitem__(self, cell_id: str) -> list[Record]:
        """Raises KeyError for a cell without records and RecordError for an invalid one among them."""
        return self._cells(cell_id[:8])[cell_id]

    def __iter__(self) -> Iterator[str]:
        for part in sorted(self._files):
            yield from self._cells(part)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _cells(self, part: str) -> dict[str, list[Record]]:
        """The cells whose id begins with these eight digits."""
        if part not in self._read:
            cells: dict[str, list[Record]] = defaultdict(list)
            for name in self._files.get(part, []):
                record = self._store.read(self._store.path(name))
                cells[record.run.cell_id].append(record)
            self._read[part] = {cell: sorted(records, key=lambda record: record.run.seed) for cell, records in cells.items()}
        return self._read[part]

"""A folder of records: one file a run, written whole or not at all, read with validation.

results_dir/runs/<model>--<task>--<method>--<cell8>--s<seed>.json    finished runs
results_dir/outputs/<the same>.<suffix>                              texts that a run's scores were computed from
results_dir/failed/...                                               runs that ended with an error
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from vera.errors import RecordError
from vera.files import write_atomic
from vera.record import Failure, Record, is_output, output_path, parse, text_hash


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
        return self._read(path) if path.exists() else None

    def write(self, record: Record, outputs: dict[str, str] | None = None) -> Path:
        """Write a record after the outputs that it names (path to text), and forget the run's earlier failure.

        Raises RecordError when the folder cannot be written.
        """
        parse(record.to_json(), record.name)
        for path, text in (outputs or {}).items():
            if not is_output(record.name, path):
                raise RecordError(
                    f"{record.name} may not write {path!r}: its outputs are called outputs/{record.name}.<suffix>"
                )
            self._write(self.root / path, text)
        path = self._write(self.path(record.name), record.to_json())
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

    def check_writable(self) -> None:
        """Raises RecordError before any work is done when a record could not be written at its end."""
        try:
            write_atomic(self.runs / ".writable", b"")
            (self.runs / ".writable").unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"results_dir={self.root} is not writable: {error.strerror or error}") from None

    def records(self) -> list[Record]:
        """Every record, sorted by file name. Raises RecordError for an invalid one or two of the same run."""
        found: dict[tuple[str, int], Path] = {}
        records = []
        for path in sorted(self.runs.glob("*.json")):
            record = self._read(path)
            key = (record.run.cell_id, record.run.seed)
            if key in found:
                raise RecordError(f"{path} and {found[key]} are records of the same run; keep one")
            found[key] = path
            records.append(record)
        return records

    def by_cell(self) -> dict[str, list[Record]]:
        """Records by cell_id, each list sorted by seed."""
        cells: dict[str, list[Record]] = defaultdict(list)
        for record in self.records():
            cells[record.run.cell_id].append(record)
        return {cell: sorted(records, key=lambda record: record.run.seed) for cell, records in cells.items()}

    @staticmethod
    def _read(path: Path) -> Record:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error.strerror or error}") from None
        record = parse(text, str(path))
        if path.stem != record.name:
            raise RecordError(f"{path}: the file should be called {record.name}.json")
        return record

    @staticmethod
    def _write(path: Path, text: str) -> Path:
        try:
            return write_atomic(path, text)
        except OSError as error:
            raise RecordError(f"{path} cannot be written: {error.strerror or error}") from None

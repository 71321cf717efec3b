"""What local data and weights a run reads: whether a finished run's record was made from what lies there now.

A path is no part of a run's identity, so the fingerprints in the record decide. To take them again means to read everything;
cache_dir/sources remembers them by names, sizes and times of the files. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vera.config import GROUPS, RunConfig, group_marks, hashed
from vera.errors import RecordError
from vera.io.files import files_below, os_error_as, write_atomic
from vera.project import code_of
from vera.records.record import LOCAL, Record

KINDS = {"model": ("weights", "model_fingerprint", "model_source"), "task": ("rows", "data_fingerprint", "data_source")}
# Notes of a record. CONFIGURED: fingerprints of what decides a backbone's numbers beside its weights, and what they are of.
CONFIGURED = {"configuration": "configuration (config.json)", "preprocessing": "tokenizer or image processor"}
CLASSES = "classes"  # a record's note: names of its classes in their order, where the data name them and the task does not
DRAWN = "few_shot_images"  # a record's note: fingerprint of the images that its seed drew, where the task's leaves them out
PRETRAINED = "pretrained_on"  # and of what a backbone was pretrained on here, whose weights may differ by processor


@dataclass(frozen=True)
class Local:
    """What one group of a run reads from local paths. given: the paths by key; stamp: of the files, as they are now."""

    group: str
    given: dict[str, str]
    stamp: str

    @property
    def named(self) -> str:
        return " ".join(f"{self.group}.{key}={path}" for key, path in self.given.items())


def local(run: RunConfig) -> dict[str, Local]:
    """The groups of a run that read local paths. A tiny model and synthetic rows read none. Raises RecordError."""
    found = {}
    for group in KINDS:
        settings = getattr(run, group)
        if settings.get("size") == "tiny" or settings.get("synthetic"):
            continue
        sources = [key for key, mark in group_marks(settings, group).items() if mark == "source"]
        given = {key: settings[key] for key in sources if settings.get(key) is not None}
        if given:
            found[group] = Local(group, given, " ".join(_stamped(path) for path in given.values()))
    return found


def stamp(path: str) -> str:
    """Changes when a file below a path may have changed: SHA-256 over names, sizes and times. Raises RecordError."""
    root = Path(path)
    digest = hashlib.sha256()
    with os_error_as(RecordError, f"{path} cannot be read"):
        for file in [root] if root.is_file() else sorted(filter(Path.is_file, files_below(root))):
            about = file.stat()
            name = file.relative_to(root.parent if root.is_file() else root)
            digest.update(
                f"{name}\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ctime_ns}\n".encode(errors="surrogateescape")
            )
    return digest.hexdigest()


_stamped = lru_cache(maxsize=64)(stamp)  # looked at once a process, as rows are read: a sweep asks for each of its runs


def prints(group: str, fingerprint: str, notes: dict[str, Any]) -> dict[str, str]:
    """The fingerprints, by name, that tell what a group reads now from what a record was made from."""
    if group == "model" and PRETRAINED in notes:
        return {PRETRAINED: notes[PRETRAINED]}
    return {KINDS[group][0]: fingerprint, **noted(notes)}


def noted(notes: Mapping[str, Any]) -> dict[str, str]:
    """What the notes of a backbone, a task's rows or a record hold beside the fingerprints that every record has."""
    return configured(notes) | ({DRAWN: str(notes[DRAWN])} if DRAWN in notes else {})


def configured(notes: Mapping[str, Any]) -> dict[str, str]:
    """The CONFIGURED of a record's notes or a backbone's: of one that was made here, or is older than they are, none."""
    return {note: str(notes[note]) for note in CONFIGURED if note in notes}


def own_code(run: RunConfig) -> dict[str, str]:
    """The hash of the code of each group whose class is a project's."""
    found = {group: code_of(str(getattr(run, group).get("_target_"))) for group in GROUPS[:3]}
    return {group: mark for group, mark in found.items() if mark is not None}


def other_code(run: RunConfig, record: Record) -> list[str]:
    """The groups whose class a project has changed since the record was made; of older records none."""
    made = record.provenance.own_code
    now = own_code(run) if made else {}
    return [group for group in made if group in now and made[group] != now[group]]


def code_said(record: Record, groups: Collection[str]) -> str | None:
    """The hashes of a project's code of these groups, of every start; None where a record has none."""
    made = record.provenance
    starts = [made.own_code, *(start["own_code"] for start in made.notes.get("resumed", []) if "own_code" in start)]
    codes = ({group: mark for group, mark in code.items() if group in groups} for code in starts)
    said = dict.fromkeys(" ".join(f"{group} {mark[:12]}" for group, mark in code.items()) for code in codes if code)
    return " and ".join(said) or None


def made_of(record: Record) -> dict[str, str | None]:
    """What the seeds of a cell should have in common: the weights and rows that they were made from, a project's code and the
    precision. What an older record does not note is None."""
    made = record.provenance
    return {
        "code": code_said(record, GROUPS[:3]),
        "backbone": made.model_fingerprint,
        **{note: made.notes.get(note) for note in CONFIGURED},
        # A task's, not of what a seed draws from it; and whether pairs became one text.
        "data": made.data_fingerprint + ", pairs joined" * ("pairs" in made.notes),
        "precision": record.cost.precision,
    }


def recall(run: RunConfig, source: Local) -> dict[str, str] | None:
    """The `prints` of these files, where a run has taken them before."""
    for seed in (run.seed, None):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return dict(json.loads(_memory(run, source, seed).read_bytes())["prints"])
    return None


def remember(run: RunConfig, source: Local, found: dict[str, str]) -> None:
    """Keep the `prints` of files that have been read, and were the same before; for this seed alone where it draws from them.
    A full disk costs time, nothing else."""
    now = " ".join(stamp(path) for path in source.given.values())
    if now == source.stamp:
        with suppress(OSError):
            write_atomic(_memory(run, source, run.seed if DRAWN in found else None), json.dumps({"prints": found}))


def _memory(run: RunConfig, source: Local, seed: int | None) -> Path:
    settings = hashed(source.group, getattr(run, source.group), run.follows_seed, run.unhashed)
    key = json.dumps([settings, sorted(source.given), source.stamp, seed], sort_keys=True)
    return Path(run.cache_dir) / "sources" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def unknown(run: RunConfig, record: Record) -> list[Local]:
    """The sources whose fingerprints have to be taken before the record can be compared. Raises RecordError when another one
    is known not to be the record's, and for the record of another cell: a name has eight digits of its id."""
    if record.run.cell_id != run.cell_id:
        raise RecordError(
            f"a record of this name is there, of another cell: {record.run.cell_id[:16]}, and this one is {run.cell_id[:16]}; "
            "give another results_dir= for this one"
        )
    missing = []
    for source in local(run).values():
        found = recall(run, source)
        if found is None:
            missing.append(source)
        else:
            compare(record, source.group, found, source.named)
    return missing


def compare(record: Record, group: str, found: dict[str, str], named: str) -> None:
    """Raises RecordError, with both sources, when a record was made from something else than these `prints` are of. What an
    older record does not note is not compared."""
    what, key, source = KINDS[group]
    recorded = {**record.provenance.notes, what: getattr(record.provenance, key)}
    for name, fingerprint in found.items():
        if fingerprint != recorded.get(name, fingerprint):
            where = getattr(record.provenance, source)
            other = f"another {CONFIGURED[name]}" if name in CONFIGURED else f"other {what}"
            raise RecordError(
                f"its record was made from {other}: {where}, fingerprint {recorded[name]}, and {named} has {fingerprint}; "
                f"give the {what} that it was made from, or another results_dir= for these"
            )


def not_given(run: RunConfig, record: Record) -> list[str]:
    """Keys of local paths that the record was made with and that are not given now, so that nothing is compared."""
    found = []
    for group in KINDS:
        config: dict[str, Any] = record.run.config[group]
        for key, mark in group_marks(getattr(run, group), group).items():
            if mark == "source" and config.get(key) == LOCAL and getattr(run, group).get(key) is None:
                found.append(f"{group}.{key}")
    return found

"""The weights that a run has kept in work_dir/<run>, best and last, and whether they are still its own: runs of two
results_dirs may share a work_dir and a name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vera.errors import ModelError
from vera.records.record import Record
from vera.records.sources import CONFIGURED, configured

Checkpoint = Literal["best", "last"]
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


def weights_hash(folder: Path) -> str:
    """SHA-256, in hex, of what the tensor files in a folder hold. Raises ModelError when there are none.

    The same tensors and metadata give the same hash: safetensors writes its header's keys in any order.
    """
    total = hashlib.sha256()
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
        for path in files:
            with path.open("rb") as file:
                try:
                    header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), LONGEST_HEADER)))
                    total.update(json.dumps(header, sort_keys=True).encode())
                except ValueError:  # no tensor file: its bytes as they are
                    file.seek(0)
                while block := file.read(1 << 20):
                    total.update(block)
    except FileNotFoundError:
        files = []
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror or error}") from None
    if not files:
        raise ModelError(f"{folder} holds no trained weights; was it trained with train.save=true, and is this its work_dir?")
    return total.hexdigest()


def kept(record: Record, work_dir: str | Path, checkpoint: Checkpoint) -> tuple[Path, str]:
    """The folder of a finished run's "best" or "last" weights, and their hash.

    Raises ModelError when there are none, or when they are not those that the record names: in the folder of a run that kept
    none, an earlier run's may lie. (Records from before they named any are taken at their word.)
    """
    folder = Path(work_dir) / record.name / checkpoint
    own = record.weights.get(checkpoint)
    if own is None and not _older(record):
        why = f"it has collapsed ({record.collapsed})" if record.collapsed else "train.save=false"
        if not record.collapsed and record.run.config["train"].get("save"):
            defined = record.scores.best.metrics.get(record.scores.primary) is not None
            why = "an earlier start had train.save=false" if defined else f"{record.scores.primary} is undefined in every epoch"
        raise ModelError(
            f"{record.name} kept no weights of its {checkpoint} epoch: {why}, so those in {folder}, if any, are not its own; "
            "train it again with train.save=true and another results_dir="
        )
    found = weights_hash(folder)
    if own is not None and found != own:
        raise ModelError(
            f"{folder} holds the weights of another run of this name (SHA-256 {found[:8]}; the record of {record.name} names "
            f"{own[:8]}); give the work_dir where this one's are, or train it again with a work_dir of its own"
        )
    return folder, found


def check_backbone(record: Record, fingerprint: str, notes: Mapping[str, Any]) -> None:
    """Raises ModelError unless a backbone with this fingerprint and these notes is the one that a run was trained on. What an
    older record does not note is not compared."""
    made, model = record.provenance, record.run.model
    if fingerprint != made.model_fingerprint:
        raise ModelError(f"{record.name} was trained on other weights of {model} than the ones at hand")
    recorded = configured(made.notes)
    for note, found in configured(notes).items():
        if found != recorded.get(note, found):
            raise ModelError(
                f"{record.name} was trained with another {CONFIGURED[note]} of {model} than the one at hand (fingerprint "
                f"{recorded[note]}, here {found}); give the folder or commit that it was trained with"
            )


def _older(record: Record) -> bool:
    """Whether a record may be from before records named the weights that their runs kept."""
    return not record.weights and record.collapsed is None and record.run.config["train"].get("save") is not False

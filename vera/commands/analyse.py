"""Measure saved adapters for Figures 3 and 5: size of d by layer, similarity of weight differences.

python scripts/analyse.py                     whatever there are adapters for, from work/results to results/analysis
python scripts/analyse.py figure3 figure5     these, or an error that names the runs that are missing

A run that was measured before and has not been trained again since keeps its numbers where its adapter is gone.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.artefacts.figure3_magnitudes import MEASURED as FIGURE3
from experiments.artefacts.figure5_similarity import MEASURED as FIGURE5
from experiments.engine import analysis, arguments
from experiments.engine.aggregate import unlike
from vera.commands import parser_of
from vera.config import RunConfig, compose
from vera.config.paths import work_of
from vera.errors import AdapterError, VeraError
from vera.io.files import write_atomic
from vera.project import called
from vera.records.kept import kept
from vera.records.record import Record
from vera.records.store import Store
from vera.trained import adapters


def main() -> int:
    names = [*FIGURE3, *FIGURE5]
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(names)}")
    parser.add_argument("--results", default="results", help="folder with the records of the runs (default: results)")
    parser.add_argument("--work", default=None, help="folder with what the runs have saved (default: work/<results>)")
    parser.add_argument("--out", default=None, help="folder for the measurements (default: analysis in the results folder)")
    arguments.overrides(parser)
    options = parser.parse_intermixed_args()
    overrides = arguments.keys_of(parser, options, options.overrides)
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"no such measurement: {unknown[0]}; there are {', '.join(names)}")
    store, work = Store(options.results), Path(options.work or work_of(options.results))
    for name in options.names or names:
        measure = magnitudes if name in FIGURE3 else similarities
        try:
            before = analysis.read(name, store.root) or {}
            if before.get("with", []) != overrides:
                before = {}
            found = measure(name, store, work, overrides, before)
        except VeraError as error:
            if options.names:
                raise VeraError(f"{name}: {error}") from None
            print(f"{name}: {error}")
            continue
        if overrides:
            found["with"] = overrides
        path = write_atomic(Path(options.out or store.root / "analysis") / f"{name}.json", _compact(found))
        gone = sorted(set(before.get("seeds", [])) - set(found["seeds"]))
        lost = f" (no longer {', '.join(map(str, gone))}: trained again and without an adapter)" if gone else ""
        print(f"{name}: {len(found['seeds'])} seeds, written to {path}{lost}")
    return 0


def magnitudes(name: str, store: Store, work: Path, overrides: list[str], before: dict) -> dict:
    """Norm of d for each seed, target and layer."""
    runs = finished([*FIGURE3[name][1], *overrides], store, work, before)
    made_by = about(runs, store, before)
    norms: dict[str, list[list[float]]] = {}
    for run, folder in runs:
        if folder is None:
            for target, measured in before["norms"].items():
                norms.setdefault(target, []).append(measured[before["seeds"].index(run.seed)])
            continue
        vectors = adapters.trained_vectors(folder)
        for target, paths in adapters.by_target(list(vectors), run.model["targets"]).items():
            norms.setdefault(target, []).append([round(vectors[path][1].double().norm().item(), 6) for path in paths])
    method = runs[0][0].method
    return {
        "what": "Euclidean norm of the trained d for each target, seed and layer; adapters of the best epoch",
        "rank": method["rank"],
        "initial": round(abs(method["d_init"]) * math.sqrt(method["rank"]), 6),
        "layers": len(next(iter(norms.values()))[0]),
        **made_by,
        "norms": norms,
    }


def similarities(name: str, store: Store, work: Path, overrides: list[str], before: dict) -> dict:
    """Cosine of LoRA's query differences with VeRA's and with random matrices, for each seed and layer."""
    _, of_vera, of_lora = FIGURE5[name]
    vera, lora = (finished([*choice, *overrides], store, work, before) for choice in (of_vera, of_lora))
    found: dict[str, list[list[float]]] = {"lora_vera": [], "lora_random": []}
    pairs = [(a, b) for a in vera for b in lora if a[0].seed == b[0].seed and _whole(a, b, store, before)]
    if not pairs:
        raise AdapterError("no seed has both a LoRA and a VeRA adapter")
    made_by = about([run for pair in pairs for run in pair], store, before)
    for (run, vera_folder), (_, lora_folder) in pairs:
        if vera_folder is None or lora_folder is None:
            for key, values in found.items():
                values.append(before[key][before["seeds"].index(run.seed)])
            continue
        differences = [adapters.weight_differences(folder) for folder in (vera_folder, lora_folder)]
        paths = adapters.by_target(list(differences[0]), run.model["targets"])["query"]
        by_vera, by_lora = ([difference[path] for path in paths] for difference in differences)
        found["lora_vera"].append([round(adapters.cosine(a, b), 8) for a, b in zip(by_lora, by_vera, strict=True)])
        randoms = [adapters.random_matrix(a.shape, run.seed, layer) for layer, a in enumerate(by_lora)]
        found["lora_random"].append([round(adapters.cosine(a, b), 8) for a, b in zip(by_lora, randoms, strict=True)])
    return {
        "what": "cosine of the flattened weight differences of the query matrices for each seed and layer; best epoch",
        "rank": pairs[0][0][0].method["rank"],
        "layers": len(found["lora_vera"][0]),
        **made_by,
        **found,
    }


Measured = tuple[RunConfig, Path | None]  # a run and its adapter; None: its numbers are in an earlier measurement


def finished(overrides: list[str], store: Store, work: Path, before: dict) -> list[Measured]:
    """The runs of one cell that have a record, and a saved adapter or a measurement, by seed. Raises AdapterError when there is
    none."""
    first = compose(overrides)
    found: list[Measured] = []
    for record in store.by_cell().get(first.cell_id, []):
        there = (work / record.name / "best" / adapters.CONFIG_FILE).exists()
        if there or _known(record, before):
            folder = kept(record, work, "best")[0] if there else None
            found.append((compose([*overrides, f"seed={record.run.seed}"]), folder))
    if not found:
        raise AdapterError(
            f"no saved adapter of {first.run_name} in {work} with a record in {store.root}; make it with "
            f"{called('train')} {' '.join(overrides)} (a record without an adapter: choose another results_dir)"
        )
    return found


def _compact(found: dict) -> str:
    """JSON with one line for each list of numbers or names."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match.group().split()), text) + "\n"


def _known(record: Record, before: dict) -> bool:
    """Whether an earlier measurement is of what this run has trained; one that does not say so is taken at its word, as tables
    take it."""
    mark = analysis.mark(record)
    return record.name in before.get("runs", []) and before.get("trained", {}).get(record.name, mark) == mark


def _whole(one: Measured, other: Measured, store: Store, before: dict) -> bool:
    """Whether a pair has both adapters, or was measured before."""
    if one[1] is not None and other[1] is not None:
        return True
    return all(_known(store.find(run.run_name), before) for run, _ in (one, other))


def about(runs: Sequence[Measured], store: Store, before: dict) -> dict:
    """Which runs are measured, and which code and backbone made them. Raises AdapterError where they were not made alike.

    trained: without those that were taken at an earlier measurement's word, which nothing has compared.
    """
    records = [store.find(run.run_name) for run, _ in runs]
    if apart := unlike(records):
        raise AdapterError(
            f"these runs are of unlike {', '.join(apart)}; train those that differ again, or move them elsewhere"
        )
    return {
        "seeds": sorted({record.run.seed for record in records}),
        "runs": [record.name for record in records],
        "trained": {
            record.name: analysis.mark(record)
            for (_, folder), record in zip(runs, records, strict=True)
            if folder is not None or record.name in before.get("trained", {})
        },
        "git_sha": sorted({str(record.provenance.git_sha) for record in records}),
        "backbone": sorted({record.provenance.model_fingerprint for record in records}),
    }

"""From records to the paper's tables and figures. Nothing here imports torch."""

from pathlib import Path

ARTEFACTS = Path(__file__).resolve().parent / "artefacts"
RESULTS = Path(__file__).resolve().parent.parent / "results"  # of this repository: published numbers, measurements, records

"""The five scores of the E2E challenge, equal to its official scorer (tuetschek/e2e-metrics), and the files that it reads.

BLEU is sacrebleu's (lower-cased, 13a tokens). NIST is computed here, since no library gives the official value. METEOR, ROUGE_L
and CIDEr are pycocoevalcap's behind its own tokeniser; both need Java. Without it they are missing, never approximated.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from itertools import zip_longest
from operator import or_
from pathlib import Path

import datasets
import evaluate
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from vera.errors import DataError
from vera.io.rows import read_csv, read_text

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")  # NIST as published: the challenge's Perl script
NIST_PY = "NIST_py"  # the scorer's option -p, by which the LoRA repository scores E2E
NIST_MODES = {"NIST": "Perl mteval-v13a, as the challenge's published scores", NIST_PY: "option -p, as the LoRA repository's"}
CAPTION_METRICS = ("METEOR", "ROUGE_L", "CIDEr")
NEEDS_JAVA = "needs Java: apt-get install default-jre-headless (or conda install openjdk)"
NEEDS_PACKAGE = "needs the package pycocoevalcap: pip install -c constraints.txt -e '.[e2e]'"

_TOKENISE = Tokenizer13a()
_NGRAMS = 5
_BETA = math.log(2) / math.log(1.5) ** 2


def unavailable() -> str | None:
    """Why METEOR, ROUGE_L and CIDEr cannot be computed here and what to install; None when they can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return NEEDS_PACKAGE
    return None if java_runs() else NEEDS_JAVA


def java_runs() -> bool:
    java = shutil.which("java")  # some systems have a `java` that only says where to get one
    return java is not None and subprocess.run([java, "-version"], capture_output=True).returncode == 0


class E2EMetric(evaluate.Metric):
    """Predictions: one text an instance; references: at least one for each. CIDEr weighs words by the references given here, so
    that the score of a part of a test set is not comparable with the whole."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Scores of the E2E NLG challenge (Dusek et al. 2018), as fractions (BLEU, METEOR, ROUGE_L) or raw.",
            citation="",
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            module_name="e2e",
        )

    def _compute(self, predictions, references):
        return compute(predictions, references)


def compute(outputs: list[str], references: list[list[str]]) -> dict[str, float]:
    """All scores that can be computed on this machine (`unavailable` says why METEOR, ROUGE_L and CIDEr are not among them)."""
    scores = {"BLEU": bleu(outputs, references), **nist(outputs, references)}
    if unavailable() is None:
        scores.update(caption_metrics(outputs, references))
    return scores


def bleu(outputs: list[str], references: list[list[str]]) -> float:
    """Corpus BLEU-4 against the closest reference length, from 0 to 1."""
    return _bleu(tuple(map(tuple, references))).corpus_score(outputs, None).score / 100


@lru_cache(maxsize=1)  # the outputs of a sweep's runs, and of a run's epochs, have the same references
def _bleu(references: tuple[tuple[str, ...], ...]) -> BLEU:
    return BLEU(lowercase=True, references=list(zip_longest(*references)))


def nist(outputs: list[str], references: list[list[str]]) -> dict[str, float]:
    """NIST-5 in both modes of the official scorer, which differ in the reference length of the brevity penalty alone.

    An n-gram is worth log2(count(w1..wn-1) / count(w1..wn)), counted over all references; matches are clipped at the most that
    one reference of the instance has. NIST: all references' tokens / references x instances. NIST_py: the sum over instances
    of their references' mean length. Raises DataError where no reference has a token.
    """
    hypotheses = [_tokens(text) for text in outputs]
    counts, clips, lengths = _counted(tuple(map(tuple, references)))
    reference_tokens = sum(map(sum, lengths))
    if not reference_tokens:
        raise DataError(f"no reference has a token to score by, the first is {references[0][0]!r}")
    worth, total = [0.0] * _NGRAMS, [0] * _NGRAMS
    for tokens, most in zip(hypotheses, clips, strict=True):
        for gram, count in Counter(_grams(tokens)).items():
            total[len(gram) - 1] += count
            if gram in most:
                prefix = counts[gram[:-1]] if len(gram) > 1 else reference_tokens
                worth[len(gram) - 1] += min(count, most[gram]) * math.log2(prefix / counts[gram])
    score = sum(found / count for found, count in zip(worth, total, strict=True) if count)
    length = sum(map(len, hypotheses))
    perl = reference_tokens / sum(map(len, lengths)) * len(lengths)
    python = sum(sum(group) / len(group) for group in lengths)
    return {"NIST": score * _brevity(length / perl), NIST_PY: score * _brevity(length / python)}


@lru_cache(maxsize=1)
def _counted(references: tuple[tuple[str, ...], ...]) -> tuple[Counter, list[Counter], list[list[int]]]:
    """How often the references have each n-gram, the most that one of an instance has, and how many tokens each has."""
    groups = [[_tokens(text) for text in group] for group in references]
    counts = Counter(gram for group in groups for tokens in group for gram in _grams(tokens))
    clips = [reduce(or_, (Counter(_grams(tokens)) for tokens in group)) for group in groups]
    return counts, clips, [[len(tokens) for tokens in group] for group in groups]


def _tokens(text: str) -> list[str]:
    return _TOKENISE(text.lower()).split()


def _grams(tokens: list[str]) -> Iterator[tuple[str, ...]]:
    for n in range(1, _NGRAMS + 1):
        yield from zip(*(tokens[i:] for i in range(n)), strict=False)


def _brevity(ratio: float) -> float:
    return math.exp(-_BETA * math.log(min(1.0, ratio)) ** 2) if ratio > 0 else 0.0


def caption_metrics(outputs: list[str], references: list[list[str]]) -> dict[str, float]:
    """METEOR 1.5 (of the corpus, not a mean), ROUGE_L and CIDEr of PTB tokens without punctuation. Raises DataError when a Java
    program does not answer as it should."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with _quiet():
        tokenised = [
            PTBTokenizer().tokenize({i: [{"caption": _one_line(text)} for text in group] for i, group in enumerate(texts)})
            for texts in (references, [[text] for text in outputs])
        ]
    for texts, found in zip((references, [[text] for text in outputs]), tokenised, strict=True):
        last = len(texts) - 1
        if last not in found and not "".join(texts[last]).strip():
            found[last] = [""]  # the tokeniser leaves out a last line that is empty
        if [len(found.get(i, ())) for i in range(len(texts))] != [len(group) for group in texts]:
            raise DataError("the PTB tokeniser (Java) did not return a line for every text")
    targets, results = tokenised
    scores = {}
    for name, scorer in zip(CAPTION_METRICS, (_meteor, Rouge, Cider), strict=True):
        try:
            scores[name] = float(scorer().compute_score(targets, results)[0])
        except (ValueError, OSError) as error:
            _meteor.cache_clear()
            raise DataError(f"{name} could not be computed: {error}") from None
    return scores


@lru_cache(maxsize=1)
def _meteor():
    """METEOR's Java process reads its tables for seconds; the runs of a sweep share one."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextmanager
def _quiet() -> Iterator[None]:
    """Java's chatter on the standard error stream goes nowhere inside the block."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# Column names that the official scorer takes in .csv and .tsv files. It takes those of texts on either side, and the first of
# several: a table that holds outputs beside their references would be scored against itself.
_SOURCE = re.compile(r"(mr|src|source|meaning(?:[_ .-]rep(?:resentation)?)?)s?", re.I)
_OUTPUT = re.compile(r"(out(?:put)?|sys(?:tem)?)s?", re.I)
_REFERENCE = re.compile(r"(trg|target|ref(?:erence)?|human[_ .-]reference)s?", re.I)


def read_files(outputs: Path, references: Path, allow_empty: bool = False) -> tuple[list[str], list[list[str]]]:
    """Outputs and their references from the files of the official scorer.

    References: plain text with the references of an instance in successive lines and an empty line between instances (a file
    without empty lines has one reference for each), or .csv/.tsv with a column for the meaning representation and one for the
    reference. Outputs: a line each, or .csv/.tsv with a column for the output; with meaning representations on both sides
    outputs are put in order by them.

    Raises DataError for files that do not fit together, and for an empty output unless `allow_empty`.
    """
    ref_sources, groups = _read_references(references)
    out_sources, found = _read_outputs(outputs)
    if ref_sources is not None and out_sources is not None:
        by_source: dict[str, tuple[str, str]] = {}
        for source, (where, text) in zip(out_sources, found, strict=True):
            if by_source.setdefault(source, (where, text))[1] != text:
                raise DataError(f"{where}: another output for {source!r} than at {by_source[source][0]}")
        for here, its, there, theirs in (
            (outputs, by_source, references, ref_sources),
            (references, ref_sources, outputs, by_source),
        ):
            lacking = set(theirs) - set(its)
            if lacking:
                raise DataError(f"{here} has nothing for {min(lacking)!r}, which {there} has")
        found = [by_source[source] for source in ref_sources]
    if len(found) != len(groups):
        raise DataError(f"{outputs} has {len(found)} outputs, {references} has references for {len(groups)} instances")
    for where, text in found:
        if not text and not allow_empty:
            raise DataError(f"{where} is an empty output")
    return [text for _, text in found], groups


def _read_references(path: Path) -> tuple[list[str] | None, list[list[str]]]:
    if path.suffix.lower() in (".csv", ".tsv"):
        grouped: dict[str, list[str]] = {}
        for _, (source, text) in _read_table(path, _REFERENCE):
            grouped.setdefault(source, []).append(_one_line(text))
        return list(grouped), list(grouped.values())
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise DataError(f"{path} is empty")
    if "" not in lines:
        return None, [[line] for line in lines]
    groups: list[list[str]] = [[]]
    for number, line in enumerate(lines, start=1):
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
        else:
            raise DataError(f"{path}:{number}: an instance without references (an empty line too many)")
    return None, groups


def _read_outputs(path: Path) -> tuple[list[str] | None, list[tuple[str, str]]]:
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = [(source, (where, _one_line(text))) for where, (source, text) in _read_table(path, _OUTPUT)]
        return [source for source, _ in rows], [output for _, output in rows]
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty")
    lines = text.removesuffix("\n").split("\n")
    return None, [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, start=1)]


def _read_table(path: Path, texts: re.Pattern[str]) -> Iterator[tuple[str, list[str]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    header = [name.strip('"\r') for name in read_text(path).partition("\n")[0].split(delimiter)]
    columns = []
    for kind, pattern in (("meaning representations", _SOURCE), ("outputs" if texts is _OUTPUT else "references", texts)):
        fitting = [name for name in header if pattern.fullmatch(name)]
        if not fitting:
            raise DataError(f"{path}:1 has no column for {kind}; it has {', '.join(map(repr, header))}")
        if len(fitting) > 1:
            raise DataError(
                f"{path}:1: {' and '.join(map(repr, fitting))} may hold the {kind}; rename all but the one that is meant"
            )
        columns.append(fitting[0])
    return read_csv(path, columns, delimiter, may_be_empty=columns[1:] if texts is _OUTPUT else ())

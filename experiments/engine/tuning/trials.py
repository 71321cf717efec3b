"""A search carried out: its runs made as far as they are missing, and what each trial scores on the validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.engine.aggregate import Summary, of_records, summarise
from experiments.engine.tuning.searches import Search, Trial, trials_of
from vera.config import RunConfig
from vera.errors import ConfigError
from vera.records.record import Record
from vera.records.store import Store

SEED = 0  # of optuna's samplers
ETA = 3  # of a rung of successive halving, one in so many goes on


@dataclass
class Tried:
    """A trial with its runs, by seed, and what they score on the validation rows; summary is None while runs are missing."""

    trial: Trial
    run: RunConfig
    records: list[Record]
    summary: Summary | None = field(default=None)


Compute = Callable[[Sequence[RunConfig]], None]


def carry_out(search: Search, compute: Compute) -> list[Tried]:
    """Every trial, those of the last rung first, the best before the others; a trial with missing runs stands last.

    compute: makes the records of these runs as far as they are missing (for a dry run: none).
    """
    if search.sampler == "tpe":
        tried = _tpe(search, compute)
    elif search.sampler == "random":
        tried = _halve(search, _drawn(search), compute)
    else:
        tried = _halve(search, list(trials_of(search.axes)), compute)
    return sorted(tried, key=lambda t: (-(t.trial.steps or 0), *rank(t)))


def rank(tried: Tried) -> tuple[float, float]:
    """Best first: the median, then the worst seed."""
    return (math.inf, math.inf) if tried.summary is None else (-tried.summary.median, -min(tried.summary.values))


def level(tried: Sequence[Tried]) -> bool:
    """Whether the rung of the first of these has several trials, all with the same scores, as where each predicts one class."""
    rung = [found.summary and sorted(found.summary.values) for found in tried if found.trial.steps == tried[0].trial.steps]
    return len(rung) > 1 and rung[0] is not None and all(scores == rung[0] for scores in rung)


def _measure(search: Search, trials: Sequence[Trial], compute: Compute) -> list[Tried]:
    runs = [[search.run(trial, seed) for seed in search.seeds] for trial in trials]
    compute([run for seeds in runs for run in seeds])
    return [_tried(trial, search.run(trial), seeds) for trial, seeds in zip(trials, runs, strict=True)]


def _tried(trial: Trial, run: RunConfig, runs: Sequence[RunConfig]) -> Tried:
    found = [Store(each.results_dir).find(each.run_name) for each in runs]
    records = [record for record in found if record is not None]
    if len(records) < len(runs):
        return Tried(trial, run, records)
    if short := [record.cost.steps for record in records if not record.collapsed and record.cost.steps < (trial.steps or 0)]:
        raise ConfigError(
            f"--steps {trial.steps}: train.epochs={run.train.epochs} ends after {short[0]}; give train.epochs for all of them"
        )
    # The validation rows' best epoch, whatever the record says of test rows.
    values = [-math.inf if r.collapsed else r.scores.best.metrics[r.scores.primary] for r in records]
    return Tried(trial, run, records, of_records(summarise([value for value in values if value is not None]), records))


def _halve(search: Search, trials: list[Trial], compute: Compute) -> list[Tried]:
    """All trials for the first number of steps, the best third of them for the second, and so on, up to a rung that is level:
    of its trials none is the best."""
    done: list[Tried] = []
    for rung, steps in enumerate(search.steps or (None,)):
        tried = _measure(search, [Trial(trial.keys, trial.values, steps) for trial in trials], compute)
        done += tried
        if any(found.summary is None for found in tried) or level(tried):
            break
        left = -(-len(tried) // ETA) if rung + 1 < len(search.steps) else 0
        trials = [found.trial for found in sorted(tried, key=rank)[:left]]
    return done


def _study(search: Search) -> tuple[Any, dict[str, Any]]:
    """optuna's study and the distribution of each axis, a range with points by their numbers."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f"--search {search.sampler} needs optuna: pip install optuna (the extra tune); a grid does without"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = optuna.distributions
    sampler: Any = optuna.samplers.RandomSampler(seed=SEED)
    if search.sampler == "tpe":
        sampler = optuna.samplers.TPESampler(seed=SEED, n_startup_trials=min(10, -(-search.trials // 3)))
    made: dict[str, Any] = {}
    for found in search.axes:
        if found.points:
            ordered = not math.isnan(found.low)
            made[found.key] = (
                kinds.IntDistribution(0, len(found.points) - 1) if ordered else kinds.CategoricalDistribution(found.points)
            )
        elif found.whole:
            made[found.key] = kinds.IntDistribution(int(found.low), int(found.high), log=found.log)
        else:
            made[found.key] = kinds.FloatDistribution(found.low, found.high, log=found.log)
    return optuna.create_study(direction="maximize", sampler=sampler), made


def _proposals(search: Search) -> Iterator[tuple[Trial, Callable[[float], None]]]:
    """What optuna proposes, each with what tells it the score. It may propose the same again."""
    study, distributions = _study(search)
    for _ in range(20 * search.trials):
        asked = study.ask(distributions)
        values = []
        for found in search.axes:
            value = asked.params[found.key]
            by_number = found.points and not math.isnan(found.low)
            values.append(found.points[value] if by_number else value if found.points else found.value(value))
        trial = Trial(tuple(found.key for found in search.axes), tuple(values), search.steps[0] if search.steps else None)
        yield trial, lambda score, asked=asked: study.tell(asked, score)


def _drawn(search: Search) -> list[Trial]:
    drawn: dict[tuple[str, ...], Trial] = {}
    for trial, _ in _proposals(search):
        drawn.setdefault(trial.values, trial)
        if len(drawn) == search.trials:
            break
    return list(drawn.values())


def _tpe(search: Search, compute: Compute) -> list[Tried]:
    done: dict[tuple[str, ...], Tried] = {}
    for trial, tell in _proposals(search):
        if trial.values not in done:
            done[trial.values] = _measure(search, [trial], compute)[0]
        summary = done[trial.values].summary
        if summary is None or len(done) == search.trials:
            break
        tell(summary.median)
    return list(done.values())

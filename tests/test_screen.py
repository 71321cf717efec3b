"""What a person sees of a long sweep: where it is, how long it takes yet, in a terminal and in a log."""

import io
import logging

import pytest
from rich.console import Console

from vera.config import compose
from vera.records import screen as module
from vera.records.screen import Screen


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="vera")
    logging.getLogger("vera").propagate = True
    return lambda: [record.getMessage() for record in caplog.records]


def test_without_a_terminal_epochs_and_every_few_minutes_are_lines(clock, said):
    view = Screen(clock)
    view.runs = 30
    with view.run("lora--s0  rank=4", live=False):
        view.doing("loading the backbone")
        view.trained(1, 100, 0.9)
        for clock.now in (1.0, 50.0, 100.0, 150.0):
            view.trained(2, 100, 0.9)
        assert said() == []
        clock.now = 200.0
        view.trained(50, 100, 0.5)
        assert len(said()) == 1 and "run 1 of 30  lora--s0  rank=4  training  step 50 of 100  loss 0.500" in said()[0]
        clock.now = 202.0
        view.scored(1, 2, "accuracy", 0.7)
        assert len(said()) == 1  # nothing new to a log that was written two seconds ago
        clock.now = 220.0
        view.scored(1, 2, "accuracy", 0.7)
        assert "epoch 1 of 2 done  accuracy 0.7000" in said()[1]
        clock.now = 401.0
        view.doing("evaluating", 128, 630)
        assert "evaluating 128 of 630" in said()[2]


def test_what_is_left_counts_evaluations_and_the_runs_to_come(clock):
    view = Screen(clock)
    view.runs = 3
    with view.run("a", live=False):
        assert view.run_left() is None
        view.trained(1, 10, None)
        clock.now = 40.0  # four steps and an evaluation
        view.trained(5, 10, None)
        assert view.run_left() == pytest.approx(40.0)  # five steps took 40 s
        assert view.sweep_left() == pytest.approx(40.0 + 2 * 80.0)
        clock.now = 100.0
    with view.run("b", live=False):
        view.trained(1, 10, None)
        clock.now = 110.0
        view.trained(2, 10, None)
        assert view.sweep_left() == pytest.approx(view.run_left() + 100.0)


def test_a_resumed_run_is_measured_from_where_it_went_on(clock):
    view = Screen(clock)
    with view.run("a", live=False):
        view.trained(901, 1000, None)
        clock.now = 10.0
        view.trained(910, 1000, None)
        assert view.run_left() == pytest.approx(90.0)


def test_in_a_terminal_it_is_one_line(clock):
    out = io.StringIO()
    view = Screen(clock)
    view.runs = 2
    with view.run("vera--s0", live=True, console=Console(file=out, force_terminal=True, width=160)):
        view.trained(1, 10, 0.25)
        view.doing("evaluating", 3, 9)
        view.live.refresh()
    assert "run 1 of 2  vera--s0" in out.getvalue() and "evaluating 3 of 9" in out.getvalue()


def test_nothing_is_shown_outside_a_run_or_when_not_asked(said, monkeypatch):
    monkeypatch.setattr(module, "_screen", Screen(lambda: 1e9))
    module.doing("loading")
    with module.shown("a", False):
        module.trained(1, 2, 0.0)
        module.scored(1, 1, "accuracy", 1.0)
    assert said() == []


def test_variants_are_told_apart_by_what_was_set():
    run = compose(["model=digits_vit", "task=digits", "method=vera", "method.rank=4", "train.lr=0.5", "seed=3", "device=cpu"])
    assert run.variant == "rank=4 train.lr=0.5"
    assert compose(["task.data_dir=/x", "model=roberta_base", "task=rte", "train.save=false"]).variant == ""
    assert run.cell_id == compose(["method.rank=4", "train.lr=0.5"]).cell_id


def test_what_is_counted_is_told_now_and_then_where_nobody_watches(clock):
    told = []
    for show in ("auto", False):
        with module.counted("judge", "verdicts", show, told.append, clock) as tell:
            for done in (1, 1000, 1999, 2000):
                clock.now += 40
                tell(done, 2000)
    assert told == ["judge: 1,000 of 2,000 verdicts", "judge: 2,000 of 2,000 verdicts"]

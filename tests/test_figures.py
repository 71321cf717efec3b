"""What is written in a figure can be read: nothing is cut off, no name covers another, and runs that are not shown are told."""

import itertools
import json
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from experiments.engine import plots
from experiments.engine.paper import ask
from experiments.engine.published import choice
from experiments.engine.registry import artefact, names
from experiments.engine.rows import Asked
from tests.test_experiments import by_cell, record
from vera.records.record import Record

RESULTS = Path(__file__).parent.parent / "results"
DIGITS = ["model=digits_vit", "task=digits"]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """drawn(asked, artefact) -> its figures as they would be saved."""

    class Kept(Figure):
        saved = False

        def savefig(self, *_, **__):
            if not self.saved:  # the first file has one more layout, and others have no more say
                self.canvas.draw()
            self.saved = True

    def draw(asked, name):
        figures = []
        monkeypatch.setattr(plots, "Figure", lambda *given, **more: figures.append(Kept(*given, **more)) or figures[-1])
        artefact(name).draw(asked, tmp_path)
        return figures

    return draw


def boxes(made: Figure) -> dict[str, Bbox]:
    """Of every title, label and name in a figure."""
    texts = [text for axes in made.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    legends = [text for axes in made.axes if axes.get_legend() for text in axes.get_legend().get_texts()]
    every = [*texts, *legends, *made.texts, *([made._suptitle] if made._suptitle else [])]
    return {text.get_text(): text.get_window_extent(made.canvas.get_renderer()) for text in every if text.get_text()}


def cut_off(made: Figure) -> list[str]:
    whole = made.bbox.padded(1)
    return [text for text, box in boxes(made).items() if not (whole.contains(*box.min) and whole.contains(*box.max))]


def test_nothing_of_the_committed_figures_is_cut_off_and_no_method_s_name_covers_another(drawn):
    asked, count = ask(RESULTS), 0
    for name in (name for name in names() if artefact(name).draw):
        for made in drawn(asked, name):
            count += 1
            assert cut_off(made) == [], name
            if name == "pareto":
                (axes,) = made.axes
                named = [box for text, box in boxes(made).items() if text in {one.get_text() for one in axes.texts}]
                assert len(named) == 15
                assert not any(Bbox.intersection(one, other) for one, other in itertools.combinations(named, 2))
    assert count == len(list((RESULTS / "figures").glob("*.svg")))


def collapsed(made: Record) -> Record:
    return Record.model_validate(json.loads(made.to_json()) | {"collapsed": "the loss is nan"})


def runs(*overrides, score=0.7, lost=()):
    made = [record([*DIGITS, *overrides], seed, score + seed / 100) for seed in range(5)]
    return [collapsed(one) if one.run.seed in lost else one for one in made]


@pytest.mark.parametrize("name", ["digits", "figure2_ranks", "figure4_gain", "pareto"])
def test_a_figure_says_which_runs_it_does_not_show(name, drawn):
    head = runs(*choice("figure4", "head", "mini"), score=0.5) + runs("method=head", score=0.5)
    others = [*runs("method=vera", lost=[0]), *runs("method=lora", lost=range(5))]
    (*_, made) = drawn(Asked(by_cell(*head, *others)), name)
    (said,) = (text for text in boxes(made) if "not shown" in text)
    assert "collapsed runs (6), and ranges with one" in said and cut_off(made) == []
    (*_, made) = drawn(Asked(by_cell(*head, *runs("method=vera"), *runs("method=lora"))), name)
    assert not any("not shown" in text for text in boxes(made))


def test_a_figure_says_what_is_drawn_otherwise_and_on_what(drawn):
    """The head alone, which trains nothing to be drawn against, is a line without its seeds."""
    head = [record([*DIGITS, "method=head"], seed, 0.5, parameters=0) for seed in range(5)]
    cells = by_cell(*head, *runs("method=vera"))
    (made,) = drawn(Asked(cells), "digits")
    assert "Head only (0): the median alone" in boxes(made)
    (made,) = drawn(Asked(cells), "pareto")
    assert "digits with digits_vit" in made._suptitle.get_text()


def test_a_method_has_one_colour_in_all_figures(drawn):
    five = [*runs("method=vera"), *runs("method=lora")]
    for name in ("digits", "figure2_ranks"):
        (*_, made) = drawn(Asked(by_cell(*five)), name)
        legend = made.axes[0].get_legend()
        found = zip(legend.get_texts(), (handle.get_color() for handle in legend.legend_handles), strict=True)
        colours = {text.get_text().split()[0]: to_hex(of if isinstance(of, str) else of[0]) for text, of in found}
        assert colours == {"VeRA": "#0072b2", "LoRA": "#e69f00"}, name

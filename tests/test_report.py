"""The page in a browser: no errors, sorting, provenance on a click, and text from records that stays text."""

import json
import re
import shutil
from pathlib import Path

import pytest

from experiments.artefacts import claims as claims_tables
from experiments.engine import report
from experiments.engine.claims import stated
from experiments.engine.paper import ask, draw, tables, write_page
from experiments.engine.plan import Plan
from experiments.engine.render import DASH, Sourced, Table
from experiments.engine.rows import Asked
from tests.test_experiments import by_cell, record
from vera.commands.check import differences

EVIL = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>{{ 7 * 7 }}"
ROOT = Path(__file__).parent.parent
LARGE = ["model=roberta_large", "task=rte"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A results folder with five seeds of two cells, one of them with hostile text, and a failure."""
    results = tmp_path_factory.mktemp("results")
    made = [
        record(
            [*LARGE, f"method={method}"],
            seed,
            score + seed / 100,
            parameters=61440,
            model_source=EVIL,
            versions={"torch": "2.13", "evil": EVIL},
            notes={"evil": EVIL},
        )
        for method, score in (("vera", 0.80), ("lora", 0.90))
        for seed in range(5)
    ]
    (results / "runs").mkdir()
    for one in made:
        (results / "runs" / f"{one.name}.json").write_text(one.to_json())
    (results / "failed").mkdir()
    name = record(["model=roberta_large", "task=mrpc", "method=vera"], 0, 0.5).name
    (results / "failed" / f"{name}.json").write_text(json.dumps({"error": EVIL}))
    return results


@pytest.fixture(scope="module")
def page(script, folder, tmp_path_factory):
    """The page of those records, made by the script in a process of its own."""
    out = tmp_path_factory.mktemp("out")
    done = script("paper.py", "--report", "--results", folder, "--out", out)
    assert done.returncode == 0, done.stderr
    return out / "report" / "index.html"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium at the width of a desk; the tests that need one are skipped where there is none."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = selenium.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


@pytest.fixture
def opened(browser, page):
    browser.get(page.as_uri())
    return browser


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def test_the_page_loads_without_errors_and_asks_for_nothing(opened, page):
    assert opened.title == "VeRA, reproducibly: the report"
    assert opened.get_log("browser") == []
    text = page.read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert (
        opened.execute_script("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))") == []
    )


def test_every_table_and_figure_is_on_it(opened, folder):
    shown = {table.get_attribute("id") for table in find(opened, "table[id]")}
    assert {"t-claims", "t-claims_evidence", "t-table2", "t-table13", "t-figure2", "t-figure6", "t-table2_tests"} <= shown
    pictures = find(opened, "figure img")
    assert len(pictures) >= 3 and all(picture.get_property("naturalWidth") > 0 for picture in pictures)


def column(browser, table, index):
    return [cell.get_attribute("textContent") for cell in find(browser, f"#{table} tbody td:nth-child({index})")]


def test_columns_sort_by_value_with_dashes_last(opened):
    find(opened, "#t-table2 th:nth-child(9) button")[0].click()  # RTE
    first = column(opened, "t-table2", 9)
    numbers = [float(text.partition("±")[0]) for text in first if text != DASH]
    assert numbers == sorted(numbers) and len(numbers) > 10
    assert first[len(numbers) :] == [DASH] * (len(first) - len(numbers)) and DASH in first
    find(opened, "#t-table2 th:nth-child(9) button")[0].click()
    second = column(opened, "t-table2", 9)
    assert [text for text in second if text != DASH] != [text for text in first if text != DASH] and second[-1] == DASH
    assert float(second[0].partition("±")[0]) == max(numbers)
    find(opened, "#t-table2 th:nth-child(4) button")[0].click()  # 0.061M before 61,440 before 0.8M
    trained = column(opened, "t-table2", 4)
    assert trained.index("0.043M") < trained.index("61,440") < trained.index("0.8M") < trained.index("124,055,040")


def test_a_cell_opens_its_provenance(opened, folder):
    (button,) = (b for b in find(opened, "#t-table2 td.below .source") if b.text.startswith("82.0"))
    assert "-3.90 from what is printed, p = 0.0" in button.get_attribute("title")
    button.click()
    dialog = find(opened, "#provenance")[0]
    assert dialog.is_displayed()
    runs = {path: json.loads(path.read_text()) for path in (folder / "runs").glob("*--vera--*.json")}
    files = [f"runs/{path.name}" for path in runs]
    commits = {run["provenance"]["git_sha"] or "no git" for run in runs.values()}
    assert len(files) == 5
    shown = ("roberta_large, rte, vera", "accuracy by epoch", "torch: 2.13", '"d_init": 0.1', "61,440")
    for words in (*shown, *files, *commits):
        assert words in dialog.text, words
    assert len(find(opened, "#provenance polyline")) == 5
    find(opened, "#provenance form button")[0].click()
    assert not dialog.is_displayed()


def test_hostile_text_shows_as_text(opened):
    find(opened, "#t-table2 .source")[0].click()
    assert opened.title == "VeRA, reproducibly: the report"
    assert EVIL in find(opened, "#provenance")[0].get_attribute("textContent")
    assert not find(opened, "img[src=x]")
    assert any(EVIL in error.get_attribute("textContent") for error in find(opened, ".error"))
    assert opened.get_log("browser") == []


def test_on_a_phone_text_wraps(opened):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") == 390
        (claim,) = find(opened, "#t-claims tbody tr:first-child td:first-child")
        assert claim.size["width"] > 250  # a card, not a column of seven
        find(opened, "#t-table2 .source")[0].click()
        texts = "[...document.querySelectorAll('#provenance p, #provenance pre')]"
        assert opened.execute_script(f"return {texts}.filter(e => e.scrollWidth > e.clientWidth + 1)") == []
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_records_hold_no_markup_in_the_source(page):
    assert "<img src=x" not in page.read_text() and page.read_text().count("</script>") == 2


def test_equal_records_give_equal_bytes(folder, page, tmp_path):
    asked = ask(folder)
    pictures = [path for path in draw(asked, tmp_path) if path.suffix == ".svg"]
    assert write_page(tables(asked), pictures, asked, tmp_path).read_bytes() == page.read_bytes()


def test_colours_follow_the_test():
    def tone(deviation, p):
        return report._cell(Sourced("1.0", "ab" * 32, deviation, p))["tone"]

    assert [tone(1.0, 0.01), tone(-1.0, 0.01), tone(1.0, 0.5), tone(1.0, None), tone(None, None)] == [
        "above",
        "below",
        "same",
        "single",
        "",
    ]
    assert report._cell("not run (undecided in miniature)")["tone"] == "idle" and report._cell("1.0")["cell"] == ""


def test_what_each_run_draws_by_its_seed_is_shown_as_that():
    found = by_cell(*(record([*LARGE, "method=vera"], seed, 0.8) for seed in (3, 4)))
    ((_, records),) = found.items()
    assert [run.run.config["method"]["projection_seed"] for run in records] == [3, 4]
    shown = report.provenance(found)
    (cell,) = shown["cells"].values()
    assert shown["pool"][cell["config"]["method"]]["projection_seed"] == "${seed}"
    assert records[0].run.config["method"]["projection_seed"] == 3  # the record itself is as it was


def test_every_run_has_a_state(folder):
    found = by_cell(record([*LARGE, "method=vera"], 7, 0.8))
    listed = {sweep["name"]: sweep for sweep in report._sweeps(found, folder)}
    states = [c["seeds"] for c in listed["glue_large"]["cells"]]
    assert {"done": [0, 1, 2, 3, 4], "failed": [], "missing": []} in states
    assert {"done": [], "failed": [0], "missing": [1, 2, 3, 4]} in states
    assert sum(len(seeds) for state in states for seeds in state.values()) == 42 * 5  # seven rows, six tasks
    assert listed["in no sweep"]["cells"][0]["seeds"]["done"] == [7]  # seed 7 is nobody's
    assert len({len(sweep["line"]) for sweep in listed.values()}) == 1 and listed["in no sweep"]["line"][-1] == "recorded"
    assert Plan(folder).done == {path.stem for path in (folder / "runs").glob("*.json")}


def test_the_check_names_what_differs(tmp_path):
    for side, text in (("a", "1"), ("b", "2")):
        (tmp_path / side / "report").mkdir(parents=True)
        (tmp_path / side / "report" / "index.html").write_text(text)
        (tmp_path / side / "report" / "index.png").write_text(text)
    kinds = {"report": {".html"}, "tables": {".md"}}
    assert differences(tmp_path / "a", tmp_path / "b", kinds) == ["results/report/index.html"]
    assert differences(tmp_path / "a", tmp_path / "a", kinds) == []
    (tmp_path / "a" / "tables").mkdir()
    (tmp_path / "a" / "tables" / "new.md").write_text("")
    assert differences(tmp_path / "a", tmp_path / "b", kinds) == ["results/report/index.html", "results/tables/new.md"]


def test_columns_of_numbers_are_told_from_text():
    table = Table("t", "T", ["a", "b", "c"], [["x", "1.0±0.1 (n=2)", DASH], ["2", "124,055,040", "0.061M"]])
    assert report._numeric(table) == [False, True, True]


def test_the_first_lines_name_every_claim_and_what_a_gpu_would_add(tmp_path):
    lines = report.summary({"claims": claims_tables.build(Asked({}))}, tmp_path)
    assert [title for title, _ in lines][::4] == ["Fewer parameters, less storage", "What a GPU would add"] and len(lines) == 5
    said = [(tone, text) for _, parts in lines[:4] for tone, text in parts]
    for claim in stated():
        assert sum(claim.short in text for _, text in said) >= 1, claim.id
    assert any(tone == "no" and "ten times fewer than LoRA (RoBERTa-base)" in text for tone, text in said)
    assert any(tone == "open" and text.startswith("open: ") and "both vectors" in text for tone, text in said)
    assert "runs on the paper's own models" in lines[4][1][0][1]
    table = claims_tables.build(Asked({}))[0]
    for place, row in enumerate(table.rows):
        row[4] = {0: "not run (miniatures disagree)", 1: "not run (not supported in miniature)"}.get(place, row[4])
    ((_, parts), *_) = report.summary({"claims": [table]}, tmp_path)
    words = [f"{tone} {text}" for tone, text in parts]
    assert any(f"{stated()[0].short} (miniatures disagree)" in text for text in words if text.startswith("open open: "))
    assert any(f"{stated()[1].short} (in miniature)" in text for text in words if text.startswith("no does not: "))


def test_every_figure_has_a_section_with_its_picture():
    """Also the one on another model, which is not folded into the paper's own that nobody has run."""
    made = {"figure3_magnitudes": [Table(name, name, [], []) for name in ("figure3", "figure3_mini", "figure3_minilm")]}
    ((_, _, sections),) = report._groups(made, [Path("figure3_mini.svg"), Path("figure3_minilm.svg")])
    assert [(s.id, [path.stem for path in s.pictures], [table.name for table in s.more]) for s in sections] == [
        ("figure3", [], ["figure3"]),
        ("figure3_mini", ["figure3_mini"], ["figure3_mini"]),
        ("figure3_minilm", ["figure3_minilm"], ["figure3_minilm"]),
    ]
    page = (ROOT / "results" / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure><img ") == len(list((ROOT / "results" / "figures").glob("*.svg")))

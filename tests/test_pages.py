"""What the pages say can be followed: links, make targets, scripts, commands; and the site of them builds."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, median, stdev

import pytest
from scipy import stats

from experiments.engine.published import load
from vera.config import choices
from vera.config.composing import compose

ROOT = Path(__file__).parent.parent
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/paper/README.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def prose(path):
    return path.read_text(encoding="utf-8")


def anchors(path):
    """As GitHub makes them of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", prose(path), flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_targets_and_scripts_exist(page):
    text = prose(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for target in re.findall(r"(?:^    |`)make ([a-z0-9-]+)", text, re.MULTILINE):
        assert target in TARGETS, f"make {target}"
    lines = [made.rstrip() for made in re.findall(r"^    (make .*?)(?:  +#.*)?$", text, re.MULTILINE)]
    for line in [*lines, *re.findall(r"`(make [^`]*)`", text)]:
        if "..." not in line and "<" not in line and page.name != "CHANGELOG.md":  # a shell reads ARGS once more
            dry = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
            told = subprocess.run(["bash", "-n"], input=dry.stdout, capture_output=True, text=True).stderr
            assert dry.returncode == 0 and not told, f"{line}: {dry.stderr}{told}"
    for script in re.findall(r"(?:scripts|tests/system)/[a-z]\w*\.py", text):
        assert (ROOT / script).is_file(), script


def test_the_speeds_that_the_page_shows_are_measured_ones():
    """Each ratio in the three tables of docs/speed.md, which name their machines; kinds of row are compared by eye."""
    text = prose(ROOT / "docs" / "speed.md")
    tables = re.findall(r"\| \| (?:ratio|by graphs \| ordinary steps) \| goal \|\n((?:\|.*\n)+)", text)
    files = ("amd-epyc-avx-512-2-threads", "nvidia-h100-80gb-hbm3-16-threads", "nvidia-h200-16-threads")
    found = [json.loads((ROOT / "results" / "bench" / f"{name}.json").read_text()) for name in files]
    for table, measured in zip(tables, found, strict=True):
        ratios = {f"{row['ratio']['median']:.3f}" for row in measured["cases"]}
        several = [row for row in measured["cases"] if "interval" in row]
        ratios |= {"{:.3f} [{:.3f}, {:.3f}]".format(row["ratio"]["median"], *row["interval"]) for row in several}
        cells = " ".join(cell for line in table.splitlines()[1:] for cell in line.split("|")[2:-2])
        shown = re.findall(r"\d\.\d{3}(?: \[.*?\])?", cells)
        assert len(shown) > 8 and [ratio for ratio in shown if ratio not in ratios] == []
    plain, graphs = (row for row in found[2]["cases"] if row["case"] == "p")
    said = f"take {plain['ours']:.2f} s, with graphs {graphs['ours']:.2f} s, the Trainer's {plain['other']:.2f} s"
    looked = found[2]["proof"]["epoch"]
    said += r" \(medians of three rounds\); the GPU waits in (\d+)% of the first and in ([\d.]+)% of the second"
    idle = re.search(said, " ".join(text.split())).groups()
    assert idle == (f"{100 * looked['idle']:.0f}", f"{100 * looked['cuda_graphs']['idle']:.1f}")
    paper = {row["case"]: row for row in json.loads((ROOT / "results" / "bench" / "table12.json").read_text())["cases"]}
    replayed, memory, plain = (paper[f"table12_{name}"] for name in ("time_graphs", "memory", "time"))
    inner = [" [{low:.3f}, {high:.3f}]".format(**row["ratio"]) for row in (replayed, plain)]
    for said in (
        f"VeRA takes {replayed['ratio']['median']:.3f} of LoRA's time a step{inner[0]} ({replayed['ours']:.2f} and "
        f"{replayed['other']:.2f} s), and {memory['ratio']['median']:.3f} of its memory ({memory['ours'] / 1e9:.1f} and",
        f"Ordinary steps take {plain['ours']:.2f} and {plain['other']:.2f} s, {plain['ratio']['median']:.3f}{inner[1]}",
    ):
        assert said in " ".join(text.split())
    measured = found[1]
    (epoch,) = (row for row in measured["cases"] if row["case"] == "p")
    said = r"kernels add up to ([\d.]+) s of the ([\d.]+) s .*? took (\d+) passes .*?, (\d+) ms each, "
    said += r"the Trainer (\d+) .*?, (\d+) ms"
    busy, whole, *passes = map(float, re.search(said, " ".join(text.split())).groups())
    looked = measured["proof"]["epoch"]
    assert (busy, whole) == (round(looked["seconds"] * (1 - looked["idle"]), 2), round(epoch["ours"], 1))
    assert passes[1::2] == [round(1000 * epoch["ours"] / passes[0]), round(1000 * epoch["other"] / passes[2])]


def tables() -> dict[str, str]:
    return {path.stem: prose(path) for path in (ROOT / "results" / "tables").glob("*.md")}


def test_the_differences_that_the_ablations_page_shows_are_the_tables_own():
    text, made = " ".join(prose(ROOT / "docs" / "ablations.md").split()), tables()
    shown = re.findall(r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]", text)
    assert len(shown) >= 10 and [one for one in shown if not any(one in table for table in made.values())] == []
    for label, name in (("Full", "full fine-tuning"), ("LoRA r=8", "LoRA"), ("VeRA r=256", "VeRA")):
        (gain,) = re.findall(rf"\| {label} \| [\d,]+ \| 5 \| ([\d.]+)±", made["figure4_mini"])
        (said,) = re.findall(rf"([\d.]+) for {name}", text)
        assert f"{float(gain):.{len(said.partition('.')[2])}f}" == said
    cosines = re.search(r"mean cosine of LoRA and VeRA ([\d.]+), of LoRA and random matrices ([\d.]+);", text).groups()
    mean = re.search(r"\| mean \| ([\d.]+)±.*? \| ([\d.]+)±", made["figure5_mini"]).groups()
    assert [f"{float(value):.3f}" for value in mean] == list(cosines)


def test_the_spreads_behind_the_miniatures_margin_are_as_said():
    """Of the first five seeds of every run on the digits that a claim is read from, and of the pairs of these."""
    text = " ".join(prose(ROOT / "results" / "paper" / "README.md").split())
    printed = [float(cell.partition("±")[2]) for row in load("table7").rows for cell in row.cells.values()]
    assert f"by {min(printed)} to {max(printed)} in the paper's Table 7" in text
    vera, digits = "method=vera", ["model=digits_vit", "task=digits"]
    parts = {
        "both": [vera],
        "only d": [vera, "method.train=only_d"],
        "only b": [vera, "method.train=only_b"],
        "1e-7": [vera, "method.d_init=1.0e-7"],
        "1.0": [vera, "method.d_init=1.0"],
        "unique": [vera, "method.sharing=unique"],
        "r=64": [vera, "method.rank=64"],
        **{f"lora {rank}": ["method=lora", f"method.rank={rank}"] for rank in (1, 2)},
    }
    found = {}
    for name, overrides in parts.items():
        cell = compose([*digits, *overrides]).cell_id[:8]
        paths = [
            ROOT / "results" / "runs" / f"digits_vit--digits--{overrides[0][7:]}--{cell}--s{seed}.json" for seed in range(5)
        ]
        found[name] = [100 * json.loads(path.read_text())["scores"]["best"]["metrics"]["accuracy"] for path in paths]
    pairs = [("both", "only d"), ("both", "only b"), ("both", "1.0"), ("1e-7", "1.0"), ("both", "unique")]
    pairs += [("r=64", "lora 1"), ("both", "lora 2")]
    of_pairs = [stdev(a - b for a, b in zip(found[one], found[other], strict=True)) for one, other in pairs]
    alone = [stdev(scores) for scores in found.values()]
    said = (f"({min(of):.0f} to {max(of):.0f}" for of in (of_pairs, alone))
    assert (
        next(said) + ";" in text
        and f"one method spread by {next(said)[1:]} here" in text
        and f"{mean(of_pairs):.0f} points, as" in text
    )


def test_the_small_gpt2_s_figures_and_the_short_search_are_as_the_pages_say():
    (said,) = re.findall(
        r"median BLEU ([\d.]+); LoRA ([\d.]+), VeRA ([\d.]+), AdapterL ([\d.]+)\)", prose(ROOT / "docs" / "e2e.md")
    )
    lines = tables()["e2e_mini"].splitlines()
    rows = {
        line.split("|")[1].split()[0]: line.split("|")[3].partition("±")[0].strip()
        for line in lines
        if "±" in line and line[0] == "|"
    }
    assert said == tuple(rows[name] for name in ("Full", "LoRA", "VeRA", "AdapterL"))
    found: dict[tuple[float, int], list[str]] = {}
    for path in (ROOT / "results" / "tune" / "runs").glob("minilm--stsb--lora--*.json"):
        run = json.loads(path.read_text())
        train, score = run["run"]["config"]["train"], run["scores"]["best"]["metrics"]["pearson"]
        found.setdefault((train["lr"], train["max_steps"]), []).append("–" if score is None else f"{score:.3f}")
    text = " ".join(prose(ROOT / "docs" / "tuning.md").split())
    short = re.search(r"200 steps would have chosen 3e-3 for LoRA \((\S+), against (\S+) at 1e-3\)", text).groups()
    long = re.search(r"which falls to (\S+) in 720 steps, where 1e-3 reaches (\S+)\.", text).groups()
    for steps, values in ((200, short), (720, long)):
        assert all(value in found[lr, steps] for lr, value in zip((3e-3, 1e-3), values, strict=True))


def test_the_readme_is_short_and_every_page_is_in_the_site():
    assert len(prose(ROOT / "README.md").splitlines()) <= 150
    site = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in site] == []


@pytest.mark.parametrize("task", ["mrpc", "cola", "rte", "stsb"])
@pytest.mark.parametrize("method", ["full", "head", "bitfit", "adapter_h", "ia3", "lora_fa", "lora", "vera"])
def test_minilm_has_the_rates_that_each_task_s_own_search_prefers(method, task):
    """As the README and the note of glue_minilm say."""
    key, chosen = "head_lr" if method == "head" else "lr", compose(["model=minilm", f"task={task}", f"method={method}"]).train
    folder = ROOT / "results" / "tune" / "runs"
    runs = [json.loads(path.read_text()) for path in folder.glob(f"minilm--{task}--{method}--*.json")]
    usual = compose(["model=minilm", f"task={task}", f"method={method}"]).method
    runs = [run for run in runs if run["run"]["config"]["method"].get("rank") == usual.get("rank")]  # LoRA has others
    steps = max(run["run"]["config"]["train"]["max_steps"] or 0 for run in runs)
    scored = {
        run["run"]["config"]["train"][key]: run["scores"]["best"]["metrics"][run["scores"]["primary"]]
        for run in runs
        if run["run"]["config"]["train"]["max_steps"] == steps and "collapsed" not in run
    }
    assert len(scored) >= 2 and scored[getattr(chosen, key)] == max(scored.values())


@pytest.mark.parametrize("page", ["README.md", "docs/runs.md", "docs/offline.md"])
def test_the_commands_for_runs_compose(page):
    """The first run of each: of several values the first; with what stands for a path of the reader's own."""
    text = prose(ROOT / page)
    for made in re.findall(r"make task NAME=(\w+)", text):  # by the reader, just above
        text = text.replace(f"task={made} ", "task=sick ")
    commands = re.findall(r"^    python scripts/train\.py (.*?)(?: {2,}#.*)?$", text, re.MULTILINE)
    assert commands
    for command in commands:
        words = [word for word in command.split() if "=" in word and not word.startswith(("sweep=", "hydra"))]
        run = compose([re.sub(r"=(\w+),.*", r"=\1", word) for word in words])
        assert run.cell_id


def test_what_make_task_is_shown_to_write_is_not_there_and_records_that_are_named_are():
    for page in PAGES:
        text = prose(page)
        for made in re.findall(r"make task NAME=(\w+)", text):
            assert made not in choices("task"), f"{page.name}: {made}"
        for named in re.findall(r"results/runs/[a-z]\w*--[\w-]+\.json", text):
            assert (ROOT / named).is_file(), f"{page.name}: {named}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_is_to_a_file(page):
    """Where mkdocs is not installed, too: the site refuses a link to a folder."""
    links = re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_the_site_builds_and_every_link_of_it_is_found(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    api = (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
    assert all(f'id="vera.nn.{name}"' in api for name in ("inject.attach", "bank.AdapterBank.use", "config.VeraConfig"))


def shown_rows(page):
    """The rows of a page's tables that hold a score with its spread."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in prose(page).splitlines() if line[:2] == "| "]
    return [cells for cells in lines if any("±" in cell for cell in cells)]


def rows_in(name, width):
    """The rows of a table of results by their first cell, or cells."""
    lines = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in tables()[name].splitlines() if line[:2] == "| "
    ]
    return {tuple(cells[:width]) if width > 1 else cells[0]: cells[width:] for cells in lines}


def said_of_all_pairs(text, tests):
    """VeRA - LoRA on each task, of as many seeds as the table says, and what is said of it all."""
    of_all = {task: row for (task, *pair), row in tests.items() if pair == ["VeRA r=256 - LoRA r=8, all pairs"]}
    assert list(of_all) == ["MRPC", "CoLA", "RTE", "STS-B"]
    for task, (count, difference, *_) in of_all.items():
        assert re.search(rf"{re.escape(difference)} (points )?on {task} \(n={count}\)", text), task
    ranges = {task: [float(end) for end in re.search(r"\[(.*), (.*)\]", row[1]).groups()] for task, row in of_all.items()}
    assert [task for task, (_, high) in ranges.items() if high < 0] == ["MRPC", "CoLA", "STS-B"] and ranges["STS-B"][0] > -1
    assert re.search(r": worse on three of four(?: tasks)?, on STS-B by less than a point", text)
    (average,) = (line.split(" | ") for line in tables()["claims"].splitlines() if "The same average as LoRA on six" in line)
    assert re.search(rf"average(?: of the four tasks\*\*)? is {re.escape(average[3])} ", text) and "(96.8%)" in text
    assert average[4] == "not run (not supported in miniature)" and "n=20, look 3 of 4" in average[5]


def test_the_readme_shows_the_figures_of_the_tables():
    """Every row of a table there, cell by cell, in the row of that name in a table of results; and what it says of them."""
    found = [line for name in ("digits", "glue_minilm") for line in tables()[name].splitlines()]
    shown = shown_rows(ROOT / "README.md")
    assert len(shown) == 15
    for label, *values in shown:
        rows = [line for line in found if line.startswith(f"| {label} |")]
        assert any(all(f" {value} " in row for value in values) for row in rows), f"{label}: {values}"
    text, tests = " ".join(prose(ROOT / "README.md").split()), rows_in("glue_minilm_tests", 2)
    assert "VeRA - LoRA, seed by seed over all that both have" in text
    said_of_all_pairs(text, tests)
    scores = {
        name: [float(re.match(r"[\d.]+", cell)[0]) for cell in row[1:]]
        for name, row in rows_in("glue_minilm", 1).items()
        if row[1][:1].isdigit()
    }
    probe = scores.pop("Linear probe")
    assert [name for name, row in scores.items() if row[2] >= probe[2]] == ["AdapterH"]
    assert "AdapterH's median alone reaches the linear probe on RTE, and no method's does on STS-B" in text
    assert all(row[3] < probe[3] for row in scores.values())


def test_what_the_page_says_of_held_out_rows_of_rte_is_in_the_trials():
    text = " ".join(prose(ROOT / "docs" / "minilm.md").split())
    said = r"it scores (\S+) there after 720 steps; twenty epochs end at a training loss of (\S+) and score (\S+) at best, "
    said += r"at the next higher rate (\S+) \((\S+) after 720 steps\)\. Larger ones: "
    said += r"with r=64 \((\S+) parameters\) it scores (\S+) at .*?, after which AdapterH stands "
    said += r"\(r=36, (\S+) parameters\), (\S+) at the one rate that was tried, AdapterH (\S+) at the best of four\."
    shown = re.search(said, text).groups()
    found: dict[tuple, list[dict]] = {}
    for path in (ROOT / "results" / "tune" / "runs").glob("minilm--rte--*.json"):
        run = json.loads(path.read_text())
        method, train = run["run"]["config"]["method"], run["run"]["config"]["train"]
        found.setdefault((method["name"], method.get("rank"), train["max_steps"]), []).append(run)
    assert all(run["provenance"]["eval_rows"] == 249 and run["run"]["seed"] == 100 for runs in found.values() for run in runs)

    def best(*cell, lr=None):
        runs = [run for run in found[cell] if lr in (None, run["run"]["config"]["train"]["lr"])]
        return max(runs, key=lambda run: run["scores"]["best"]["metrics"]["accuracy"])

    few, long = best("lora", 8, 720), best("lora", 8, None, lr=3e-4)
    higher = [best("lora", 8, None, lr=1e-3), best("lora", 8, 720, lr=1e-3)]
    wide, placed = best("lora", 64, 720), best("lora", 36, 720)
    assert few["run"]["config"]["train"]["lr"] == 3e-4 and long["run"]["config"]["train"]["epochs"] == 20
    assert (len(found["lora", 64, 720]), len(found["lora", 36, 720])) == (2, 1)
    (adapters,) = (cell for cell in found if cell[0] == "adapter_h")
    assert len(found[adapters]) == 4
    scores = [
        f"{100 * run['scores']['best']['metrics']['accuracy']:.1f}"
        for run in (few, long, *higher, wide, placed, best(*adapters))
    ]
    sizes = [f"{run['parameters']['adapter']:,}" for run in (wide, placed)]
    loss = f"{long['scores']['history'][-1]['train_loss']:.3f}"
    assert shown == (scores[0], loss, *scores[1:4], sizes[0], scores[4], sizes[1], *scores[5:])


def test_what_the_page_says_of_minilm_s_setting_is_what_runs_have():
    text = " ".join(prose(ROOT / "docs" / "minilm.md").split())
    assert (
        "batches of 16, at most 128 tokens, linear decay after 6% of warm-up, no weight decay, bf16 autocast also on CPUs"
        in text
    )
    assert "LoRA r=8 and alpha 16, VeRA r=256, both on query and value, AdapterH of size 64." in text
    for method, of in (("lora", {"rank": 8, "alpha": 16}), ("vera", {"rank": 256}), ("adapter_h", {"size": 64}), ("full", {})):
        for task in ("mrpc", "cola", "rte", "stsb"):
            run = compose(["model=minilm", f"task={task}", f"method={method}"])
            train = run.train
            assert (train.batch_size, run.task["max_length"], train.schedule, train.warmup_ratio) == (16, 128, "linear", 0.06)
            assert (train.weight_decay, train.head_weight_decay, train.precision) == (0, 0, "bf16")
            assert of.items() <= run.method.items() and run.method.get("targets", ["query", "value"]) == ["query", "value"]


def test_what_the_page_says_of_held_out_rows_of_sts_b_is_in_the_trials():
    text, best = " ".join(prose(ROOT / "docs" / "minilm.md").split()), {}
    for path in (ROOT / "results" / "tune" / "runs").glob("minilm--stsb--lora--*.json"):
        run = json.loads(path.read_text())
        config, score = run["run"]["config"], run["scores"]["best"]["metrics"]["pearson"]
        if config["train"]["max_steps"] == 720 and config["task"]["validation"] == 0.1 and score is not None:
            best.setdefault((config["method"]["rank"], *config["method"]["targets"]), []).append(score)
    here, there = best[8, "query", "value"], best[36, "out"]
    said = f"(r=8) it scores {100 * max(here):.1f} there after 720 steps, on `output.dense` (r=36, as large as AdapterH) "
    assert f"{said}{100 * max(there):.1f} at the better of two learning rates." in text and len(there) == 2


def test_the_page_on_minilm_says_what_the_tables_do():
    text, tests = " ".join(prose(ROOT / "docs" / "minilm.md").split()), rows_in("glue_minilm_tests", 2)
    said_of_all_pairs(text, tests)
    difference = r"(\S+ \[.*?\])"
    for pair, said in (
        (
            "VeRA r=256 - LoRA r=8",
            rf"VeRA - LoRA is {difference} points on MRPC, {difference} on CoLA and {difference} on STS-B \(n=5,",
        ),
        (
            "Full fine-tuning - LoRA r=8",
            rf"Full fine-tuning - LoRA is {difference} on MRPC, {difference} on CoLA, {difference} on RTE \(below\) and "
            rf"{difference} on STS-B\.",
        ),
    ):
        tasks = ("MRPC", "CoLA", "STS-B") if "VeRA" in pair else ("MRPC", "CoLA", "RTE", "STS-B")
        for task, shown in zip(tasks, re.search(said, text).groups(), strict=True):
            assert tests[task, pair][:2] == ["5", shown]
    assert f"On RTE it is {tests['RTE', 'VeRA r=256 - LoRA r=8'][1]}." in text
    mrpc, rte = (tests[task, "AdapterH - LoRA r=8"] for task in ("MRPC", "RTE"))
    assert f"is above LoRA by {mrpc[1]} on MRPC;" in text and f"above LoRA by {rte[1]}." in text and mrpc[0] == rte[0] == "5"
    of = rf"{difference} \(n=(\d)(?:;[^)]*)?\)"
    said = rf"instead of four change VeRA's best epoch by {of}, LoRA's by {of} and BitFit's by {of}; "
    said += r"the head alone then has (\S+) \(n=(\d)\) instead of (\S+), and one run of full fine-tuning "
    said += r"(\S+) instead of (\S+) \(both on "
    *found, alone, runs, before, full, usual = re.search(said, text).groups()
    budgets = rows_in("glue_minilm_long", 2)
    for label, shown, count in zip(("VeRA r=256", "LoRA r=8", "BitFit"), found[::2], found[1::2], strict=True):
        row = budgets[label, "12"]
        assert min(row[0], budgets[label, "4"][0], key=int) == count and row[5] == shown, row
    for label, *shown in (("Head only", alone, runs, before), ("Full fine-tuning", full, "1", usual)):
        few, many = budgets[label, "4"], budgets[label, "12"]
        assert [many[2].split()[0], many[0], few[2]] == shown
        medians = [float(re.match(r"[\d.]+", row[2])[0]) for row in (many, few)]
        assert medians[0] <= medians[1]  # as `enough` in conf/recipe/minilm.yaml says
    searched = [line.split("|") for line in tables()["search"].splitlines()]
    at_ends = [row for row in searched if len(row) > 5 and row[1].strip().endswith("_minilm") and row[4].strip() != "–"]
    assert {(row[2].strip(), row[4].rpartition(" of ")[2].strip()) for row in at_ends} == {("stsb", "the last rung")}
    assert "No chosen rate is the smallest or the largest that was tried." in text
    assert "On STS-B all four had 200 steps and the best two 720" in text
    assert "A better rate may lie beyond" not in tables()["glue_minilm"]
    table = rows_in("glue_minilm", 1)
    counts = {name: int(row[0].replace(",", "")) for name, row in table.items() if row[0][:1].isdigit()}
    scores = {
        name: dict(zip(table["Method"][1:], (float(re.match(r"[\d.]+", cell)[0]) for cell in row[1:]), strict=True))
        for name, row in table.items()
        if name != "Method"
    }
    probe, alone = scores.pop("Linear probe"), scores.pop("Head only")
    said = r"The linear probe has (\S+) on MRPC, below every method that adapts the backbone, (\S+) on CoLA, (\S+) on RTE, "
    said += r"and (\S+) on STS-B, above all\."
    assert tuple(map(float, re.search(said, text).groups())) == tuple(probe[task] for task in ("MRPC", "CoLA", "RTE", "STS-B"))
    assert alone["MRPC"] < probe["MRPC"] < min(row["MRPC"] for row in scores.values())
    assert probe["STS-B"] > max(row["STS-B"] for row in (alone, *scores.values()))
    for other in ("LoRA r=8", "VeRA r=256"):  # "BitFit is above LoRA and VeRA on MRPC and STS-B and below both on CoLA."
        assert all(scores["BitFit"][task] > scores[other][task] for task in ("MRPC", "STS-B"))
        assert scores["BitFit"]["CoLA"] < scores[other]["CoLA"]
    adapters = {name: count for name, count in counts.items() if name not in ("Full fine-tuning", "Head only")}
    assert max(adapters, key=adapters.get) == "AdapterH" and f"{adapters['AdapterH']:,} parameters" in text
    learned = sorted(
        100 * json.loads(path.read_text())["scores"]["best"]["metrics"]["matthews_correlation"]
        for path in (ROOT / "results" / "runs").glob("minilm--cola--adapter_h--*.json")
    )
    assert len(learned) == 5 and f"({learned[0]:.1f}, the others {learned[1]:.1f} to {learned[-1]:.1f})" in text
    reached = re.search(r"only method whose median reaches the probe, and does in each of five seeds: (\S+), above", text)[1]
    assert reached == table["AdapterH"][3] and f"stays at {table['Full fine-tuning'][3]}." in text
    assert "LoRA has not learned them (training loss above 0.5)" in text
    of_rte = {
        method: [
            json.loads(path.read_text()) for path in (ROOT / "results" / "runs").glob(f"minilm--rte--{method}--*--s[0-4].json")
        ]
        for method in ("full", "adapter_h", "lora")
    }
    placed = [run for run in of_rte["lora"] if run["run"]["config"]["method"]["rank"] == 36]
    of_rte["lora"] = [run for run in of_rte["lora"] if run not in placed]
    assert all(len(runs) == 5 for runs in (placed, *of_rte.values()))
    said = rf"LoRA on `output.dense` has (\S+), above LoRA on query and value by {difference}, "
    said += rf"and AdapterH is above it by {difference}\."
    by_seed = [
        [100 * run["scores"]["best"]["metrics"]["accuracy"] for run in sorted(runs, key=lambda run: run["run"]["seed"])]
        for runs in (placed, of_rte["lora"], of_rte["adapter_h"])
    ]
    here, usual, theirs = by_seed
    found = [f"{median(here):.1f}±{stdev(here):.1f}"]
    for one, other in ((here, usual), (theirs, here)):
        gaps = [a - b for a, b in zip(one, other, strict=True)]
        low, high = stats.t.interval(0.95, 4, mean(gaps), stats.sem(gaps))
        found.append(f"{mean(gaps):+.1f} [{low:+.1f}, {high:+.1f}]")
    assert list(re.search(said, text).groups()) == found
    assert all(run["scores"]["history"][-1]["train_loss"] < 0.05 for run in of_rte["full"])
    assert all(run["scores"]["history"][-1]["train_loss"] > 0.5 for run in of_rte["lora"])
    assert all(100 * run["scores"]["best"]["metrics"]["accuracy"] > probe["RTE"] for run in of_rte["adapter_h"])

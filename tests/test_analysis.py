"""Weight differences of saved adapters equal those of the trained model; norms and cosines against written-out values."""

import json
import math
import shutil

import pytest
import torch

from experiments.artefacts import figure3_magnitudes, figure5_similarity
from experiments.engine import analysis as measurements
from experiments.engine import by_layer
from experiments.engine.claims import stated
from experiments.engine.rows import Asked
from vera.commands import run as command
from vera.config import compose as compose_run
from vera.errors import AdapterError
from vera.run import execute, prepare
from vera.trained import adapters


@pytest.fixture
def trained(compose, tmp_path):
    """trained("vera", ...) -> backbone, method and the folder of its adapter, with random values in it."""

    def make(method, *overrides):
        backbone, built, _, _ = prepare(compose(f"method={method}", *overrides))
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in backbone.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        folder = tmp_path / method
        built.save(backbone, folder)
        return backbone, built, folder

    return make


@pytest.mark.parametrize(
    ("method", "overrides"), [("vera", ["method.rank=5"]), ("vera", ["method.init=uniform_0_0.1"]), ("lora", ["method.rank=3"])]
)
def test_weight_differences_are_those_of_the_merged_model(method, overrides, trained):
    backbone, built, folder = trained(method, *overrides)
    found = adapters.weight_differences(folder)
    layers = {path: backbone.model.get_submodule(path) for path in found}
    before = {path: layer.weight.detach().clone() for path, layer in layers.items()}
    with built.merged(backbone):
        for path, difference in found.items():
            torch.testing.assert_close(before[path] + difference, layers[path].weight.data, rtol=1e-5, atol=1e-5)
            assert difference.abs().max() > 0
    assert len(found) == 4  # query and value of two layers


@pytest.mark.parametrize("method", ["rslora", "pissa", "olora", "dora"])
def test_a_lora_of_another_formula_is_refused(method, trained):
    _, _, folder = trained(method)
    with pytest.raises(AdapterError, match=f"{method}: W - W0 is not .* with (use_rslora|use_dora|init_lora_weights)="):
        adapters.weight_differences(folder)


def test_ranks_of_their_own_are_refused(trained):
    _, _, folder = trained("lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    for key in ("rank_pattern", "alpha_pattern"):
        (folder / "adapter_config.json").write_text(json.dumps({**config, key: {"query": 3}}))
        with pytest.raises(AdapterError, match=key):
            adapters.weight_differences(folder)


def test_trained_vectors(trained):
    backbone, _, folder = trained("vera", "method.rank=5")
    vectors = adapters.trained_vectors(folder)
    parameters = dict(backbone.model.named_parameters())
    for path, (b, d) in vectors.items():
        assert torch.equal(d, parameters[f"{path}.vectors.default.d"]) and torch.equal(
            b, parameters[f"{path}.vectors.default.b"]
        )


def test_what_cannot_be_read_is_refused_in_one_line(trained, tmp_path):
    _, _, unique = trained("vera", "method.sharing=unique")
    with pytest.raises(AdapterError, match="for one shared pair of matrices"):
        adapters.weight_differences(unique)
    with pytest.raises(AdapterError, match="no adapter here"):
        adapters.weight_differences(tmp_path / "none")
    _, _, lora = trained("lora")
    with pytest.raises(AdapterError, match="holds no VeRA adapter"):
        adapters.trained_vectors(lora)
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "OFT"}))
    with pytest.raises(AdapterError, match=r"neither a VeRA nor a LoRA adapter .*'OFT'"):
        adapters.weight_differences(lora)
    (lora / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterError, match="no readable adapter"):
        adapters.weight_differences(lora)


def test_other_random_matrices_are_noticed(trained):
    _, _, folder = trained("vera")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "projection_prng_key": 99}))
    with pytest.raises(AdapterError, match="not those of the training"):
        adapters.weight_differences(folder)


def test_layers_are_in_the_order_of_their_numbers():
    names = [f"encoder.layer.{layer}.attention.{name}" for layer in (10, 2, 0) for name in ("value", "query")]
    found = adapters.by_target(names, {"query": ["query", "q_proj"], "key": "key", "value": "value"})
    assert list(found) == ["query", "value"]
    assert found["query"] == [f"encoder.layer.{layer}.attention.query" for layer in (0, 2, 10)]


def test_rows_by_layer_show_both_series_and_the_first_less_the_second():
    query, value = [[1.0, 5.0], [2.0, 7.0], [3.0, 6.0]], [[0.0, 8.0], [1.0, 8.0], [2.0, 8.0]]  # three seeds, two layers
    assert by_layer.rows([query, value], 1) == [
        ["0", "2.0±1.0 (n=3)", "[1.0, 3.0]", "1.0±1.0 (n=3)", "[0.0, 2.0]", "+1.0 [+1.0, +1.0]"],
        ["1", "6.0±1.0 (n=3)", "[5.0, 7.0]", "8.0±0.0 (n=3)", "[8.0, 8.0]", "-2.0 [-4.5, +0.5]"],
    ]


def test_cosine():
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert adapters.cosine(a, a) == pytest.approx(1) and adapters.cosine(a, -3 * a) == pytest.approx(-1)
    assert adapters.cosine(a, b) == pytest.approx(math.sqrt(0.5))
    first, again, other = (adapters.random_matrix(torch.Size([64, 64]), 0, layer) for layer in (1, 1, 2))
    assert torch.equal(first, again) and abs(adapters.cosine(first, other)) < 0.1


def analyse(monkeypatch, *arguments):
    return command("analyse", [*map(str, arguments)])


def test_from_runs_to_figures_3_and_5(compose, tmp_path, monkeypatch, capsys, caplog, drawn_twice):
    rehearsal = ["scale=rehearsal", "device=cpu", "progress=false", "train.max_steps=2"]
    where = ["--results", tmp_path / "results", "--work", tmp_path / "work"]
    flags = [part for override in rehearsal for part in ("--with", override)]
    assert analyse(monkeypatch, "figure5_mini", *where, *flags) == 1
    assert "no saved adapter of digits_vit--digits--vera--" in capsys.readouterr().err
    for method in ("vera", "lora"):
        for seed in (0, 1):
            run = compose(f"method={method}", "method.rank=64", f"seed={seed}", "train.save=true", "train.max_steps=2")
            execute(run)
    assert analyse(monkeypatch, "figure3_mini", "figure5_mini", *where, *flags) == 0
    norms, cosines = (measurements.read(f"{name}_mini", tmp_path / "results") for name in ("figure3", "figure5"))
    assert norms["seeds"] == cosines["seeds"] == [0, 1] and norms["initial"] == pytest.approx(0.8)
    assert {target: len(values) for target, values in norms["norms"].items()} == {"query": 2, "value": 2}
    folder = tmp_path / "work" / norms["runs"][1] / "best"
    vectors = adapters.trained_vectors(folder)
    second_value = [d for path, (_, d) in vectors.items() if ".1." in path and path.endswith(("value", "v_proj"))]
    assert norms["norms"]["value"][1][1] == pytest.approx(second_value[0].norm().item(), abs=1e-5)
    assert all(-1 <= value <= 1 for series in ("lora_vera", "lora_random") for seed in cosines[series] for value in seed)
    assert len(cosines["runs"]) == 4 and str(tmp_path) not in json.dumps([norms, cosines])

    asked = Asked({}, results=tmp_path / "results")
    assert "measured with scale=rehearsal" in figure3_magnitudes.build(asked)[1].notes[-1]
    checks = {"query_moves_more": figure3_magnitudes._magnitudes, "similar_to_lora": figure5_similarity._similar}
    for claim in (claim for claim in stated() if claim.id in checks):
        assert {line.reading for line in checks[claim.id](claim, asked)} == {"not run"}  # a rehearsal decides none
    for module, name in ((figure3_magnitudes, "figure3"), (figure5_similarity, "figure5")):
        full, mini, _ = module.build(asked)
        assert full.rows == [["–"] * len(full.columns)] and len(mini.rows) >= 2 and "miniature" in mini.title
        assert {path.stem for path in drawn_twice(module.draw, asked)} == {f"{name}_mini"}

    gone = [tmp_path / "work" / cosines["runs"][index] for index in (0, 1)]  # those of seed 0
    for folder in gone:
        shutil.rmtree(folder)
    assert analyse(monkeypatch, "figure3_mini", "figure5_mini", *where, *flags) == 0
    again = [measurements.read(f"{name}_mini", tmp_path / "results") for name in ("figure3", "figure5")]
    assert again == [norms, cosines]
    one = measurements.read("figure3_mini", tmp_path / "results")
    older = {key: value for key, value in one.items() if key != "trained"}  # from before it was said
    (tmp_path / "results" / "analysis" / "figure3_mini.json").write_text(json.dumps(older))
    assert analyse(monkeypatch, "figure3_mini", *where, *flags) == 0
    taken = measurements.read("figure3_mini", tmp_path / "results")
    assert taken["norms"] == one["norms"] and list(taken["trained"]) == norms["runs"][1:]  # of seed 0 nothing was compared
    other = {**one, "trained": {**one["trained"], norms["runs"][0]: "0" * 64}}
    (tmp_path / "results" / "analysis" / "figure3_mini.json").write_text(json.dumps(other))
    assert analyse(monkeypatch, "figure3_mini", *where, *flags) == 0  # seed 0 was trained again since
    assert measurements.read("figure3_mini", tmp_path / "results")["seeds"] == [1]
    assert analyse(monkeypatch, "figure3_mini", *where, *flags, "--with", "train.clip=2.0") == 1  # of which none was measured
    (tmp_path / "results" / "analysis" / "figure3_mini.json").write_text(json.dumps(norms))

    path = tmp_path / "results" / "runs" / f"{norms['runs'][0]}.json"
    content = json.loads(path.read_text())
    for changed in ({"weights": {**content["weights"], "best": "0" * 64}}, {"weights": {}}):  # trained again, and not saved
        path.write_text(json.dumps({**content, **changed}))
        for module in (figure3_magnitudes, figure5_similarity):
            caplog.clear()
            table = module.build(asked)[1]
            assert table.rows == [["–"] * len(table.columns)]
            assert f"measures what {norms['runs'][0]} was before it was trained again: scripts/analyse.py" in caplog.text
    content["provenance"]["model_fingerprint"] = "other"
    path.write_text(json.dumps(content))
    for measured in ("figure3_mini", "figure5_mini"):
        assert analyse(monkeypatch, measured, *where, *flags) == 1
        assert "these runs are of unlike backbone (" in capsys.readouterr().err


def test_measurements_name_runs_that_compose():
    from vera.config import compose as vera_compose

    for _, *choices in [*figure3_magnitudes.MEASURED.values(), *figure5_similarity.MEASURED.values()]:
        for overrides in choices:
            vera_compose(overrides)


def test_a_measurement_of_other_runs_fills_no_figure(tmp_path, caplog):
    """As after a new version of a method: its runs are no longer those that the figure is of."""
    (tmp_path / "analysis").mkdir()
    cell = compose_run(figure3_magnitudes.MEASURED["figure3_mini"][1])
    made = {"runs": [cell.run_name], "seeds": [0], "rank": 64, "initial": 1.0, "norms": {"query": [[1.0]], "value": [[2.0]]}}
    for name, shown in ((cell.run_name, True), (cell.run_name.replace(cell.cell_id[:8], "0" * 8), False)):
        (tmp_path / "analysis" / "figure3_mini.json").write_text(json.dumps({**made, "runs": [name]}))
        rows = figure3_magnitudes.build(Asked({}, results=tmp_path))[1].rows
        assert (rows[0][1] != "–") == shown
    assert "figure3_mini: analysis/figure3_mini.json measures runs of 00000000" in caplog.text
    (tmp_path / "analysis" / "figure3_mini.json").write_text(json.dumps({**made, "backbone": ["a", "b"]}))
    assert figure3_magnitudes.build(Asked({}, results=tmp_path))[1].rows[0][1] == "–"
    assert "measures runs of unlike backbones (a, b)" in caplog.text


@pytest.mark.parametrize("name", ["analyse", "rehearse"])
def test_a_results_dir_that_would_not_be_read_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        command(name, ["--with", "results_dir=elsewhere"])
    assert "results_dir= says where runs go; where they are looked for is --results" in capsys.readouterr().err

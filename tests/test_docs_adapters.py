"""docs/adapters.md: its snippets run, one after the other, with tiny models in the places of the hub's."""

import os
import re
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, RobertaConfig

from tests.conftest import REHEARSAL, ROOT

PAGE = (ROOT / "docs" / "adapters.md").read_text()


def snippets(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.filterwarnings("ignore")
def test_the_python_snippets_run_in_their_order(tmp_path, monkeypatch):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    AutoModelForSequenceClassification.from_config(RobertaConfig(**sizes, num_labels=3)).save_pretrained(
        tmp_path / "roberta-base"
    )
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)
    AutoModelForCausalLM.from_config(gpt2).save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for snippet in snippets("python"):
        exec(compile(snippet, "docs/adapters.md", "exec"), namespace)
    assert {p.name for p in (tmp_path / "adapters" / "rte").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_the_shell_snippets_run(tmp_path, cache, script):
    """Bash reads each line; what it calls `python` with is run by the fork server."""
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path / "called"}\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    for lines in map(str.splitlines, snippets("sh")):
        for number, line in enumerate(lines, start=1):
            subprocess.run(["bash", "-e", "-c", "\n".join(lines[:number])], cwd=tmp_path, env=environment, check=True)
            if line.startswith("python scripts/"):
                name, *arguments = (tmp_path / "called").read_text().splitlines()
                more = [*REHEARSAL, "results_dir=results", "train.save=true"] if name == "scripts/train.py" else []
                done = script(os.path.basename(name), *arguments, *more, f"cache_dir={cache}", cwd=tmp_path)
                assert done.returncode == 0, done.stdout + done.stderr
    assert "LoRA of rank" in done.stdout and (tmp_path / "exported" / "README.md").is_file()

"""Let finished runs answer questions: MT-Bench or Vicuna Eval. The keys are those of the training, and answers=.

python scripts/answer.py model=llama_7b task=alpaca method=vera answers=mt_bench
python scripts/answer.py sweep=instruct                                             every run of a sweep
python scripts/answer.py model=llama_13b task=alpaca answers=mt_bench answers.checkpoint=none    the backbone as it is

Answers go to results_dir/answers, question by question; the same command goes on from there. scripts/judge.py grades them.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from omegaconf import DictConfig, OmegaConf
from train import main

from vera.config import RunConfig, checked, choices
from vera.errors import ConfigError


def answer(cfg: DictConfig, run: RunConfig) -> str:
    """The run's answers, computed when they are not there, as a line."""
    values = OmegaConf.to_container(cfg, resolve=True).get("answers") or {}
    if "chat" not in values:
        raise ConfigError(f"which questions? Give answers= one of {', '.join(choices('answers'))}")
    from vera.trained.answers import AnswerSettings
    from vera.trained.answers import answer as compute

    record, path, computed = compute(run, checked(AnswerSettings, values, "answers"))
    notes = [f"{record.cut} answers cut at max_new_tokens"] * bool(record.cut)
    notes += [f"{record.shortened} questions shortened"] * bool(record.shortened)
    done = f"{record.cost['seconds']:.1f} s" if computed else "already done"
    return "  ".join([f"{path}", f"{record.questions.count} questions", *notes, done])


if __name__ == "__main__":
    sys.exit(main(answer))

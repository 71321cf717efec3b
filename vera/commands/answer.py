"""Let finished runs answer questions: MT-Bench or Vicuna Eval. The keys are those of the training, and answers=.

python scripts/answer.py model=llama_7b task=alpaca method=vera answers=mt_bench
python scripts/answer.py sweep=instruct                                             every run of a sweep
python scripts/answer.py model=llama_13b task=alpaca answers=mt_bench answers.checkpoint=none    the backbone as it is

Answers go to results_dir/answers, question by question; the same command goes on from there. scripts/judge.py grades them.
"""

from omegaconf import DictConfig, OmegaConf

from vera.commands import train
from vera.config import RunConfig, checked, choices
from vera.errors import ConfigError
from vera.records import screen


def answer(cfg: DictConfig, run: RunConfig) -> str:
    """The run's answers, computed when they are not there, as a line."""
    values = OmegaConf.to_container(cfg, resolve=True).get("answers") or {}
    if "chat" not in values:
        raise ConfigError(f"which questions? Give answers= one of {', '.join(choices('answers'))}")
    from vera.trained.answers import AnswerSettings
    from vera.trained.answers import answer as compute

    with screen.counted(run.run_name, "questions answered", run.progress) as shown:
        record, path, computed = compute(run, checked(AnswerSettings, values, "answers"), shown)
    notes = [f"{record.cut} answers cut at max_new_tokens"] * bool(record.cut)
    notes += [f"{record.shortened} questions shortened"] * bool(record.shortened)
    seconds = record.cost["seconds"]
    done = "already done" if not computed else "done" if seconds is None else f"{seconds:.1f} s"
    return "  ".join([f"{path}", f"{record.questions.count} questions", *notes, done])


def main() -> int:
    return train.main(answer)

"""A trained run's beam search, batched and merged, against transformers' own call on the adapted model, token by token.

python tests/system/decoding.py model=gpt2_mini task=e2e method=vera seed=0 task.data_dir=/path/to/e2e
python tests/system/decoding.py --prompts 300 ...     how many of the test inputs (default: all)
python tests/system/decoding.py --searches ...        transformers' search against Hu et al.'s: what differs, and both scored

n-gram blocking is off in both: transformers' own forbids copies out of the prompt, the task's does not. The calls are timed in
turns, a batch each.
"""

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vera.config import build, compose
from vera.errors import VeraError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as given to train.py")
    parser.add_argument("--prompts", type=int, default=None, help="how many of the test inputs")
    parser.add_argument("--searches", action="store_true", help="compare the two searches of task.decoding.search")
    parser.add_argument("--batch", type=int, default=16, help="prompts at a time (default: 16)")
    options = parser.parse_args()
    try:
        return (searches if options.searches else compare)(options)
    except VeraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def compare(options: argparse.Namespace) -> int:
    import torch
    from transformers import GenerationConfig

    from vera.models.decoding import generate_ids
    from vera.trained.answers import load_trained

    run = compose(options.overrides)
    task = build(run.task, "task")
    backbone, method = load_trained(run)
    backbone.model.eval()
    prompts = list(task.load(backbone, run.seed).prompts)[: options.prompts]
    prompts.sort(key=len)
    decoding = task.decoding.model_copy(update={"no_repeat_ngram": 0})
    end = backbone.preprocess.eos_token_id
    settings = GenerationConfig(
        num_beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=end,
        pad_token_id=backbone.preprocess.pad_token_id,
        do_sample=False,
    )

    @torch.inference_mode()
    def theirs(batch: list[list[int]]) -> list[list[int]]:
        """transformers' call as its users make it."""
        inputs = backbone.preprocess.pad({"input_ids": batch}, padding_side="left", return_tensors="pt", verbose=False)
        rows = backbone.model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    alike, batched, single = 0, [], []
    for start in range(0, len(prompts), options.batch):
        batch = prompts[start : start + options.batch]
        times = [time.perf_counter()]
        with method.merged(backbone):
            ours = generate_ids(backbone, batch, decoding, options.batch)
        times.append(time.perf_counter())
        one_by_one = [row for prompt in batch for row in theirs([prompt])]
        times.append(time.perf_counter())
        theirs(batch)
        times.append(time.perf_counter())
        own, alone, together = (after - before for before, after in pairwise(times))
        alike += sum(a == b for a, b in zip(ours, one_by_one, strict=True))
        single.append(own / alone)
        batched.append(own / together)
    print(f"{alike} of {len(prompts)} outputs are the same, token by token ({run.run_name}, {decoding.beams} beams)")
    print(f"time, ours in batches of {options.batch} / transformers one by one: {statistics.median(single):.2f} (median)")
    print(f"time, ours / transformers in the same batches: {statistics.median(batched):.2f} (median)")
    return 0 if alike == len(prompts) else 1


def searches(options: argparse.Namespace) -> int:
    """Both searches with the task's own settings on every k-th input, and their scores."""
    from vera.models.decoding import generate
    from vera.tasks.e2e_metrics import METRICS, NIST_PY, compute
    from vera.trained.answers import load_trained

    run = compose(options.overrides)
    task = build(run.task, "task")
    backbone, method = load_trained(run)
    backbone.model.eval()
    data = task.load(backbone, run.seed)
    every = -(-len(data.prompts) // (options.prompts or len(data.prompts)))
    prompts, references = list(data.prompts)[::every], list(data.references)[::every]
    texts = {}
    for search in ("transformers", "hu2022"):
        decoding = task.decoding.model_copy(update={"search": search})
        with method.merged(backbone):
            texts[search] = [" ".join(text.split()) for text in generate(backbone, prompts, decoding, options.batch)]
    differing = sum(a != b for a, b in zip(*texts.values(), strict=True))
    print(f"{differing} of {len(prompts)} texts differ ({run.run_name}, {task.decoding.beams} beams)")
    for search, written in texts.items():
        scores = compute(written, references)
        print(f"{search}: " + ", ".join(f"{name} {scores[name]:.4f}" for name in (*METRICS, NIST_PY) if name in scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())

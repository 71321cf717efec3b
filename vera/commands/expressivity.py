"""Figure 6 (appendix E): how well LoRA's and VeRA's parametrisations fit random 10 x 10 matrices.

python scripts/expressivity.py            a minute or two on one core; writes results/analysis/figure6.json

LoRA fits M by P Q with P [10, r], Q [r, 10]: 20 r parameters. VeRA fits it by X diag(d) Y diag(b) with X [10, r] and Y [r, 10]
random and frozen, as the figure's legend has it: r + 10 parameters. The paper says neither how it fits nor how many matrices.
Here each parametrisation gets its own best: LoRA the truncated singular value decomposition, which no other P Q beats (Eckart
and Young), VeRA the best of several Levenberg-Marquardt fits, which may still miss its best. Where this is unfair, it is to
VeRA.
"""

import json

import numpy as np
from scipy.optimize import least_squares

from vera.commands import ROOT, parser_of, whole
from vera.io.files import write_atomic

SIZE = 10
LORA_RANKS = (1, 2, 3, 4, 5, 6, 8, 10)
VERA_RANKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90)
STEPS = (
    100  # of one fit; ten times as many lower the best error by less than a hundredth of itself (one matrix, ranks 10 to 90)
)
SAME = 1e-4  # fits whose mean squared errors differ by less have found the same minimum


def lora_errors(M: np.ndarray) -> dict[int, float]:
    """Mean squared error of the best P Q of every rank: the singular values that it leaves out."""
    squares = np.linalg.svd(M, compute_uv=False) ** 2
    return {rank: float(squares[rank:].sum() / M.size) for rank in LORA_RANKS}


def vera_error(M: np.ndarray, rank: int, draws: np.random.Generator, starts: int) -> tuple[float, int]:
    """Mean squared error of X diag(d) Y diag(b) for one random pair X, Y: the best start's, and how many starts reached it."""
    X, Y = draws.uniform(-1, 1, (SIZE, rank)), draws.uniform(-1, 1, (rank, SIZE))

    def residual(v):
        return ((X * v[:rank]) @ Y * v[rank:] - M).ravel()

    def jacobian(v):
        d, b = v[:rank], v[rank:]
        by_d = X[:, None, :] * (Y * b).T[None, :, :]  # [row, column, k]
        by_b = ((X * d) @ Y)[:, :, None] * np.eye(SIZE)[None, :, :]  # [row, column, column of b]
        return np.concatenate([by_d, by_b], axis=2).reshape(M.size, rank + SIZE)

    errors = []
    for _ in range(starts):
        fit = least_squares(residual, draws.standard_normal(rank + SIZE), jacobian, method="lm", max_nfev=STEPS)
        errors.append(2 * fit.cost / M.size)
    best = min(errors)
    return float(best), sum(error - best < SAME for error in errors)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--matrices", type=whole(2), default=50, help="two or more, for their spread (default: 50)")
    parser.add_argument("--starts", type=whole(1), default=6, help="fits of VeRA for each matrix and rank (default: 6)")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--out", default=str(ROOT / "results" / "analysis" / "figure6.json"))
    options = parser.parse_args()
    lora: dict[int, list[float]] = {rank: [] for rank in LORA_RANKS}
    vera: dict[int, list[float]] = {rank: [] for rank in VERA_RANKS}
    agreeing = dict.fromkeys(VERA_RANKS, 0)
    for index in range(options.matrices):
        draws = np.random.default_rng([options.seed, index])
        M = draws.standard_normal((SIZE, SIZE))
        for rank, error in lora_errors(M).items():
            lora[rank].append(error)
        for rank in VERA_RANKS:
            error, same = vera_error(M, rank, draws, options.starts)
            vera[rank].append(error)
            agreeing[rank] += same
    found = {
        "what": "mean squared error of fitting random matrices with independent standard normal entries",
        "size": SIZE,
        "matrices": options.matrices,
        "seed": options.seed,
        "starts": options.starts,
        "steps": STEPS,
        "lora": [{"rank": r, "parameters": 2 * SIZE * r, "mse": _rounded(lora[r])} for r in LORA_RANKS],
        "vera": [
            {
                "rank": r,
                "parameters": SIZE + r,
                "mse": _rounded(vera[r]),
                "starts_at_the_best": round(agreeing[r] / options.matrices / options.starts, 3),
            }
            for r in VERA_RANKS
        ],
    }
    write_atomic(options.out, json.dumps(found, indent=None, separators=(",", ":")).replace('{"rank"', '\n{"rank"') + "\n")
    print(f"written: {options.out}")
    return 0


def _rounded(errors: list[float]) -> list[float]:
    return [round(error, 6) + 0.0 for error in errors]

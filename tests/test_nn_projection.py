"""The frozen pair: the same from the same seed, equal to PEFT's, and its counts."""

import hashlib

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, RobertaConfig

from vera.nn import VeraConfig, attach
from vera.nn.count import stored_bytes, vera_parameters
from vera.nn.inject import find_targets, target_shapes
from vera.nn.projection import Projection, draw, fingerprint


def test_pinned_values():
    """Adapter files hold a seed instead of the matrices, so these must never change."""
    A, B = draw(4, 6, 5, seed=0)
    assert A.shape == (4, 6) and B.shape == (5, 4) and A.dtype == torch.float32
    assert fingerprint(A, B) == "2bd341d416d95ad8"
    assert fingerprint(A, B) == hashlib.sha256(A.numpy().tobytes() + B.numpy().tobytes()).hexdigest()[:16]


def test_seed_zero_is_a_seed_and_seeds_differ():
    prints = {fingerprint(*draw(4, 6, 5, seed)) for seed in range(20)}
    assert len(prints) == 20
    torch.manual_seed(123)
    state = torch.get_rng_state()
    draw(4, 6, 5, 0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


@pytest.mark.parametrize(
    ("init", "mean", "std"),
    [
        ("kaiming_uniform", 0.0, (2 / 400) ** 0.5),
        ("kaiming_normal", 0.0, (2 / 400) ** 0.5),
        ("uniform_0_0.1", 0.05, 0.1 / 12**0.5),
    ],
)
def test_inits_have_the_stated_moments(init, mean, std):
    A, _ = draw(300, 400, 8, 0, init)
    assert abs(A.mean().item() - mean) < 0.002
    assert abs(A.std().item() - std) < 0.02 * std


def test_equals_peft():
    from peft.tuners.vera.model import _kaiming_init

    generator = torch.Generator().manual_seed(11)
    A, B = draw(8, 20, 30, 11)
    assert torch.equal(_kaiming_init((8, 20), generator), A)
    assert torch.equal(_kaiming_init((30, 8), generator), B)


def test_slices_are_views():
    pair = Projection(4, 10, 12, 0, "kaiming_uniform")
    A, B = pair.sliced(6, 5)
    assert A.shape == (4, 6) and B.shape == (5, 4)
    assert A.data_ptr() == pair.A.data_ptr() and B.data_ptr() == pair.B.data_ptr()


ROBERTA = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


@pytest.mark.parametrize(("size", "rank", "vera", "lora"), [("base", 1024, 43_008, 294_912), ("large", 256, 61_440, 786_432)])
def test_counts_of_table_2(size, rank, vera, lora):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(RobertaConfig(**ROBERTA[size]))
    config = VeraConfig(rank=rank, targets=("query", "value"))
    shapes = list(target_shapes(find_targets(model, config)).values())
    attach(model, config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == vera == vera_parameters(shapes, rank)
    assert sum(8 * (d_out + d_in) for d_out, d_in in shapes) == lora
    assert stored_bytes(vera) == 4 * vera


def test_unequal_shapes_share_one_pair_of_the_largest():
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=160, vocab_size=100)
        )
    attach(model, VeraConfig(rank=8, targets=("q_proj", "gate_proj", "down_proj")))
    pair = model.model.layers[0].mlp.down_proj.projections["default"]
    assert pair.A.shape == (8, 160) and pair.B.shape == (160, 8)
    assert model.model.layers[0].self_attn.q_proj.projections["default"] is pair


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_model_that_was_in_half_precision_for_a_while_has_the_seeds_pair_again(half):
    model = attach(torch.nn.ModuleDict({"q": torch.nn.Linear(6, 5)}), VeraConfig(rank=4, targets=("q",), projection_seed=9))
    A, B = draw(4, 6, 5, 9)
    pair = model["q"].projections["default"]
    for dtype in (half, torch.float32, half, torch.float64):
        model.to(dtype)
        assert torch.equal(pair.A, A.to(dtype)) and torch.equal(pair.B, B.to(dtype))


def test_the_half_precision_of_a_is_of_a_as_it_is_now():
    pair, half = Projection(4, 10, 12, 0, "kaiming_uniform"), torch.bfloat16
    for width in (10, 6):  # one cast for layers of any width
        assert torch.equal(pair.in_half(width, half), pair.A[:, :width].to(half))
    assert torch.equal(pair.in_half(10, torch.float16), pair.A.half())
    with torch.no_grad():
        pair.A.mul_(2)
    assert torch.equal(pair.in_half(10, torch.float16), pair.A.half())
    before = pair.A
    pair.A = torch.randn_like(before)
    while pair.A._version < before._version:
        pair.A.mul_(1)
    assert pair.A._version == before._version  # so that nothing but its place tells them apart
    assert torch.equal(pair.in_half(10, torch.float16), pair.A.half())

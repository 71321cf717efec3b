"""Which of PEFT's methods a yaml may name, and what it may set: an allowlist, since a record of a stranger names both.

PEFT acts on some of its settings: it imports `megatron_core`, reads files, fetches repositories. Here stands what may be set:
numbers, truth values, and words of a closed set. Everything else has the value written in CLOSED, which is passed to PEFT, so
that another release with other defaults computes the same or is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import peft
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from vera.errors import ConfigError, one_line

Setting = bool | int | float | str | None


@dataclass(frozen=True)
class Type:
    """numbers   settings that are numbers or truth values, of the kind of PEFT's own default.
    words     settings with a closed set of values.
    fixed     what this type needs and nobody may set; beside CLOSED.
    prompts   trained vectors before the text: the model is wrapped, its matrices are left alone, and nothing can be merged.
    """

    numbers: str
    words: dict[str, tuple[Setting, ...]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    prompts: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        return (*self.numbers.split(), *self.words)


# What no yaml sets, of whatever type has it. A value that is off (None, False, empty) need not stand here.
CLOSED: dict[str, Any] = {
    "bias": "none",
    "init_weights": True,
    "init_ia3_weights": True,
    "save_projection": True,
    "save_precomputed_indices": True,
    "megatron_core": "megatron.core",  # PEFT's default, read where megatron_config is given, which it never is
    "qalora_group_size": 16,  # read where use_qalora is, which it never is
    "progressbar": False,
}
COUNTED_FROM_MODEL = {"token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
OURS = {"target_modules", "feedforward_modules"}  # the harness says which matrices

# Not pissa_niter_*: what is left of W0 then follows a random decomposition that no file holds, so that no reader has it.
LORA = Type(
    "r lora_alpha lora_dropout use_rslora use_dora lora_bias",
    {"init_lora_weights": (True, "gaussian", "olora", "orthogonal", "pissa")},
)
# AdaMSS and BOFT ...: where a number only matters with a switch that is closed, the number is closed too.
TYPES: dict[str, Type] = {
    "ADAMSS": Type(
        "r num_subspaces subspace_rank use_dynamic_rank svd_threshold random_seed",
        fixed={
            **{"init_weights": "orthogonal", "use_asa": False, "asa_target_subspaces": 50, "init_warmup": 50},
            **{"final_warmup": 1000, "mask_interval": 100, "asa_importance_beta": 0.85, "asa_uncertainty_beta": 0.85},
            "asa_schedule_exponent": 3.0,
        },
    ),
    "BEFT": Type(""),
    # Other factors need an extension that PEFT compiles where there is nvcc; elsewhere it takes 1 without a word.
    "BOFT": Type("boft_block_size boft_block_num boft_dropout", {"boft_n_butterfly_factor": (1,)}),
    "C3A": Type("block_size", {"init_weights": (True, "gaussian", "kaiming_uniform", "xavier_uniform")}),
    "DEFT": Type("r init_scale para deft_dropout", {"decomposition_method": ("relu", "qr")}),
    "DELORA": Type("r delora_lambda module_dropout"),
    "FOURIERFT": Type("n_frequency scaling random_loc_seed init_weights"),
    "FROD": Type("sparse_rate regularization_alpha projection_prng_key frod_dropout"),
    "GLORA": Type(
        "r",
        {
            "config_A_B": ("lora", "vector", "constant", "none"),
            "config_C": ("lora", "vector", "none"),
            "config_D_E": ("vector", "constant", "none"),
        },
    ),
    "GRALORA": Type("r hybrid_r alpha gralora_k gralora_dropout"),
    "HIRA": Type("r hira_dropout", {"init_weights": (True, "gaussian")}),
    "HRA": Type("r apply_GS"),
    "IA3": Type(""),
    "LN_TUNING": Type(""),
    "LOHA": Type("r alpha rank_dropout module_dropout use_effective_conv2d"),
    "LOKR": Type(
        "r alpha rank_dropout module_dropout use_effective_conv2d decompose_both decompose_factor rank_dropout_scale",
        {"init_weights": (True, "lycoris")},
    ),
    "LORA": LORA,
    "MISS": Type("r mini_r miss_dropout", {"init_weights": (True, "bat", "mini")}),
    "OFT": Type("r oft_block_size module_dropout coft eps block_share use_cayley_neumann num_cayley_neumann_terms"),
    "OSF": Type("effective_rank"),
    "PEANUT": Type("r depth scaling", {"act_fn": ("relu", "gelu", "silu", "tanh")}),
    "PREFIX_TUNING": Type(
        "num_virtual_tokens prefix_projection encoder_hidden_size",
        {"init_weights": (None, "zero")},
        prompts=True,
    ),
    "PROMPT_TUNING": Type("num_virtual_tokens", fixed={"prompt_tuning_init": "RANDOM"}, prompts=True),
    "PSOFT": Type(
        "r psoft_alpha psoft_dropout psoft_svd_lowrank_niter random_seed psoft_orth psoft_mag_b psoft_mag_a use_cayley_neumann"
        " num_cayley_neumann_terms cayley_neumann_eps",
        {"ab_svd_init": ("psoft_init", "pissa_init"), "psoft_svd": ("full", "lowrank")},
    ),
    "PVERA": Type("r d_initial projection_prng_key pvera_dropout"),
    "P_TUNING": Type(
        "num_virtual_tokens encoder_hidden_size encoder_num_layers encoder_dropout",
        {"encoder_reparameterization_type": ("MLP", "LSTM")},
        prompts=True,
    ),
    "RANDLORA": Type("r randlora_alpha randlora_dropout sparse very_sparse projection_prng_key"),
    "ROAD": Type("group_size", {"variant": ("road_1", "road_2", "road_4")}),
    "SHIRA": Type("r random_seed", fixed={"mask_type": "random"}),
    "SUPERTUNING": Type("sparsity select_top r lora_alpha lora_dropout"),
    "TINYLORA": Type("r u weight_tying projection_seed init_v_bound tinylora_dropout"),
    "UNILORA": Type("r theta_d_length proj_seed init_theta_d_bound unilora_dropout"),
    "VBLORA": Type("r num_vectors vector_length topk init_vector_bank_bound init_logits_std vblora_dropout"),
    "VERA": Type("r d_initial projection_prng_key vera_dropout"),
    "WAVEFT": Type(
        "n_frequency scaling use_idwt random_loc_seed proportional_parameters init_weights",
        {"wavelet_family": ("db1", "db2", "db4", "sym2", "coif1")},
    ),
}
# Where PEFT's default None draws anew each time, or is refused.
NEVER_NULL = {"random_seed", "num_virtual_tokens"}


def check_names(kind: str, settings: Iterable[str], where: str) -> None:
    """Raises ConfigError for a setting of PEFT's that a yaml does not give."""
    known = TYPES[kind].settings
    if odd := [name for name in settings if name not in known]:
        allowed = f"allowed for {kind}: {', '.join(known) or 'none'}"
        raise ConfigError(f"{where}.{odd[0]} cannot be set by a yaml; {allowed}")


def config_of(kind: str, settings: dict[str, Setting], where: str, **ours: Any) -> PeftConfig:
    """PEFT's config of a type of TYPES with `settings`, each of which must be given. Raises ConfigError naming the setting."""
    check_names(kind, settings, where)
    known = TYPES[kind]
    made = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[kind]]
    defaults = _defaults(made)
    for name, value in settings.items():
        _check(name, value, known, defaults, where)
    missing = [name for name in known.settings if name not in settings]
    if missing:
        line = ", ".join(f"{name}: {_yaml(settings.get(name, defaults.get(name)))}" for name in known.settings)
        raise ConfigError(
            f"{where} lacks {', '.join(missing)}: a yaml gives all that decides, so that no release of PEFT does; "
            f"with PEFT's own values settings: {{{line}}}"
        )
    closed = {**{name: value for name, value in CLOSED.items() if name in defaults}, **known.fixed}
    closed = {name: value for name, value in closed.items() if name not in settings}
    inherited = {f.name for f in fields(PeftConfig)}
    for name, value in defaults.items():
        if name in settings or name in closed or name in inherited | OURS | COUNTED_FROM_MODEL:
            continue
        if value not in (None, False) and value != {} and value != [] and not _is_off(name, value):
            raise ConfigError(
                f"PEFT {peft.__version__} gives {kind} a setting that this project does not know, {name}={value!r}; "
                "say in vera/methods/peft_types.py what it is to be"
            )
    given = {name: value for name, value in ours.items() if name in defaults}
    try:
        return made(**settings, **closed, **given)
    except (TypeError, ValueError, ImportError, NotImplementedError) as error:
        raise ConfigError(f"{where}: PEFT {peft.__version__} refuses them for {kind}: {one_line(error)}") from None


def _is_off(name: str, value: Any) -> bool:
    """A nested configuration of something that only a CUDA machine with a switch set would read."""
    return name == "runtime_config" and not any(vars(value).values())


def _defaults(made: type[PeftConfig]) -> dict[str, Any]:
    plain = made(**({"target_modules": []} if "target_modules" in {f.name for f in fields(made)} else {}))
    return {f.name: getattr(plain, f.name) for f in fields(made)}


def _check(name: str, value: Setting, known: Type, defaults: dict[str, Any], where: str) -> None:
    if name in known.words:
        allowed = known.words[name]
        if not any(type(value) is type(word) and value == word for word in allowed):
            raise ConfigError(f"{where}.{name} must be one of {', '.join(map(_yaml, allowed))}; got {value!r}")
        return
    default = defaults.get(name)
    if default is None:
        kinds: tuple[type, ...] = (int, float) if name in NEVER_NULL else (int, float, type(None))
    else:
        kinds = {bool: (bool,), int: (int,), float: (int, float)}[type(default)]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join({bool: "true or false", int: "a whole number", float: "a number"}.get(k, "null") for k in kinds)
        raise ConfigError(f"{where}.{name} must be {wanted}; got {value!r}")


def _yaml(value: Any) -> str:
    """A value as a yaml has it."""
    return json.dumps(value) if isinstance(value, (bool, type(None))) else str(getattr(value, "value", value))

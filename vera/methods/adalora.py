"""AdaLoRA (Zhang et al. 2023) through PEFT: W0 + P diag(E) Q, with the ranks dealt out among the matrices as training goes."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from pydantic import Field, PrivateAttr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from vera.errors import ModelError
from vera.io.files import read_json
from vera.methods import fused
from vera.methods.peft import ADAPTER, CONFIG_FILE, PeftMethod, stored_name

SCORES = ("exp_avg_ipt", "exp_avg_unc")  # PEFT's smoothed importance and its uncertainty


class AdaLora(PeftMethod):
    """Starts with initial_rank triplets in each matrix and prunes the least important until rank a matrix are left on average.

    warmup, final  parts of the run before the pruning starts and after it has ended; between them the budget falls cubically.
    interval       steps between two prunings.
    beta1, beta2   smoothing of importance and of its uncertainty.
    orthogonal     weight of the penalty that keeps P and Q orthogonal (their gamma).

    The counted parameters are those of initial_rank, which are the ones trained; the adapter file holds the triplets left.
    """

    rank: int = Field(ge=1)
    initial_rank: int = Field(ge=2)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    warmup: float = Field(ge=0, lt=1)
    final: float = Field(ge=0, lt=1)
    interval: int = Field(ge=1)
    beta1: float = Field(gt=0, lt=1)
    beta2: float = Field(gt=0, lt=1)
    orthogonal: float = Field(ge=0)

    _tuner: AdaLoraModel | None = PrivateAttr(None)  # PEFT keeps scores and schedule in the object that it wraps a model in

    @field_validator("initial_rank")
    @classmethod
    def _something_to_prune(cls, initial_rank: int, info: ValidationInfo) -> int:
        if initial_rank <= info.data.get("rank", 0):
            raise PydanticCustomError("nothing_to_prune", "must be larger than rank={rank}", {"rank": info.data["rank"]})
        return initial_rank

    @field_validator("final")
    @classmethod
    def _time_to_prune(cls, final: float, info: ValidationInfo) -> float:
        if final + info.data.get("warmup", 0) >= 1:
            message = "with warmup={warmup} no part of the run is left for the pruning"
            raise PydanticCustomError("no_time_to_prune", message, {"warmup": info.data["warmup"]})
        return final

    def peft_config(self, backbone, model_config):
        return AdaLoraConfig(
            target_r=self.rank,
            init_r=self.initial_rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            deltaT=self.interval,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orthogonal,
            total_step=1,  # the run's own numbers come with its steps
            target_modules=list(self.modules(backbone, model_config)),
        )

    def put_on(self, backbone, config):
        self._tuner = AdaLoraModel(backbone.model, config, ADAPTER)
        for layer in self.layers(backbone).values():
            layer.ranknum[ADAPTER].requires_grad_(False)  # a constant of the scaling; trainable on the meta device otherwise

    def after_step(self, backbone, step, total):
        if total < 2:  # PEFT prunes after at least one step of scoring
            return
        config = self._tuner.peft_config[ADAPTER]
        config.total_step = total
        config.tinit = int(self.warmup * total)
        config.tfinal = min(int(self.final * total), total - 2)
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)  # torch.kthvalue's index is not on a GPU; its value, which PEFT takes, is
        try:
            self._tuner.update_and_allocate(step + 1)
        finally:
            torch.use_deterministic_algorithms(deterministic)

    def penalty(self, backbone):
        """gamma times the mean over all P and Q of || P'P - I || or || Q Q' - I || (Frobenius)."""
        if not self.orthogonal:
            return None
        factors = [layer.lora_A[ADAPTER] for layer in self.layers(backbone).values()]
        factors += [layer.lora_B[ADAPTER].T for layer in self.layers(backbone).values()]
        norms = [
            torch.linalg.matrix_norm(factor @ factor.T - torch.eye(len(factor), device=factor.device)) for factor in factors
        ]
        return self.orthogonal * torch.stack(norms).mean()

    def state(self, backbone):
        scores = {
            f"{kind}/{name}": tensor.to("cpu").contiguous()
            for kind in SCORES
            for name, tensor in getattr(self._tuner.rankallocator, kind).items()
        }
        return scores | {f"kept/{name}": torch.tensor(kept) for name, kept in self._pattern().items()}

    def restore_state(self, backbone, tensors):
        allocator, parameters = self._tuner.rankallocator, dict(backbone.model.named_parameters())
        allocator.reset_ipt()
        pattern = {}
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            if kind == "kept":
                pattern[name] = tensor.tolist()
            else:
                getattr(allocator, kind)[name] = tensor.to(parameters[name].device)
                allocator.ipt[name] = torch.zeros_like(parameters[name])  # PEFT asks for it, then overwrites it
        self._tuner.peft_config[ADAPTER].rank_pattern = pattern or None

    def _pattern(self) -> dict[str, list[bool]]:
        """Which triplets are left, by the name of a layer's lora_E; empty before the first pruning."""
        return self._tuner.peft_config[ADAPTER].rank_pattern or {}

    def saved(self, backbone):
        tensors, changes = super().saved(backbone)
        left = {}
        for name, kept in self._pattern().items():
            # Between two prunings a pruned triplet may have grown again.
            rows = torch.tensor(kept) | (tensors[name].flatten() != 0)
            left[stored_name(name)] = rows.tolist()
            for part, dim in (("lora_E", 0), ("lora_A", 0), ("lora_B", 1)):
                key = name.replace("lora_E", part)
                tensors[key] = tensors[key].index_select(dim, rows.nonzero().flatten()).contiguous()
        pattern = fused.together(backbone.model, {name: torch.tensor(rows) for name, rows in left.items()})
        return tensors, {**changes, "rank_pattern": {name: rows.tolist() for name, rows in pattern.items()} or None}

    def whole(self, stored, folder):
        """Zeros in the place of the triplets that were pruned."""
        whole = dict(stored)
        for name, kept in _rank_pattern(folder).items():
            for key, dim in ((name, 0), (name[:-1] + "A", 0), (name[:-1] + "B", 1)):
                if key not in stored or stored[key].shape[dim] != int(kept.sum()):
                    raise ModelError(f"{folder / CONFIG_FILE}: rank_pattern does not fit the tensors of {key}")
                shape = list(stored[key].shape)
                shape[dim] = len(kept)
                whole[key] = stored[key].new_zeros(shape).index_copy_(dim, kept.nonzero().flatten(), stored[key])
        return whole

    def load(self, backbone, model_config, folder):
        super().load(backbone, model_config, folder)
        pattern = fused.apart(backbone.model, _rank_pattern(folder), folder / CONFIG_FILE)
        by_stored = {stored_name(name): name for name, _ in backbone.model.named_parameters()}
        kept = {by_stored[name]: rows.tolist() for name, rows in pattern.items()}
        self._tuner.peft_config[ADAPTER].rank_pattern = kept or None


def _rank_pattern(folder: Path) -> dict[str, Tensor]:
    """Which triplets an adapter file holds, [r] by a layer's lora_E; {} when nothing was pruned. Raises ModelError."""
    path = folder / CONFIG_FILE
    try:
        pattern = read_json(path.read_bytes()).get("rank_pattern") or {}
        return {name: torch.tensor(kept, dtype=torch.bool) for name, kept in pattern.items() if _is_pattern(name, kept)}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None


def _is_pattern(name: str, kept: list) -> bool:
    if not name.endswith(".lora_E") or not isinstance(kept, list) or not all(type(value) is bool for value in kept):
        raise ValueError(f"rank_pattern of {name} is not a list of true and false for a lora_E")
    return True

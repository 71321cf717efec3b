"""What a run's configuration may hold: every key declared, with its type and range."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from vera.config.identity import GROUPS, cell_id, hashed, run_name
from vera.config.marks import Operational
from vera.errors import ConfigError

# A word that becomes part of a file's name: no separator, no leading dot.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=64)]
# A repository on the hub, as opposed to a path or an address.
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?$", max_length=128)]

# An empty one would be the folder that a command happens to be started in.
Folder = Annotated[str, Field(min_length=1)]

# Of a task: its own validation rows, or a fraction of its training rows.
Validation = Literal["dev"] | Annotated[float, Field(gt=0, lt=1)]


class Strict(BaseModel):
    """A mapping whose every key is declared: an unknown one, or a value of the wrong type or range, is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Component(Strict):
    """What every model, task and method yaml has beside its own keys.

    name     the yaml's file name, which is what records and tables call it.
    version  raised when a default, a metric or the meaning of a key changes; part of a run's identity.
    neutral  keys younger than `version`, each at the value that means "as before": left out of the identity at that value,
             so that a new key leaves old records valid.
    """

    name: Name
    version: int = Field(ge=1)
    neutral: Annotated[dict[str, Any], Operational] = {}


QUANTILES = (
    0,
    *range(10, 100, 10),
    95,
    98,
    99,
    99.5,
    100,
)  # at which a task's facts give the lengths of its examples, in percent
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Strict):
    """The training loop's settings; `conf/train/default.yaml` says what each one is."""

    version: int = Field(ge=1)
    neutral: Annotated[dict[str, Any], Operational] = {}
    epochs: int = Field(ge=1)
    max_steps: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float = Field(ge=0)
    head_lr: float = Field(ge=0)
    weight_decay: float = Field(ge=0)
    head_weight_decay: float = Field(ge=0)
    decay_biases_and_norms: bool
    betas: tuple[Beta, Beta]
    eps: float = Field(gt=0)
    schedule: Literal["linear", "cosine", "constant"]
    warmup_ratio: float | None = Field(ge=0, le=1)
    warmup_steps: int | None = Field(ge=0)
    clip: float = Field(ge=0)
    precision: Literal["auto", "fp32", "bf16"]
    tf32: bool
    deterministic: Annotated[bool, Operational]
    cuda_graphs: Annotated[bool, Operational]
    evaluate: int | str
    keep_features: bool
    micro_batch_size: Annotated[int | None, Operational] = Field(ge=1)
    micro_batch_tokens: Annotated[int | None, Operational] = Field(ge=1)
    eval_batch_size: Annotated[int, Operational] = Field(ge=1)
    checkpoint_seconds: Annotated[float, Operational] = Field(ge=0, allow_inf_nan=False)
    save: Annotated[bool, Operational]

    @field_validator("evaluate")
    @classmethod
    def _epochs(cls, evaluate: int | str) -> int | str:
        if evaluate not in ("epoch", "last") and not (isinstance(evaluate, int) and evaluate > 0):
            raise PydanticCustomError("evaluate", "must be epoch, last, or a number of epochs")
        return evaluate

    @field_validator("micro_batch_tokens")
    @classmethod
    def _few_shapes(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        if tokens is not None and info.data.get("cuda_graphs"):
            message = "is of many shapes, of each of which train.cuda_graphs=true would record a graph: set it to null"
            raise PydanticCustomError("many_shapes", message)
        return tokens

    @field_validator("warmup_steps")
    @classmethod
    def _one_warmup(cls, steps: int | None, info: ValidationInfo) -> int | None:
        ratio = info.data.get("warmup_ratio")
        if steps is not None and ratio is not None:
            raise PydanticCustomError(
                "two_warmups",
                "a warm-up is given by ratio or by steps; set train.warmup_ratio={ratio} to null",
                {"ratio": ratio},
            )
        return steps


_NAME = TypeAdapter(Name)


class RunConfig(Strict):
    """One run, resolved. `model`, `task` and `method` are the keyword arguments of their `_target_`, as its fields' types have
    them, so that `4` and `"4"` are one run.

    follows_seed  dotted names of the values that are the seed.
    unhashed      marked keys (vera.config.marks) of classes that components.json does not list.
    """

    model: dict[str, Any]
    task: dict[str, Any]
    method: dict[str, Any]
    train: TrainConfig
    tracker: dict[str, Any]
    seed: int = Field(ge=0, lt=2**31)
    results_dir: Folder
    work_dir: Folder
    cache_dir: Folder
    models_dir: Folder | None = None
    data_root: Folder | None = None
    device: str = Field(pattern=r"^(auto|cpu|cuda)$")
    progress: bool | Literal["auto"]
    claim_timeout: float = Field(ge=1, allow_inf_nan=False)
    follows_seed: list[str] = []
    variant: str = ""  # what was set beside the choices of groups, such as rank=4: for a person, no part of the identity
    unhashed: list[str] = []

    @field_validator(*GROUPS[:3])
    @classmethod
    def _has_a_name(cls, group: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        try:
            _NAME.validate_python(group.get("name"))
        except ValidationError:
            raise PydanticCustomError("name", "its name becomes part of a file's name: letters, digits, _ . -") from None
        return group

    @property
    def scientific(self) -> dict[str, Any]:
        """The four groups that decide what a run computes, as plain values."""
        return {**{group: getattr(self, group) for group in GROUPS[:3]}, "train": self.train.model_dump(mode="json")}

    @property
    def cell_id(self) -> str:
        return cell_id(self.scientific, self.follows_seed, self.unhashed)

    @property
    def run_name(self) -> str:
        return run_name(self.model["name"], self.task["name"], self.method["name"], self.cell_id, self.seed)

    def decides(self, key: str) -> bool:
        """Whether the key of an override is part of what a run computes, so that another value makes another cell: not the
        seed, nor where it runs and what it leaves behind."""
        group, _, name = key.partition(".")
        if group not in GROUPS or not name:
            return group in GROUPS or group not in type(self).model_fields
        values, top = self.scientific[group], name.partition(".")[0]
        with_it, without = {**values, top: "another"}, {k: v for k, v in values.items() if k != top}
        return hashed(group, with_it, (), self.unhashed) != hashed(group, without, (), self.unhashed)

    def with_seed(self, seed: int) -> RunConfig:
        """The same cell under another seed."""
        changed = {group: getattr(self, group) for group in GROUPS[:3]}
        for dotted in self.follows_seed:
            group, *path = dotted.split(".")
            if group in changed:
                changed[group] = _replaced(changed[group], path, seed)
        return self.model_copy(update={"seed": seed, **changed})


def _replaced(tree: Any, path: list[str], value: Any) -> Any:
    """The same dictionaries and lists with another value at one place."""
    if not path:
        return value
    if isinstance(tree, dict):
        return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value)}
    index = int(path[0])
    return [*tree[:index], _replaced(tree[index], path[1:], value), *tree[index + 1 :]]


_Model = TypeVar("_Model", bound=BaseModel)


def checked(schema: type[_Model], values: dict[str, Any], where: str = "") -> _Model:
    """Build a pydantic model; its errors become one line that names key, problem and value. A truth value is no number."""
    for key, value, text in _misplaced(schema, values, where):
        hint = "; where it is a text, quote it (YAML reads yes, no, on and off as true and false)" if text else ""
        raise ConfigError(f"{key}: a truth value is no number, got {shown(value)}{hint}")
    try:
        return schema(**values)
    except ValidationError as error:
        first, *others = error.errors()
        key = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(_nested(schema, first["loc"][:-1]).model_fields))
            raise ConfigError(f"{key} is not a key; allowed: {allowed}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{key} is missing") from None
        branches = [e for e in others if e["loc"][:-1] == first["loc"][:-1] and e["input"] is first["input"]]
        if first["loc"][-1:] and first["loc"][-1] in _nested(schema, first["loc"][:-1]).model_fields:
            branches = []  # other keys with the same value
        if branches:  # of a union: one problem, and the last part of its place names the branch
            key = key.removesuffix(f".{first['loc'][-1]}")
        message = " or ".join(e["msg"][:1].lower() + e["msg"][1:] for e in (first, *branches))
        more = f" (and {len(others) - len(branches)} more)" if len(others) > len(branches) else ""
        raise ConfigError(f"{key}: {message}, got {shown(first['input'])}{more}") from None
    except TypeError:  # keys that are no words
        raise ConfigError(f"{where or schema.__name__}: its keys must be words") from None


def _nested(schema: Any, path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model that a place of a model's values is checked by."""
    for part in path:  # a field, or else an item or the name of a branch of a union
        model = _model_in(schema)
        if model is not None and part in model.model_fields:
            schema = model.model_fields[part].annotation
    return _model_in(schema) or BaseModel


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model in an annotation such as `Study | None` or `list[Row]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


def _misplaced(annotation: Any, value: Any, where: str) -> Iterator[tuple[str, bool, bool]]:
    """Where a truth value stands in for a number, which pydantic would take for 0 or 1, and whether it could be a text."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if isinstance(value, dict):
            for key, item in value.items():
                if key in annotation.model_fields:
                    yield from _misplaced(annotation.model_fields[key].annotation, item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, bool):
        kinds = _kinds(annotation)
        if kinds & {int, float} and not kinds & {bool, Any}:
            yield where, value, str in kinds
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _misplaced(annotation, item, f"{where}.{index}")
    elif isinstance(value, dict):
        models = [part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        for model in models:
            yield from _misplaced(model, value, where)
        for key, item in value.items() if not models else ():
            yield from _misplaced(annotation, item, f"{where}.{key}")


def _kinds(annotation: Any) -> set[Any]:
    """The types that a value and its items may have."""
    parts = get_args(annotation)[get_origin(annotation) is dict :]  # not a mapping's keys
    return set().union(*map(_kinds, parts)) if parts else {annotation} & {bool, int, float, str, Any}


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlong = 40


def shown(value: Any) -> str:
    """A value in an error: whole when it is short, whatever a stranger's file has nested into it."""
    return _short.repr(value)

"""What every backbone offers, wherever its weights come from."""

from __future__ import annotations

import difflib
import gc
import hashlib
import importlib.util
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PretrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from vera.config import Component, HubId, Operational, Source, StandIn, choices
from vera.config.architecture import FIT, misfit, misfit_of_path
from vera.config.components import own_values
from vera.errors import ConfigError, ModelError, one_line
from vera.io import hub
from vera.io.cache import make_folder
from vera.models import found, prints
from vera.models.layout import LAYOUTS, Layout, blocks
from vera.models.tiny import architecture, tiny_checkpoint
from vera.nn.names import inside, matches
from vera.seeds import forked


@dataclass
class Backbone:
    """A loaded model with a fresh head.

    model        a transformers model; called with a batch's tensors it returns an output with `.logits`.
    preprocess   tokenizer (text) or callable from a list of PIL images to a tensor [N, C, H, W] (images).
    head         names of the head's modules; none for a language model, which keeps its own.
    source       checkpoint id or folder; commit: its hub commit, or None.
    fingerprint  SHA-256 (16 digits) over the backbone's weights, head excluded.
    preprocessing  fingerprint of the tokenizer or image processor.
    notes        what a record should say of it: what was found in it where its yaml leaves that open; of what is not made here
                 also the fingerprints of its configuration and of its preprocessing (vera.models.prints).
    """

    model: nn.Module
    preprocess: Any
    head: tuple[str, ...]
    source: str
    commit: str | None
    fingerprint: str
    preprocessing: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


# Sizes of a transformers configuration, and its family: no text that could name code.
Architecture = dict[str, int | float | bool | Literal["roberta", "bert", "vit", "gpt2", "llama", "checkpoint"] | None]
ALL_LINEAR = "all_linear"
SAFE = {"trust_remote_code": False}  # for every from_pretrained; a model's also takes use_safetensors=True
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, ImportError, StrictDataclassError, SafetensorError)  # of files
HOLDS_ADAPTER = (
    "holds a PEFT adapter, which would be a part of the backbone; merge it first (merge_and_unload()), or take it out"
)
NO_WEIGHTS = (
    "no weights in safetensors (pickled ones such as pytorch_model.bin are never read); convert them once with "
    "save_pretrained() to another folder"
)
# transformers' auto classes by what a checkpoint is to be, and its words for one that is none.
AUTO = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}
AUTO |= {"causal": "AutoModelForCausalLM"}
UNFIT = re.compile(r"Unrecognized configuration class <class '(?:\w+\.)*(\w+)'> for this kind of AutoModel: (\w+)")
# Keys of transformers' configurations that a run has keys of its own for, or its task decides.
DECIDED = {"num_labels", "id2label", "label2id", "problem_type", "dtype", "torch_dtype", "model_type", "architectures"}
DECIDED |= {"quantization_config"}


class Model(Component):
    """Common keys of conf/model. A subclass says how its modality is loaded.

    checkpoint  id on the hub; revision: branch, tag or commit.
    path        a local folder in transformers' format, read instead of the hub.
    package     "<python package>/<folder>": read from an installed package when there is no path.
    size        full, or tiny for a random model of the family (`tiny` holds its architecture).
    targets     logical names (query, value ...) to module names, a list where transformers' releases differ; auto: the
                attention's are looked for. `all_linear`, all linear maps but the head, is a target of every model. None means
                a part of the head.
    head        names of the modules that a task replaces or initialises, trained with head_lr; auto: those outside
                transformers' base model that the checkpoint lacks, or all of them.
    layouts     where its blocks are, for a model that is not laid out as its class (`known_layouts`) or LAYOUTS say.
    config      keys of the checkpoint's transformers configuration that shall have another value here, such as a dropout, or
                attn_implementation.
    tiny, full  architectures (family and its transformers keys): of the stand-in, and of the checkpoint itself for counting.
                tiny: {from: checkpoint}: the stand-in is the checkpoint's own architecture, small; the rest is for none given.
    """

    modality: ClassVar[str]
    kind: ClassVar[Any]  # transformers' auto class
    known_layouts: ClassVar[tuple[Layout, ...]] = ()  # more than one where transformers' releases differ

    checkpoint: HubId | None = None
    revision: str = "main"
    path: Annotated[str | None, Source] = None
    package: str | None = Field(default=None, pattern=r"^[A-Za-z_]\w*/\w[\w-]*$")
    size: Literal["full", "tiny"] = "full"
    targets: dict[str, str | list[str]] | Literal["auto"]
    head: list[str] | Literal["auto"]
    layouts: list[Layout] = []
    config: dict[str, int | float | bool | str | None] = {}
    tiny: Annotated[Architecture, StandIn]
    full: Annotated[Architecture, Operational] = {}

    def load(self, outputs: int, cache_dir: Path) -> Backbone:
        """The backbone with a new head of `outputs` values (1: regression; a language model keeps its own and takes 0),
        float32, in training mode, on the CPU.

        The head is drawn from torch's global generator. Raises ModelError when the source cannot be reached or read.
        """
        source = self.source(cache_dir)
        from_hub = source == self.checkpoint
        hub_commit, online = hub.commit(source, self.revision, "model") if from_hub else (None, True)
        if from_hub and not online:
            hub_commit = hub.cached_commit(source, self.revision)
        where = {**SAFE, "revision": self.revision, "local_files_only": not online}
        made_here = self.source_kind == "made here"  # conf/ decides what is
        if torch.cuda.is_initialized():
            gc.collect()  # a model of an earlier run, which lies in a cycle (Accelerate's), perhaps on the GPU in 4 bits
            torch.cuda.empty_cache()
        try:
            self._check_config(source, where)
            model, preprocess, info = self._load(source, outputs, where)
            read = None if made_here else AutoConfig.from_pretrained(source, **where)  # without what this run sets in it
            preprocessing = (prints.pixels if self.modality == "image" else prints.tokens)(preprocess)
        except UNREADABLE as error:
            raise ModelError(self._unreachable(source, error)) from None
        check_whole(model, source)
        if not made_here:
            self._check_fit(misfit(self.model_dump(), model.config.to_dict(), source))
        lacking = drawn(info)
        head = found.head(model, lacking) if self.head == "auto" else list(self.head)
        missing = [name for name in head if not any(part[0] == name for part in model.named_modules())]
        if missing:
            raise ModelError(f"{self.name}: {source} has no module {missing[0]!r} to serve as the head")
        self._check_weights(source, model, lacking, head)
        notes: dict[str, Any] = {"head": head} if self.head == "auto" else {}
        if read is not None:
            configuration = prints.configuration(read.to_dict(), prints.defaults(read))
            notes |= {"configuration": configuration, "preprocessing": preprocessing}
        return Backbone(
            model=model,
            preprocess=preprocess,
            head=tuple(head),
            source=self._public(source),
            commit=hub_commit,
            fingerprint=weights_fingerprint(model, head),
            preprocessing=preprocessing,
            notes={**notes, **self._notes(source)},
        )

    def _check_config(self, source: str, where: dict[str, Any]) -> None:
        """Raises ConfigError for a key in `config` that this checkpoint's configuration lacks, or that a run decides."""
        if not self.config:
            return
        decided = [key for key in self.config if key in DECIDED or key in self.settings]
        if decided:
            raise ConfigError(f"model.config.{decided[0]}: the run decides it, by a key of its own or its task")
        known = {*AutoConfig.from_pretrained(source, **where).to_dict(), "attn_implementation"}
        unknown = [key for key in self.config if key not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, 1)
            hint = f"did you mean {near[0]}?" if near else "its config.json names them"
            raise ConfigError(f"model.config: {source} has no key {unknown[0]!r}; {hint}")

    @staticmethod
    def _check_fit(problem: str | None) -> None:
        """Raises ModelError for weights that would be filed under another model's name."""
        if problem is not None:
            raise ModelError(f"{problem}; {FIT}")

    @property
    def source_kind(self) -> Literal["made here", "folder", "hub"]:
        """What `source` would give."""
        if self.size == "tiny":
            return "made here"
        package = (self.package or "").partition("/")[0]
        if self.path is not None or (package and importlib.util.find_spec(package) is not None):
            return "folder"
        return "hub" if self.checkpoint is not None else "made here"

    def _of_any(self) -> bool:
        """Whether the yaml of this name is for any weights (auto_text), and not for those of one folder."""
        from vera.config import choice  # which imports hydra, and a GPU box may have none

        named = choice("model", self.name)
        return named["targets"] == "auto" and named.get("checkpoint") is None and "${" in str(named.get("path"))

    def source(self, cache_dir: Path) -> str:
        """Where the weights are read from: tiny model, path, installed package or hub id, in this order."""
        if self.path is not None and self.checkpoint is None and self.name in choices("model") and self._of_any():
            raise ModelError(f"weights of your own need a name of their own: add model.name= beside model.path={self.path}")
        if self.size == "tiny":
            given = self.path or self.checkpoint
            if self.tiny.get("from") == "checkpoint" and given is not None:
                return str(self._small(given, cache_dir))
            return str(tiny_checkpoint({key: value for key, value in self.tiny.items() if key != "from"}, cache_dir))
        if self.path is not None:
            problem = self.lacking_in(Path(self.path))
            if problem:
                raise ModelError(f"model.path={self.path}: {problem}")
            self._check_fit(misfit_of_path(self.model_dump()))
            return self.path
        if self.package is not None:
            package, _, folder = self.package.partition("/")
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin is not None:
                self._check_packaged(package)
                return str(Path(spec.origin).parent / folder)
        if self.checkpoint is None:
            raise ModelError(f"nothing says where the weights of model {self.name} are; give a local folder with model.path=")
        return self.checkpoint

    def _check_packaged(self, package: str) -> None:
        """Raises ModelError for another checkpoint or revision than the one that the yaml says the package holds."""
        usual = own_values("model", self.name)
        for key in ("checkpoint", "revision") if usual.get("package") == self.package else ():
            if usual.get(key) != getattr(self, key):
                raise ModelError(
                    f"model.{key}={getattr(self, key)}: the installed package {package}, which is read before the hub, holds "
                    f"{usual.get(key)}; add model.package=null"
                )

    def _small(self, given: str, cache_dir: Path) -> Path:
        """A folder with a small random model of a checkpoint's own architecture and its own tokenizer or image processor, made
        once and cached. Raises ModelError."""
        where = {**SAFE, "revision": self.revision}
        try:
            config = found.small(AutoConfig.from_pretrained(given, **where))
            preprocess = (AutoImageProcessor if self.modality == "image" else AutoTokenizer).from_pretrained(given, **where)
            digest = hashlib.sha256(config.to_json_string(use_diff=False).encode())
            with tempfile.TemporaryDirectory() as written:
                preprocess.save_pretrained(written)
                for file in sorted(path for path in Path(written).rglob("*") if path.is_file()):
                    digest.update(file.read_bytes())

            def make(folder: Path) -> None:
                named = config.architectures
                with forked(0, "tiny"):
                    model = self._from_config(config, 2)
                (model if self.modality == "generation" else model.base_model).save_pretrained(folder)
                model.config.architectures = named  # by which transformers chooses a class where a family has several
                model.config.save_pretrained(folder)
                preprocess.save_pretrained(folder)

            name = f"{config.model_type}-{digest.hexdigest()[:8]}"
            return make_folder(Path(cache_dir) / "tiny" / name, "config.json", make)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
            why = f"no small model of {given} can be made ({one_line(error)})"
            raise ModelError(f"{self.name}: {why}; give model.tiny sizes") from None

    def lacking(self, names: set[str]) -> str | None:
        """What a folder or repository with these files lacks, and what helps; None when it can be read."""
        if ADAPTER_CONFIG_NAME in names:
            return HOLDS_ADAPTER
        if "config.json" not in names:
            return "no config.json, as transformers' format has"
        if not names & {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME}:
            return NO_WEIGHTS
        if self.modality == "image":
            return None if "preprocessor_config.json" in names else "no preprocessor_config.json"
        if names & {"tokenizer.json", "vocab.json", "vocab.txt"}:
            return None
        if "tokenizer.model" not in names:
            return "no tokenizer"
        if importlib.util.find_spec("sentencepiece") is None:
            return "its tokenizer.model needs a package: pip install sentencepiece (or a folder with tokenizer.json)"
        return None

    def lacking_in(self, folder: Path) -> str | None:
        """The same for a folder on this machine, of whose weights no part may be missing either."""
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        problem = self.lacking(names)
        if problem is None and (missing := [name for name in weights_files(folder) if not (folder / name).exists()]):
            return f"no {missing[0]}, which {SAFE_WEIGHTS_INDEX_NAME} names"
        return problem

    def unreadable(self, folder: Path) -> str | None:
        """Why no run can read a folder that lacks nothing; None when it can. Of weights the headers are read, which tell a file
        that was cut."""
        where = {**SAFE, "local_files_only": True}
        part = "config.json"
        try:
            AutoConfig.from_pretrained(folder, **where)
            part = "its image processor" if self.modality == "image" else "its tokenizer"
            (AutoImageProcessor if self.modality == "image" else AutoTokenizer).from_pretrained(folder, **where)
            for part in weights_files(folder):
                with safe_open(folder / part, "pt"):
                    pass
        except Exception as error:  # of several libraries
            return f"{part} cannot be read: {one_line(error)}"
        return None

    def blueprint(self, outputs: int) -> Backbone:
        """The full-size model on the meta device: shapes without weights, for counting. Raises ConfigError without `full`."""
        if not self.full:
            raise ConfigError(f"model {self.name} has no `full` architecture to count on")
        with torch.device("meta"):
            model = self._from_config(architecture(self.full), outputs)
        head = found.head(model) if self.head == "auto" else self.head
        return Backbone(model, preprocess=None, head=tuple(head), source=self.checkpoint, commit=None, fingerprint="")

    def resolve_targets(self, backbone: Backbone, names: list[str]) -> tuple[str, ...]:
        """Module names, as `vera.nn` and PEFT match them, of logical target names, which mean no part of the head: one that
        fits there too is written out. What no yaml says is noted in the backbone. Raises ConfigError for an unknown one."""
        linear = found.linear(backbone.model, backbone.head)
        if not linear:
            raise ModelError(f"{self.name} has no linear map outside its head, so there is no matrix to adapt")
        targets, fused = self.targets, False
        if targets == "auto":
            maps = found.attention(linear)
            targets = {} if maps is None else {"query": maps.query, "key": maps.key, "value": maps.value}
            fused = maps is not None and maps.fused
            if maps is None and names != [ALL_LINEAR]:
                raise ModelError(
                    f"{self.name}: no linear map is called like attention's; there are {', '.join(found.endings(linear))}: "
                    f"name them (model.targets.query= in a yaml of its own), or method.targets=[{ALL_LINEAR}]"
                )
        modules = [module for module, _ in backbone.model.named_modules()]
        in_head = [module for module in modules if inside(module, backbone.head)]
        outside = [module for module in modules if not inside(module, backbone.head)]
        resolved: list[str] = []
        for name in names:
            if name == ALL_LINEAR and ALL_LINEAR not in targets:
                resolved += linear
                continue
            if name not in targets:
                allowed = ", ".join(dict.fromkeys([*targets, ALL_LINEAR]))
                hint = f"; a layer by its name: +model.targets.out=[{name}] method.targets=[out]"
                hint = hint if name in found.endings(linear) else ""
                raise ConfigError(f"method.targets: {self.name} has no {name!r}; allowed: {allowed}{hint}")
            candidates = targets[name]
            candidates = [candidates] if isinstance(candidates, str) else candidates
            fitting = [c for c in candidates if any(matches(module, [c]) for module in outside)]
            if not fitting:
                there = f"the linear ones are {', '.join(found.endings(linear))}"
                if any(matches(module, candidates) for module in in_head):
                    raise ConfigError(f"method.targets: {name} of {self.name} is in the head, which takes no adapter; {there}")
                raise ModelError(f"{self.name}: no module called {' or '.join(candidates)} for target {name!r}; {there}")
            both = any(matches(module, fitting[:1]) for module in in_head)
            resolved += [module for module in outside if matches(module, fitting[:1])] if both else fitting[:1]
        resolved = list(dict.fromkeys(resolved))
        for module in in_head:
            if taken := matches(module, resolved):
                raise ConfigError(f"method.targets: {taken[0]} of {self.name} means {module} of its head too; leave it out")
        if self.targets == "auto" or ALL_LINEAR in names:
            said = {"targets": resolved, **({"fused": "query, key and value are one matrix, adapted whole"} if fused else {})}
            backbone.notes = {**backbone.notes, **said}
        return tuple(resolved)

    def blocks(self, model: nn.Module) -> list[dict[str, str]]:
        """The transformer blocks from the first to the last: for each the module names of Layout's places, and of the "block".

        Raises ModelError when the model is laid out in another way.
        """
        found = blocks(model, [*self.layouts, *self.known_layouts, *LAYOUTS])
        if found is not None:
            return found
        raise ModelError(
            f"{self.name}: no transformer blocks where {type(self).__name__} looks for them; say where in model.layouts"
        )

    def _load(self, source: str, outputs: int, where: dict[str, Any]) -> tuple[nn.Module, Callable[..., Any], dict[str, Any]]:
        """Model, preprocessing and transformers' loading info; `where` goes to every from_pretrained, `config` to the model."""
        raise NotImplementedError

    def _pretrained(self, source: str, where: dict[str, Any], **keys: Any) -> tuple[Any, dict[str, Any]]:
        """A model by transformers' auto class, float32 where no key says another dtype, and its loading info."""
        keys = {"dtype": torch.float32, **keys, **self.config}
        return self.kind.from_pretrained(source, **where, use_safetensors=True, output_loading_info=True, **keys)

    @property
    def settings(self) -> dict[str, Any]:
        """What from_pretrained takes beside the checkpoint by this class's own keys: values of the checkpoint's configuration,
        another dtype."""
        return {}

    def _from_config(self, config: PretrainedConfig, outputs: int) -> nn.Module:
        """A model of this architecture with a head of `outputs` values."""
        config.num_labels = outputs
        return self.kind.from_config(config)

    def _check_weights(self, source: str, model: nn.Module, random: set[str], head: list[str]) -> None:
        """Every weight outside the head comes from the checkpoint, and every weight of the head does not. random: those that
        the checkpoint lacks or has in other shapes."""
        foreign = sorted(name for name in random if not inside(name, head))
        if foreign:
            raise ModelError(
                f"{self.name}: {source} lacks {foreign[0]}"
                + (f" and {len(foreign) - 1} more weights" if len(foreign) > 1 else "")
                + "; it is not a complete checkpoint of this architecture"
            )
        kept = [parameter for name, parameter in model.named_parameters() if inside(name, head) and name not in random]
        if kept:  # a checkpoint with a head of its own: draw a new one, so that the seed reaches it
            for parameter in kept:
                parameter._is_hf_initialized = False
            for module in head:
                model.get_submodule(module).apply(model._init_weights)

    def _notes(self, source: str) -> dict[str, Any]:
        """What a record should say of this source that its fingerprint does not."""
        return {}

    def _public(self, source: str) -> str:
        """The source as a record may show it: a hub id or the name of a package, no path of this machine."""
        if source == self.checkpoint:
            return source
        if self.size == "tiny":
            return "tiny random"
        return "local folder" if self.path is not None else f"package {self.package}"

    def _unreachable(self, source: str, error: Exception) -> str:
        reason = cause(error)
        if source != self.checkpoint:
            return f"model {self.name} cannot be read from {source}: {reason}"
        hint = f"give a local folder with model.path=/path/to/{source.rpartition('/')[2]}"
        if "gated" in str(error).lower():
            hint = f"ask for access at https://huggingface.co/{source} and log in with `hf auth login`, or {hint}"
        if self.package is not None:
            hint += f", or install the package {self.package.partition('/')[0]} (extra `{self.name}`)"
        return f"model {source} cannot be loaded from the hub ({reason}); {hint}"


def cause(error: Exception) -> str:
    """Why a checkpoint cannot be loaded, in one line: by its loader's words, but where they are to read pickled weights, or
    list every configuration that would do."""
    text = str(error).strip()
    if unfit := UNFIT.match(text):
        others = " or ".join(AUTO[kind] for kind in kinds_for(error))
        no = f"transformers has no {unfit[2]} of {unfit[1]}"
        return f"{no}, but {others}" if others else f"{no}, nor an auto class of another kind here"
    if "no file named model.safetensors" in text or "do not set `use_safetensors=True`" in text:
        return NO_WEIGHTS
    return one_line(error)


def kinds_for(error: Exception) -> list[str]:
    """Of which kinds in AUTO an architecture is, where transformers has refused it for another kind; else none."""
    unfit = UNFIT.match(str(error).strip())
    config = getattr(transformers, unfit[1], None) if unfit else None
    return [kind for kind, auto in AUTO.items() if config in getattr(transformers, auto)._model_mapping] if config else []


def weights_files(folder: Path) -> list[str]:
    """The names of the files that hold a folder's weights: one, or those of its index (which stands for them where it cannot be
    read)."""
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [SAFE_WEIGHTS_NAME]
    try:
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        return sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [SAFE_WEIGHTS_INDEX_NAME]


def mask_padding(tokenizer: Any, model: nn.Module) -> None:
    """Have a tokenizer say which of its tokens are padding wherever the model asks: tokenizer_config.json may leave that out.

    Raises ValueError for a padding token that was added to a tokenizer and has no place in the model's embeddings.
    """
    names = tokenizer.model_input_names
    if "attention_mask" not in names and "attention_mask" in inspect.signature(model.forward).parameters:
        tokenizer.model_input_names = [*names, "attention_mask"]
    size = _rows_of_embeddings(model)
    if size is not None and tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= size:
        raise ValueError(
            f"its tokenizer pads with token {tokenizer.pad_token_id}, and its embeddings have {size}: resize_token_embeddings, "
            "or take one of those for pad_token"
        )


def _rows_of_embeddings(model: nn.Module) -> int | None:
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # of a model that has several or none, as CANINE, which hashes characters
        return None


def check_tokens(backbone: Backbone, examples: Sequence[Any]) -> None:
    """Raises ModelError for a token, or a token's type, that a tokenizer gives and the model's embeddings lack."""
    types = [
        module.num_embeddings
        for name, module in backbone.model.named_modules()
        if name.endswith("token_type_embeddings") and isinstance(module, nn.Embedding)
    ]
    for key, size, helps in (
        ("input_ids", _rows_of_embeddings(backbone.model), "resize_token_embeddings, or take the tokenizer that belongs to it"),
        ("token_type_ids", min(types, default=None), "leave them out of model_input_names in its tokenizer_config.json"),
    ):
        highest = max((max(example.get(key) or (-1,)) for example in examples if isinstance(example, dict)), default=-1)
        if size is not None and highest >= size:
            raise ModelError(
                f"{backbone.source}: its tokenizer gives {key} up to {highest}, and its embeddings have {size}; {helps}"
            )


def positions(model: nn.Module) -> int | None:
    """How many tokens a model reads at most, where it has a limit: by its configuration, less the positions that RoBERTa's kin
    never use, which count from the one after the padding token's id. (XLNet's -1 is no limit.)"""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and limit < 1:
        return None
    unused = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and getattr(module, "padding_idx", None) is not None
        and module.num_embeddings == limit
    ]
    return limit - max(unused) if limit is not None and unused else limit


def check_whole(model: nn.Module, source: str) -> None:
    """Raises ModelError for a model into which transformers has loaded a PEFT adapter that lies beside its weights."""
    if getattr(model, "peft_config", None):
        raise ModelError(f"{source} {HOLDS_ADAPTER}")


def drawn(info: dict[str, Any]) -> set[str]:
    """By transformers' loading info the parameters that a checkpoint lacks or has in other shapes: they are random."""
    keys = (*info["missing_keys"], *info["mismatched_keys"])
    return {key[0] if isinstance(key, tuple) else key for key in keys}  # some stand beside their shapes


def weights_fingerprint(model: nn.Module, head: list[str] | tuple[str, ...] = ()) -> str:
    """SHA-256, first 16 hex digits, over the bytes of all parameters outside the head.

    Neither names nor order count: both change between releases of transformers, the weights do not.
    """
    digests = []
    for name, parameter in model.named_parameters():
        if not inside(name, head):
            digests.append(hashlib.sha256(parameter.detach().to("cpu").contiguous().view(torch.uint8).numpy()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]

"""From conf/ to one validated run: schema, composing, components, and the identity under which a run is never repeated.

Nothing here imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vera.config.components import (
    CONF_DIR,
    build,
    check_modality,
    choices,
    component,
    conf_file,
    conf_folders,
    fields,
    group_marks,
    normalised,
    own_conf,
    recipe,
    targets,
)
from vera.config.identity import GROUPS, SEED_REFERENCE, beside, cell_id, hashed, of_all_seeds, run_name, younger
from vera.config.marks import Operational, Place, Source, StandIn, marks
from vera.config.schema import QUANTILES, Component, HubId, Name, RunConfig, Strict, TrainConfig, Validation, checked

COMPOSING = (
    "choice",
    "compose",
    "compose_lasting",
    "explain",
    "from_hydra",
    "refuse_secrets",
    "resolve",
)
if TYPE_CHECKING:
    from vera.config.composing import (
        choice,
        compose,
        compose_lasting,
        explain,
        from_hydra,
        refuse_secrets,
        resolve,
    )


def __getattr__(name: str) -> Any:
    """What composes configurations needs Hydra; a run that is composed does not."""
    if name in COMPOSING:
        return getattr(importlib.import_module("vera.config.composing"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

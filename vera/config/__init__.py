"""From conf/ to one validated run: schema, composing, components, and the identity under which a run is never repeated.

Nothing here imports torch.
"""

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
    targets,
)
from vera.config.composing import choice, choices_groups, compose, explain, from_hydra, recipe, refuse_secrets, resolve
from vera.config.identity import GROUPS, SEED_REFERENCE, beside, cell_id, hashed, run_name, younger
from vera.config.marks import Operational, Place, Source, StandIn, marks
from vera.config.schema import Component, HubId, Name, RunConfig, Strict, TrainConfig, Validation, checked

"""From conf/ to one validated run: schema, composing, components, and the identity under which a run is never repeated.

Nothing here imports torch.
"""

from vera.config.components import CONF_DIR, build, choices, component, targets
from vera.config.composing import choices_groups, compose, explain, from_hydra, recipe, refuse_secrets, resolve
from vera.config.identity import GROUPS, OPERATIONAL, SEED_REFERENCE, UNHASHED, cell_id, run_name
from vera.config.schema import Component, HubId, Name, RunConfig, Strict, TrainConfig, checked

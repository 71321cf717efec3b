"""A search over a method's settings: its trials are cells, their runs ordinary records, and validation rows choose.

A trial is known by what it sets, and what optuna proposes follows from a fixed seed and the scores of the trials before. So the
same search over the same records proposes the same trials, and one that was interrupted goes on.
"""

from experiments.engine.tuning.axes import Axis, axis
from experiments.engine.tuning.choice import chosen_on, edge, missing, remarks, table
from experiments.engine.tuning.recipes import in_use, recipe_of, stays
from experiments.engine.tuning.searches import Search, Trial, read
from experiments.engine.tuning.trials import Tried, carry_out

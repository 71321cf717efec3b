"""Backbones: load one, give it a head, name its target matrices."""

import logging as standard

from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
standard.getLogger("bitsandbytes").setLevel(standard.ERROR)  # PEFT imports it, and it says what it does not find

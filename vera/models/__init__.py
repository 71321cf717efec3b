"""Backbones: load one, give it a head, name its target matrices."""

from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

"""Measurements against PEFT: every figure is a ratio of alternating runs in one process."""

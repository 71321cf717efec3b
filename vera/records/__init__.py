"""Runs on disk: records, their store, the workers that share it, and leaving when asked to."""

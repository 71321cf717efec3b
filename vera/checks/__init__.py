"""Before and after a run: what it would train, what it needs, and whether it gives the same again."""

"""One loop for every model, task and method."""

"""Reading and writing: whole files, JSON, rows, cached folders, the hub."""

"""Data, collation and metrics, one module a family."""

"""The DuckDB index over all runs, and the questions that pages and notebooks ask of it."""

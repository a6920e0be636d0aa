"""Data sources: random access to the records of a dataset, whatever its format."""

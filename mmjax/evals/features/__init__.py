"""Features of the examples of a dataset: computation, cache on disk, and vectors."""

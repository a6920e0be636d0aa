"""Pairs of records of a dataset: their files, and the positives of training examples."""

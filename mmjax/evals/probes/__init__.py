"""Classifiers of the linear probe, and the solvers that fit them."""

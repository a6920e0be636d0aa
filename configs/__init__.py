"""Recipes: `configs/<task>/<recipe>.py`, importable as `mmjax.configs`."""

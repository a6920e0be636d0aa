"""Frozen encoders × end tasks: pyVTAB's study with any encoder. docs/probe.md is the guide."""

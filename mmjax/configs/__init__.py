"""Makes the top-level directory `configs/` importable as `mmjax.configs` in a checkout."""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "configs")]

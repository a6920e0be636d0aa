"""Makes the top-level directory `data/` importable as `mmjax.assets` in a checkout."""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "data")]

"""Makes the top-level directory `tools/` importable as `mmjax.tools` in a checkout."""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "tools")]

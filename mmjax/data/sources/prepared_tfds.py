"""Finds datasets that TensorFlow Datasets has prepared. Imports no TensorFlow."""

from __future__ import annotations

import glob
import os


def find_prepared(name: str, root: str = "") -> str:
    """Returns the specification of a dataset that TFDS has prepared, or '' if there is none.

    Args:
      name: Name and options after `tfds:` in a specification.
      root: Directory that is searched before TFDS's own; '' searches only that.
    """
    for data_dir in filter(None, (os.path.expanduser(root), default_directory())):
        if _is_prepared(name, data_dir):
            return f"tfds:{name},data_dir={data_dir}"
    return ""


def default_directory() -> str:
    """Returns the directory in which TFDS stores its data by default."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _is_prepared(spec: str, data_dir: str) -> bool:
    name = spec.partition(",")[0]
    levels = ("*",) if "/" in name else ("*", "*/*")  # version, or configuration and version
    base = glob.escape(os.path.join(data_dir, name))
    return any(glob.glob(os.path.join(base, level, "dataset_info.json")) for level in levels)

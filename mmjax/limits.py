"""Bounds on the sizes of files from others, so that a small file cannot fill the memory.

Each bound can be changed with an environment variable, `MMJAX_MAX_<NAME>`. docs/reliability.md
lists them.
"""

from __future__ import annotations

import os

from mmjax.errors import UserError, unknown

DEFAULTS = {
    "IMAGE_PIXELS": 250_000_000,  # of one image: width x height
    "MEDIA_SECONDS": 1_000_000,  # of one video or audio file: 11 days
    # An archive that unpacks to more bytes than this must not be compressed more than by the ratio:
    # DEFLATE reaches 1:1032 on zeros, but float arrays reach 1:2 and images 1:20.
    "UNPACKED_BYTES": 1 << 30,
    "UNPACKED_RATIO": 100,
}


def limit(name: str) -> int:
    """Returns a bound: `MMJAX_MAX_<name>` of the environment, or the default.

    Args:
      name: A key of `DEFAULTS`.

    Raises:
      UserError: The variable is not a positive integer.
    """
    if name not in DEFAULTS:
        raise unknown("limit", name, DEFAULTS)
    variable = f"MMJAX_MAX_{name}"
    text = os.environ.get(variable, "")
    if not text:
        return DEFAULTS[name]
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{variable} must be a positive integer; got {text!r}.")
    return int(text)


def check(name: str, size: int, what: str) -> None:
    """Raises UserError if a size exceeds a bound.

    Args:
      name: A key of `DEFAULTS`.
      size: The size, as declared by the file or as counted while reading it.
      what: Start of the message: the file and what of it is large, for example
        'a.npz: words.npy unpacks to'.
    """
    if size > limit(name):
        unit = name.rpartition("_")[2].lower()
        raise UserError(
            f"{what} {size:,} {unit}; the limit is {limit(name):,}. If you trust the file, raise "
            f"the limit with MMJAX_MAX_{name}={size}."
        )


def max_unpacked(packed: int) -> int:
    """Returns the most bytes that a compressed file of `packed` bytes may unpack to."""
    return max(limit("UNPACKED_BYTES"), packed * limit("UNPACKED_RATIO"))


def check_unpacked(size: int, packed: int, what: str) -> None:
    """Raises UserError if compressed data unpack to more than is plausible.

    Small files may have any ratio, and large ones any size: neither can fill the memory by
    surprise.

    Args:
      size: Size after unpacking in bytes, as declared or as counted.
      packed: Size of the file in bytes.
      what: Start of the message; see `check`.
    """
    if size > max_unpacked(packed):
        check("UNPACKED_BYTES", size, what)

"""Parses names of splits, fractions of splits (train:0.8,test:0.2) and parts of a job (I/N)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from mmjax.errors import UserError

SPLIT_DIRECTORIES = ("train", "val", "valid", "validation", "test")  # names that mean a split


def check_split(name: str) -> str:
    """Returns the name of a split; raises ValueError if it cannot be part of a file name."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"the split {name!r} must consist of letters, digits, '_', '-' and '.', and must not "
            "be empty"
        )
    return name


def check_splits(names: str) -> str:
    """Returns several splits joined by '+', each once; raises ValueError like `check_split`."""
    return "+".join(dict.fromkeys(check_split(name.strip()) for name in names.split("+")))


def parse_fractions(text: str | None, *, option: str = "") -> tuple[tuple[str, float], ...]:
    """Returns 'train:0.8,test:0.2' as (('train', 0.8), ('test', 0.2)), and None or '' as ().

    Args:
      text: Splits and their fractions of the data.
      option: The flag, for messages.

    Raises:
      UserError: The text has a different form, or the fractions are not positive numbers that add
        up to 1.
    """
    if not text:
        return ()
    prefix = f"{option} " if option else ""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        fractions = tuple((check_split(name.strip()), float(value)) for name, value in pairs)
    except ValueError as error:
        raise UserError(
            f"{prefix}{text!r} must be a list of fractions like train:0.8,test:0.2."
        ) from error
    if not all(value > 0 for _, value in fractions):
        raise UserError(f"{prefix}{text!r}: all fractions must be positive.")
    total = sum(value for _, value in fractions)
    if abs(total - 1) > 1e-6:
        raise UserError(
            f"{prefix}{text!r}: the fractions must add up to 1; their sum is {total:g}."
        )
    return fractions


def cumulative(fractions: Sequence[tuple[str, float]]) -> list[float]:
    """Returns the upper ends of the splits in [0, 1]."""
    return list(itertools.accumulate(value for _, value in fractions))


def parse_part(text: str | None, *, option: str) -> tuple[int, int]:
    """Returns 'I/N' as (I, N), and None as (0, 1).

    Args:
      text: The part of a job.
      option: The flag, for messages.

    Raises:
      UserError: The text has a different form, or I is not in [0, N).
    """
    if text is None:
        return 0, 1
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        part, parts = -1, 0
    if not 0 <= part < parts:
        raise UserError(f"{option} must be I/N with 0 <= I < N, such as 0/8; got {text}.")
    return part, parts

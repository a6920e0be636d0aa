"""CLIP's byte pair encoding: vocabulary files, cleaning of text, and decoding of tokens."""

from __future__ import annotations

import gzip
import html
import importlib.util
import os
import re
import zlib

from mmjax import files, limits
from mmjax.errors import UserError

VOCAB_FILE = "bpe_simple_vocab_16e6.txt.gz"  # the file in OpenAI's and OpenCLIP's packages
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
# The regular expression that splits text into words before byte pairs are merged.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NUM_MERGES = 49152 - 256 - 2  # merges that CLIP uses; the file contains more


def find_vocab_file() -> str:
    """Returns CLIP's vocabulary file in an installed package, which is not imported.

    Raises:
      UserError: Neither open_clip nor clip is installed.
    """
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for directory in (spec and spec.submodule_search_locations) or ():
            path = os.path.join(directory, VOCAB_FILE)
            if os.path.isfile(path):
                return path
    raise UserError(
        "data.text.tokenizer='clip' needs CLIP's vocabulary. Either run `pip install --no-deps "
        "open_clip_torch`, which contains it (its code is not used), or set data.text.vocab to a "
        f"copy of {VOCAB_FILE}, or set it to vocab.json and data.text.merges to merges.txt."
    )


def read_files(vocab: str, merges: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns `({token: id}, merges)` of a vocabulary.

    Args:
      vocab: CLIP's list of merges (.txt or .txt.gz), or `vocab.json`.
      merges: `merges.txt` for a `vocab.json`, or ''.

    Raises:
      UserError: `merges` is missing, a file is malformed, or a special token is missing.
    """
    if vocab.endswith(".json") and not merges:
        raise UserError(
            f"data.text.tokenizer='clip' with data.text.vocab={vocab} also needs data.text.merges: "
            "the path of merges.txt."
        )
    path = merges or vocab
    text = _unpacked(path) if path.endswith(".gz") else files.read_text(path)
    lines = text.split("\n")[1:]  # the first line is a version
    pairs = [tuple(line.split()) for line in (lines if merges else lines[:_NUM_MERGES]) if line]
    pairs = [pair for pair in pairs if pair]
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(
                f"{path} is not a list of merges: expected two subwords per line; got "
                f"{' '.join(pair)!r}."
            )
    if not pairs:
        raise UserError(f"{path} contains no merges. Download the file again.")
    if merges:
        ids = files.read_json(vocab)
        if not isinstance(ids, dict) or any(
            type(index) is not int or not 0 <= index < 2**31 for index in ids.values()
        ):
            raise UserError(f"{vocab} is not a JSON file of {{token: id}}.")
    else:
        letters = _letter_bytes()
        tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, pairs)]
        ids = {token: index for index, token in enumerate([*tokens, BEGIN, END])}
    if missing := [token for token in (BEGIN, END) if token not in ids]:
        raise UserError(f"{vocab}: CLIP's vocabulary must contain {' and '.join(missing)}.")
    return ids, pairs


def _unpacked(path: str) -> str:
    """Returns the text in a gzip file."""
    try:
        packed = os.path.getsize(path)
        with gzip.open(path) as file:
            data = file.read(limits.max_unpacked(packed) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Cannot read {path} as gzip: {error}. Download it again.") from error
    limits.check_unpacked(len(data), packed, f"{path} unpacks to at least")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}. Download it again.") from error


def clean(text: str) -> str:
    """Returns a text as CLIP encodes it.

    Ligatures, full-width letters and encoding errors are repaired by ftfy, as in OpenCLIP, HTML
    entities are decoded, whitespace is collapsed, and letters are lowercased.
    """
    import ftfy  # only CLIP's tokenizer needs it

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def join(tokens: list[str]) -> str:
    """Returns the text of tokens."""
    byte_of = _letter_bytes()
    words = "".join(tokens).split("</w>")
    texts = [bytes(byte_of[letter] for letter in word) for word in words]
    return " ".join(text.decode(errors="replace") for text in texts).strip()


def _letter_bytes() -> dict[str, int]:
    """Returns {printable letter: byte} in CLIP's order, with printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + index): byte for index, byte in enumerate(rest)}

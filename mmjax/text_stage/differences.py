"""Images of mask differences with captions, to fine-tune FLAIR: the command `mmjax differences`.

A directory contains `captions.jsonl`, one line per pair, written as soon as there is a caption;
`images/<key>.png`, the difference of both masks; `pairs/<key>/0.png` and `1.png`, the true and the
predicted mask; when all are complete, the tables `differences.csv` and `pairs.csv` for
`mmjax build`; and `manifest.json`.
"""

from __future__ import annotations

import collections
import csv
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from mmjax import config, files
from mmjax.diagnostic_text import writer as writers
from mmjax.diagnostic_text.pairs import Pair
from mmjax.diagnostic_text.prompt_images import comparison_images, difference_image, encode_png
from mmjax.diagnostic_text.writer import Failure, Writer
from mmjax.errors import UserError
from mmjax.text_stage.predicted_pairs import PredictedPairs

DIFFERENCES, PAIRS = "differences.csv", "pairs.csv"
MANIFEST, CAPTIONS = "manifest.json", "captions.jsonl"
_VERSION = 1
_SEPARATOR = "|"  # of several captions in a cell, for `mmjax build`
# Options of writers that may change before the command is run again: they do not change texts.
_CONNECTION = ("url", "connection", "store", "failure_limit")


def write_differences(pairs: PredictedPairs, out: str, *, progress: bool = True) -> str:
    """Writes images and captions of all pairs. Those in the directory are kept.

    Args:
      pairs: The model and the dataset. Its options are those of images and of the writer.
      out: Directory to write, or to complete.
      progress: Whether to show a progress bar.

    Returns:
      A description of the result, with the commands to run next.

    Raises:
      UserError: The directory was made in another way, the writer cannot write, or an example
        cannot be used.
    """
    section = dict(pairs.options.writer)
    name = section.pop("name", "describer")
    writer = writers.build(name, section, "text.writer")
    made = pairs.description() | {"alpha": pairs.options.alpha, "writer": {"name": name}}
    made["writer"] |= {k: v for k, v in config.plain(section).items() if k not in _CONNECTION}
    directory = _Directory(pathlib.Path(out), made, model=pairs.source, data=pairs.data)
    try:
        writer.prepare()
        for batch in pairs.batches(progress=progress):
            directory.add(batch, writer, pairs.options.alpha)
    finally:
        writer.close()
    directory.finish(pairs.split, pairs.num_examples - pairs.without_mask)
    return directory.describe()


class _Directory:
    """The directory that is written.

    Args:
      path: The directory.
      made: What determines its content, as JSON values.
      **details: Further entries of the manifest.

    Raises:
      UserError: The directory exists and was made in another way.
    """

    def __init__(self, path: pathlib.Path, made: Mapping[str, Any], **details: Any):
        self._path = path
        self._manifest = {"format_version": _VERSION, **details, "made": json.loads(_dumps(made))}
        if (path / MANIFEST).exists():
            self._check()
        elif path.exists() and any(path.iterdir()):
            raise UserError(
                f"--out={path} contains other files, but no {MANIFEST}. Pass another directory."
            )
        for name in ("images", "pairs"):
            (path / name).mkdir(parents=True, exist_ok=True)
        files.write_json(path / MANIFEST, self._manifest | {"complete": False})
        self._captions = _read_captions(path / CAPTIONS)
        self._order: list[str] = []
        self._failures: collections.Counter[str] = collections.Counter()

    def _check(self) -> None:
        before = files.read_object(
            self._path / MANIFEST, "Pass another directory, or delete this one."
        )
        old, new = before.get("made", {}), self._manifest["made"]
        names = [name for name in new | old if old.get(name) != new.get(name)]
        if before.get("format_version") != _VERSION:
            names.append("format_version")
        if names:
            listed = "; ".join(
                f"{name}: {_dumps(old.get(name))} before, {_dumps(new.get(name))} now"
                for name in names
            )
            raise UserError(
                f"--out={self._path} was made in another way ({listed}). Pass another directory, "
                "or delete this one."
            )

    def add(self, pairs: Iterable[Pair], writer: Writer, alpha: float) -> None:
        """Adds pairs, in this order; those that are there already are kept."""
        pairs = list(pairs)
        self._order += [pair.key for pair in pairs]
        new = [pair for pair in pairs if pair.key not in self._captions]
        results = writer.write(new) if new else []
        lines = []
        for pair, result in zip(new, results, strict=True):
            if isinstance(result, Failure):
                self._failures[result.reason] += 1
                logging.warning("%s: no caption (%s): %s", pair.key, result.reason, result.message)
                continue
            self._write_images(pair, alpha)
            row = {"key": pair.key, "class": pair.class_name, "caption": result.text}
            self._captions[pair.key] = result.text
            lines.append(json.dumps(row) + "\n")
        if lines:
            with open(self._path / CAPTIONS, "a", encoding="utf-8") as file:
                file.write("".join(lines))

    def _write_images(self, pair: Pair, alpha: float) -> None:
        image = encode_png(difference_image(pair, alpha))
        (self._path / "images" / f"{pair.key}.png").write_bytes(image)
        directory = self._path / "pairs" / pair.key
        directory.mkdir(exist_ok=True)
        for index, image in enumerate(comparison_images(pair, alpha)):
            (directory / f"{index}.png").write_bytes(encode_png(image))

    def finish(self, split: str, num_images: int) -> None:
        """Writes the tables and the counts."""
        keys = [key for key in self._order if key in self._captions]
        self._write_table(DIFFERENCES, keys, "images/{}.png", split)
        self._write_table(PAIRS, keys, "pairs/{}", split)
        self._manifest |= {
            "complete": True,
            "num_images": num_images,
            "num_pairs": len(self._order),
            "num_captions": len(keys),
            "failures": dict(sorted(self._failures.items())),
        }
        files.write_json(self._path / MANIFEST, self._manifest)

    def _write_table(self, name: str, keys: Iterable[str], path: str, split: str) -> None:
        with files.atomic_open(self._path / name) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("path", "caption", "split"))
            for key in keys:
                caption = self._captions[key].replace(_SEPARATOR, "/")
                table.writerow((path.format(key), caption, split))

    def describe(self) -> str:
        """Returns the counts, and the commands to run next."""
        manifest, path = self._manifest, self._path
        lines = [
            f"{path}: captions of {manifest['num_captions']} of {manifest['num_pairs']} pairs in "
            f"{manifest['num_images']} images."
        ]
        if self._failures:
            reasons = ", ".join(f"{name} {count}" for name, count in manifest["failures"].items())
            lines.append(f"No caption: {reasons}. Run the command again to try these again.")
        build = "mmjax build --size 0 --csv"
        lines += [
            f"Next: {build} {path / DIFFERENCES} --out datasets/mask_differences",
            f"  or: {build} {path / PAIRS} --out datasets/mask_pairs",
        ]
        return "\n".join(lines)


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _read_captions(path: pathlib.Path) -> dict[str, str]:
    """Returns {key: caption} of a file, without an incomplete last line, which is removed."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        with files.atomic_open(path, "wb") as file:
            file.write(complete)
    rows = [files.parse_json(line, str(path)) for line in complete.splitlines()]
    try:
        return {row["key"]: str(row["caption"]) for row in rows}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: a line has no key or caption. Delete it.") from error

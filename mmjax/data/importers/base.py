"""Types of all importers: `Importer`, its options, and the input and output of its reader.

An importer is an `Importer` with a function that reads official annotation files and yields
`AnnotatedExample`s. `run.import_dataset` finds their media files and writes the table.
"""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from mmjax.data.importers.annotations import Annotations, read_lines
from mmjax.data.importers.media_directory import MediaDir
from mmjax.errors import UserError, check_choice

EVALUATION = "validation+test"  # splits of an official validation set that results are reported on
_MAX_EXAMPLES = 3  # skipped annotations of a group that the report names


@dataclasses.dataclass(frozen=True)
class MediaName:
    """A possible name of an example's media file, and the part of the file that is the example.

    Attributes:
      name: File name without directory and suffix.
      start: Start in seconds; None for the start of the file.
      end: End in seconds; None for the end of the file.
    """

    name: str
    start: float | None = None
    end: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatedExample:
    """One example of a dataset's annotations.

    Attributes:
      location: 'FILE, line N' of the annotation, for messages.
      split: Name of its split, or several joined by '+'.
      media: Possible names of its media file. The first that exists is used; the first is reported
        if none exists.
      hints: Directory names that select among files of the same name; see `MediaDir.find`.
      path: Path of the media file relative to the media directory, if the reader knows it. Then
        `media` may be empty.
      captions: The best caption first.
      labels: Class names.
      touch: Paths of touch images.
      background: Path of the background of the touch images; '' for none.
      crop: (top, left, height, width) in pixels; None for the whole image.
      mask: Path of the segmentation mask of the image; '' for none.
      missing_file: Path of a file that does not exist; the example is skipped then. Else ''.
      extra: Additional columns. Only .jsonl tables can hold them; `mmjax build` must ignore them.
    """

    location: str
    split: str
    media: tuple[MediaName, ...] = ()
    hints: tuple[str, ...] = ()
    path: str | None = None
    captions: Sequence[str] = ()
    labels: Sequence[str] = ()
    touch: Sequence[str] = ()
    background: str = ""
    crop: tuple[int, int, int, int] | None = None
    mask: str = ""
    missing_file: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """An option of an importer: a flag of `mmjax import`, an attribute of `Job.options`.

    Attributes:
      name: Name of the attribute; the flag of `clip_seconds` is `--clip-seconds`.
      help: Help text of the flag.
      type: Type of a value. A `bool` is False by default and its flag takes no value.
      default: Value without the flag.
      choices: Valid values; () accepts any value.
      metavar: Placeholder of the value in the help text.
      nargs: '+' or '*' for a list of values; None for one value.
    """

    name: str
    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    choices: tuple[Any, ...] = ()
    metavar: str | None = None
    nargs: Literal["+", "*"] | None = None

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of `ArgumentParser.add_argument` for the flag."""
        if self.type is bool:
            return {"action": "store_true", "help": self.help}
        return {
            "help": self.help,
            "type": self.type,
            "default": self.default,
            "choices": self.choices or None,
            "metavar": self.metavar,
            "nargs": self.nargs,
        }


@dataclasses.dataclass(kw_only=True)
class Skipped:
    """A group of annotations that a reader skipped.

    Attributes:
      count: How many.
      examples: Names of the first of them; empty if the reader names none.
    """

    count: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(kw_only=True)
class Job:
    """One import, as the reader of a dataset sees it.

    Attributes:
      annotations: The official annotation files.
      media: The media directory.
      options: Values of the importer's options, as attributes.
      mask_dir: Directory for masks that the reader writes, below that of the table.
      classes: Class names in official order. The reader sets them before its first example; None
        means the labels that occur, in alphabetical order.
      mask_classes: Class names of segmentation masks by value; None without masks.
      skipped: Skipped annotations by group; see `skip`.
      notes: Sentences for the report, in lower case: the report prefixes the dataset's name.
    """

    annotations: Annotations
    media: MediaDir
    options: types.SimpleNamespace
    mask_dir: str = "masks"
    classes: list[str] | None = None
    mask_classes: list[str] | None = None
    skipped: dict[str, Skipped] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def skip(self, group: str, *, example: str = "", count: int = 1) -> None:
        """Counts annotations that are not imported, for the report.

        Args:
          group: A plural phrase with the reason, such as 'images without a caption'.
          example: Name of the annotation; the report shows the first few.
          count: Number of annotations.
        """
        skipped = self.skipped.setdefault(group, Skipped())
        skipped.count += count
        if example and len(skipped.examples) < _MAX_EXAMPLES:
            skipped.examples.append(example)

    def read_classes_option(self) -> None:
        """Sets the classes to the lines of the file in the option `classes`, if it is set."""
        if path := self.options.classes:
            if not os.path.isfile(path):
                raise UserError(f"--classes {path}: no such file.")
            self.classes = [name for _, name in read_lines(path)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importer:
    """A dataset, or a format of datasets, that `mmjax import` reads.

    Attributes:
      name: Name on the command line.
      title: One line for `mmjax import --list`.
      annotation_files: The official annotation files, for the help text.
      media_names: The supported names of media files, for the help text.
      read: Reads the annotations and yields the examples.
      options: Options of this importer.
      separate_annotations: Whether the annotations are passed as `--annotations`. Otherwise, they
        are in the media directory.
      columns: Columns of the table besides path, start, end and split.
      num_classes: Number of classes of the complete dataset; 0 for a dataset without classes.
      fuzzy_names: See `fuzzy` of `MediaDir`.
      skip_duplicates: Whether to skip annotations of a clip that is already in the table. This
        keeps all clips in memory.
      build_options: Suitable options of `mmjax build`.
      named_after_table: Whether the built dataset is named after the table, not this importer.
      reference: `package.module:Name` if the importer is not built in; set by `importers.find`.
    """

    name: str
    title: str
    annotation_files: str
    media_names: str
    read: Callable[[Job], Iterator[AnnotatedExample]]
    options: tuple[Option, ...] = ()
    separate_annotations: bool = True
    columns: tuple[str, ...] = ("label",)
    num_classes: int = 0
    fuzzy_names: bool = False
    skip_duplicates: bool = True
    build_options: str = ""
    named_after_table: bool = False
    reference: str = ""

    @property
    def help_command(self) -> str:
        """The command that prints the files and names that this importer expects."""
        return f"mmjax import {self.reference or self.name} --help"

    def resolve_options(self, values: Mapping[str, Any]) -> types.SimpleNamespace:
        """Returns all options as attributes, with defaults for those not in `values`.

        Raises:
          UserError: A name in `values` is not an option of this importer.
        """
        defaults = {o.name: False if o.type is bool else o.default for o in self.options}
        for name in values:
            check_choice(f"option of the importer {self.name}:", name, defaults)
        return types.SimpleNamespace(**{**defaults, **values})

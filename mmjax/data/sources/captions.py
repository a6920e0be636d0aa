"""The captions of records, without reading their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.data.sources import captions_and_labels
from mmjax.data.sources.registry import Source
from mmjax.data.storage import schema


def read_captions(source: Source, numbers: Sequence[int]) -> list[list[str]]:
    """The captions of records, in order; [] of a record without.

    Args:
      source: of `mmjax.data.sources.registry.open_source`.
      numbers: of the records.

    Raises:
      UserError: a record that cannot be read.
    """
    return [captions for captions, _ in read_contexts(source, numbers)]


def read_contexts(source: Source, numbers: Sequence[int]) -> Iterator[tuple[list[str], str]]:
    """(captions, file name) of records, in order; see `read_captions`."""
    return captions_and_labels.read(
        source, numbers, _said, lambda whole: (whole.captions, whole.filename)
    )


def _said(context: Mapping[str, Any]) -> tuple[list[str], str] | None:
    # They may lie among the images, as some writers of DMVR's format have it.
    if schema.CAPTIONS[0] not in context:
        return None
    captions = context[schema.CAPTIONS[0]].bytes_list.value
    names = [v for key in schema.FILENAME for v in context[key].bytes_list.value]
    texts = [value.decode(errors="replace") for value in (*captions, *names[:1])]
    return texts[: len(captions)], "".join(texts[len(captions) :])

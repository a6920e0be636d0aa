"""The captions of records, read without their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.data.sources import record_contexts
from mmjax.data.sources.base import Source
from mmjax.data.storage import schema


def read_captions(source: Source, records: Sequence[int]) -> list[list[str]]:
    """Returns the captions of records, in the order of `records`; [] for one without captions.

    Args:
      source: A source from `mmjax.data.sources.registry.open_source`.
      records: Indices of the records.

    Raises:
      UserError: A record cannot be read.
    """
    return [captions for captions, _ in read_captions_and_filenames(source, records)]


def read_captions_and_filenames(
    source: Source, records: Sequence[int]
) -> Iterator[tuple[list[str], str]]:
    """Yields `(captions, file name)` of records, in the order of `records`; see `read_captions`."""
    return record_contexts.read(
        source,
        records,
        from_context=_from_context,
        from_example=lambda example: (example.captions, example.filename),
    )


def _from_context(context: Mapping[str, Any]) -> tuple[list[str], str] | None:
    # Some writers of DMVR's format store captions as a feature list, next to the images.
    if schema.CAPTIONS[0] not in context:
        return None
    captions = context[schema.CAPTIONS[0]].bytes_list.value
    names = [value for key in schema.FILENAME for value in context[key].bytes_list.value]
    texts = [value.decode(errors="replace") for value in (*captions, *names[:1])]
    return texts[: len(captions)], "".join(texts[len(captions) :])

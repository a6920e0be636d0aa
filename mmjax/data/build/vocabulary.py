"""Writes the vocabulary of a dataset's captions: `mmjax vocab`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from mmjax.data.storage import dataset, schema
from mmjax.data.text import word_vocab
from mmjax.errors import UserError


def write_vocabulary(
    path: str, *, split: str = "train", size: int = 65_536, extra_texts: Sequence[str] = ()
) -> list[str]:
    """Writes the words in the captions of a split to `vocab.txt` of the dataset.

    Args:
      path: The dataset.
      split: Split of the dataset.
      size: Maximum number of words.
      extra_texts: Texts that are counted in addition to the captions.

    Returns:
      The words, most frequent first.

    Raises:
      UserError: The dataset or split does not exist, or it has no captions.
    """
    directory = dataset.DatasetDir(path)
    records = directory.split(split)
    captions = []
    for index in range(len(records)):
        example = schema.decode(
            records.read(index), waveform_format="unchecked", where=records.where(index)
        )
        captions += example.captions
    if not captions:
        raise UserError(
            f"{path}: the {len(records)} examples of the split {split!r} have no captions."
        )
    words = word_vocab.build_word_vocab([*captions, *extra_texts], size=size)
    word_vocab.write_word_vocab(os.path.join(path, "vocab.txt"), words)
    if os.path.exists(os.path.join(path, dataset.FILE)):
        dataclasses.replace(directory.info, vocabulary="vocab.txt").save(path)
    return words


def keyword_texts(keywords: bool, *, synonyms: str = "", prompt: str = "") -> list[str]:
    """Returns the texts that the keyword augmentation of captions inserts.

    Args:
      keywords: Whether the augmentation is used; if not, the result is empty.
      synonyms: See `mmjax.data.pipeline.keywords.Keywords`.
      prompt: See `mmjax.data.pipeline.keywords.Keywords`.

    Raises:
      UserError: Options without `keywords`.
    """
    from mmjax.data.pipeline.keywords import Keywords, inserted_texts

    if not keywords:
        if synonyms or prompt:
            raise UserError("--synonyms and --prompt need --keywords. Add --keywords.")
        return []
    return inserted_texts(Keywords(synonyms=synonyms, prompt=prompt))

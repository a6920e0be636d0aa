"""Makes a dataset of a folder of shards: indexes, `dataset.json`, a vocabulary."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from mmjax.data.storage import dataset, schema, tfrecord
from mmjax.data.text import word_vocab
from mmjax.errors import UserError


def index(path: str) -> dataset.DatasetInfo:
    """Writes an index beside each shard of a folder, and `dataset.json`.

    What an existing `dataset.json` says of the contents is kept; shards and counts are taken anew.

    Args:
      path: the folder.

    Raises:
      UserError: no folder, no shards, or a damaged one.
    """
    if not os.path.isdir(path):
        raise UserError(f"There is no folder {path}.")
    kept = None
    try:
        kept = dataset.DatasetInfo.load(path)
    except FileNotFoundError:
        pass
    except UserError as error:
        print(f"Not kept: {error}")
    shards = dataset.find_shards(path)
    splits = {}
    for split, names in shards.items():
        counts = [len(tfrecord.build_index(os.path.join(path, name), save=True)) for name in names]
        splits[split] = dataset.SplitInfo(num_examples=sum(counts), shards=names)
    if kept is None:
        json_path = os.path.join(path, dataset.FILE)
        if os.path.exists(json_path):
            os.replace(json_path, f"{json_path}.old")
        kept = dataset.DatasetDir(path).info  # what the first record shows
    info = dataclasses.replace(kept, splits=splits)
    info.save(path)
    return info


def vocabulary(
    path: str, *, split: str = "train", size: int = 65_536, also: Sequence[str] = ()
) -> list[str]:
    """Writes the words of a split's captions to `vocab.txt`; returns them, the most frequent first.

    Args:
      path: the dataset.
      split: whose captions.
      size: the most words to keep.
      also: texts whose words count as those of captions.

    Raises:
      UserError: no such dataset or split, or no captions in it.
    """
    directory = dataset.DatasetDir(path)
    records_of_split = directory.split(split)
    captions = []
    for number in range(len(records_of_split)):
        example = schema.decode(
            records_of_split.read(number),
            waveform_format="unchecked",
            where=records_of_split.where(number),
        )
        captions += example.captions
    if not captions:
        raise UserError(f"The split {split!r} of {path} has no captions.")
    words = word_vocab.build_word_vocab([*captions, *also], size=size)
    word_vocab.write_word_vocab(os.path.join(path, "vocab.txt"), words)
    if os.path.exists(os.path.join(path, dataset.FILE)):
        dataclasses.replace(directory.info, vocabulary="vocab.txt").save(path)
    return words


def keyword_texts(keywords: bool, *, synonyms: str = "", prompt: str = "") -> list[str]:
    """Returns the texts that the keyword augmentation of captions inserts.

    Args:
      keywords: Whether the augmentation is used; if not, the result is empty.
      synonyms, prompt: Its options, as in `mmjax.data.pipeline.keywords.Keywords`.

    Raises:
      UserError: Options without `keywords`.
    """
    from mmjax.data.pipeline import keywords as keywords_lib

    if not keywords:
        if synonyms or prompt:
            raise UserError("--synonyms and --prompt are options of --keywords. Add --keywords.")
        return []
    return keywords_lib.inserted_texts(keywords_lib.Keywords(synonyms=synonyms, prompt=prompt))

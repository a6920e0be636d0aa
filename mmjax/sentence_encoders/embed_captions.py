"""Embeds the captions of a dataset; used by `mmjax sentences`.

Vectors are written to their final positions chunk by chunk. An interrupted run is resumed, and
memory holds only one chunk of captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.sources import registry as sources
from mmjax.errors import UserError, check_choice
from mmjax.neighbors import search_dataset
from mmjax.sentence_encoders import text_features
from mmjax.sentence_encoders.base import Encoder
from mmjax.sentence_encoders.copy_vectors import copy_vectors
from mmjax.sentence_encoders.registry import make_encoder
from mmjax.sentence_encoders.text_features import Result, TextFeatures

CAPTIONS = ("first", "mean", "all")
_COUNTERS = ("no_caption", "no_known_word")  # numbers of records without a vector


def embed_captions(
    dataset: str,
    out: str,
    *,
    encoder: str,
    split: str = "train",
    captions: str | None = None,
    ids: str | None = None,
    progress: bool = True,
    **options: Any,
) -> str:
    """Writes vectors of the captions of a split, or copies existing ones.

    Args:
      dataset: The dataset.
      out: Directory of features to write.
      encoder: A sentence encoder; see `mmjax.sentence_encoders.registry.make_encoder`. 'npy:FILE'
        copies the vectors of a file.
      split: Split of the dataset.
      captions: For records with several captions: 'first' (the default) embeds the first, 'mean'
        averages all, and 'all' keeps all, so that training can sample one at each visit.
      ids: With 'npy:FILE': a file with the file name of each vector's record, one per line.
      progress: Whether to show a progress bar.
      **options: Options of the encoder; None for its default.

    Returns:
      A description of the result for the user.

    Raises:
      UserError: The arguments do not fit together, or the captions cannot be embedded.
    """
    source = sources.open_source(dataset, split=split)
    features = TextFeatures(source=source, split=split, out=out, progress=progress)
    name, _, file = encoder.partition(":")
    if name == "npy":
        for option, value in {**options, "captions": captions}.items():
            if value is not None:
                raise UserError(
                    f"--{option.replace('_', '-')} {value} is not an option of --encoder "
                    f"{encoder}, which copies existing vectors. Remove it."
                )
        with features.locked():
            result = copy_vectors(features, file, ids=ids)
    else:
        if ids:
            raise UserError(
                f"--ids {ids} is an option of --encoder npy:FILE, not of {encoder}. Remove it."
            )
        made = make_encoder(encoder, **options)
        with features.locked():
            result = embed(features, made, encoder, captions=captions or "first")
    lines = [f"{result.path}: float32 {result.shape}, captions of {source.name} by {encoder}."]
    following = [f"--config.data.text.features={out} to train on them"]
    if len(result.shape) == 2:  # neighbors are searched with one vector per record
        following.insert(0, search_dataset.neighbors_command(out, data=dataset, split=split))
    return "\n".join([*lines, *result.notices, f"Next: {', or '.join(following)}"])


def embed(
    features: TextFeatures, encoder: Encoder, name: str, *, captions: str = "first"
) -> Result:
    """Embeds the captions of all records.

    Args:
      features: The features to write.
      encoder: The encoder.
      name: Its name on the command line.
      captions: See `embed_captions`.

    Raises:
      UserError: A record cannot be read, the encoder fails, or no record has a caption.
    """
    check_choice("--captions", captions, CAPTIONS)
    source = features.source
    count, variants = source.num_examples, 1
    if encoder.needs_all_captions:
        _prepare(features, encoder, captions)
    if captions == "all":
        variants = max(len(texts) for texts in features.read_all("captions")) or 1
    shape = (count, variants, encoder.width) if captions == "all" else (count, encoder.width)
    made = {"encoder": name, "captions": captions, **encoder.describe()}
    of = [source.name, source.info.source.get("key")]
    job = {"of": of, "shape": list(shape), "made": made}
    vectors, state = features.open_partial(job, _COUNTERS)
    with features.bar(name, initial=state["done"]) as bar:
        for first in range(state["done"], count, text_features.CHUNK):
            records = range(first, min(first + text_features.CHUNK, count))
            texts = [_select(each, captions) for each in features.read(records)]
            table = _embed_texts(encoder, texts, name, f"{source.name}, record ", first)
            values, blank = _combine(
                table, texts, shape[1:], mean=captions == "mean", normalized=encoder.normalized
            )
            vectors[records.start : records.stop] = values
            vectors.flush()
            state["done"] = records.stop
            state["no_caption"] += sum(not each for each in texts)
            state["no_known_word"] += blank
            features.save_state(state)
            bar.update(len(records))
    if state["no_caption"] == count:
        raise UserError(f"{source.name}: none of the {count} records has a caption.")
    features.finish(made)
    reasons = {"no_caption": "no caption", "no_known_word": "captions without a known word"}
    notices = [
        f"{state[key]} of {count} records of {source.name} have {reason}. Their vectors are zeros."
        for key, reason in reasons.items()
        if state[key]
    ]
    return Result(path=features.path, shape=list(shape), notices=notices)


def _prepare(features: TextFeatures, encoder: Encoder, captions: str) -> None:
    texts = (text for each in features.read_all("words") for text in _select(each, captions))
    try:
        encoder.prepare(texts)
    except UserError as error:
        raise UserError(f"{features.source.name}: {error}") from error


def _select(texts: Sequence[str], captions: str) -> list[str]:
    """Returns the captions of a record that are embedded."""
    texts = [text for text in texts if text.strip()]
    return texts[:1] if captions == "first" else texts


def _embed_texts(
    encoder: Encoder, texts: Sequence[Sequence[str]], name: str, where: str, first: int
) -> dict[str, np.ndarray]:
    """Returns {text: vector}; each distinct text is embedded once.

    Args:
      encoder: The encoder.
      texts: The captions of each record.
      name: The encoder's name on the command line.
      where: Start of the name of a record, for error messages.
      first: Index of the first record.

    Raises:
      UserError: The encoder returns another shape, or a vector that is not finite.
    """
    record_of = {
        text: first + index for index, each in reversed([*enumerate(texts)]) for text in each
    }
    distinct = list(dict.fromkeys(text for each in texts for text in each))
    if not distinct:
        return {}
    table = np.asarray(encoder.embed(distinct), np.float32)
    if table.shape != (len(distinct), encoder.width):
        raise UserError(
            f"--encoder {name} returned an array of shape {table.shape} for {len(distinct)} "
            f"texts; expected {(len(distinct), encoder.width)}."
        )
    finite = np.isfinite(table).all(axis=1)
    if not finite.all():
        text = distinct[int(finite.argmin())]
        raise UserError(
            f"{where}{record_of[text]}: --encoder {name} returned a vector that is not finite for "
            f"the caption {text[:80]!r}. Check the weights of the encoder, or use float32."
        )
    return dict(zip(distinct, table, strict=True))


def _combine(
    table: dict[str, np.ndarray],
    texts: Sequence[Sequence[str]],
    shape: Sequence[int],
    *,
    mean: bool,
    normalized: bool,
) -> tuple[np.ndarray, int]:
    """Combines the vectors of each record's captions.

    Args:
      table: {text: vector}.
      texts: The captions of each record.
      shape: Shape of a record: [D], or [K, D] to keep all captions. A record with fewer than K
        captions repeats them.
      mean: Whether to average the captions instead of using the first.
      normalized: Whether to normalize means.

    Returns:
      float32 [len(texts), *shape], and the number of records with captions but without a vector.
    """
    result, blank = np.zeros((len(texts), *shape), np.float32), 0
    for vector, each in zip(result, texts, strict=True):
        known = np.array([table[text] for text in each if table[text].any()])
        if not len(known):
            blank += bool(each)
        elif len(shape) == 2:
            vector[:] = known[np.arange(len(vector)) % len(known)]
        elif mean:
            vector[:] = known.mean(axis=0)
            if normalized and (length := np.linalg.norm(vector)) > 0:
                vector /= length
        else:
            vector[:] = known[0]
    return result, blank

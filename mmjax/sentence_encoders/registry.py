"""Creates the sentence encoder that `--encoder` selects."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from mmjax import config, registry
from mmjax.errors import UserError
from mmjax.sentence_encoders import bert_files
from mmjax.sentence_encoders.base import Encoder

# {name: class}. 'NAME:' takes an argument after the colon.
ENCODERS = {
    "words": "mmjax.sentence_encoders.bag_of_words:BagOfWords",
    "vectors:": "mmjax.sentence_encoders.word_vectors:WordVectors",
    "st:": "mmjax.sentence_encoders.sentence_transformers:SentenceTransformers",
}
_BERT = "mmjax.sentence_encoders.bert:BertEncoder"
_INTERFACE = ("width", "normalized", "needs_all_captions", "prepare", "describe", "embed")


def make_encoder(spec: str, **options: Any) -> Encoder:
    """Returns a sentence encoder.

    Args:
      spec: 'words', 'st:NAME', 'vectors:FILE', a directory with a BERT model, or
        'package.module:Name' for a class with the interface of `base.Encoder`.
      **options: Options of the command (`batch_size`, `max_length`, `dtype`, `width`, `vocab`);
        None for those that are not set.

    Raises:
      UserError: The encoder is unknown or cannot be loaded, or it does not take an option.
    """
    name, colon, argument = spec.partition(":")
    directory = os.path.expanduser(spec)
    if name + colon in ENCODERS:
        cls = registry.resolve("--encoder", name + colon, ENCODERS)
        arguments = (argument,) if colon else ()
    elif bert_files.is_directory(directory):
        cls, arguments = registry.resolve("--encoder", _BERT, {}), (directory,)
    elif registry.is_reference(spec) and ("." in name or importlib.util.find_spec(name)):
        cls, arguments = registry.resolve("--encoder", spec, {}), ()
    else:
        raise UserError(
            f"--encoder {spec} is not an encoder. Expected a directory with config.json and "
            "model.safetensors, words, vectors:FILE, npy:FILE, st:NAME (a model of the package "
            "sentence-transformers), or package.module:Name for your own class."
        )
    encoder = cls(*arguments, **_checked_options(cls, spec, options))
    if missing := [name for name in _INTERFACE if not hasattr(encoder, name)]:
        raise UserError(
            f"--encoder {spec}: {type(encoder).__name__} lacks {', '.join(missing)}. Make it a "
            "subclass of mmjax.sentence_encoders.base.Encoder."
        )
    return encoder


def _checked_options(cls: Any, spec: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that are set, if the constructor takes them."""
    taken = [name for name in options if name in config.parameters(cls)]
    result = {name: value for name, value in options.items() if value is not None}
    for name, value in result.items():
        flag = f"--{name.replace('_', '-')}"
        if name not in taken:
            valid = ", ".join(f"--{other.replace('_', '-')}" for other in taken) or "none"
            raise UserError(f"{flag} is not an option of --encoder {spec}. Its options: {valid}.")
        if isinstance(value, int) and value < 1:
            raise UserError(f"{flag} must be at least 1; got {value}.")
    return result

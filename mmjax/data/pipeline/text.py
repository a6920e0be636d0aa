"""Captions as token ids: the section `data.text` and its functions of the input pipeline."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tensorflow as tf

from mmjax.data.pipeline.common import Context, check_positive, first_present
from mmjax.data.pipeline.keywords import Keywords, keywords_of, sentence_maker
from mmjax.data.pipeline.phases import Features, Function, Pipeline, seed_of
from mmjax.data.pipeline.precomputed_features import add_precomputed
from mmjax.data.storage import schema
from mmjax.errors import UserError

_KEY = schema.CAPTIONS[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The section `data.text`.

    Attributes:
      tokenizer: 'word', 'bert', 'sentencepiece' or 'clip'.
      vocab: Vocabulary file of the tokenizer; '' takes that of the dataset.
      merges: Merges file of the 'clip' tokenizer, if its vocabulary has one.
      max_tokens: Number of token ids per caption; shorter captions are padded with 0.
      candidates: Number of captions per example; missing ones are zeros with mask 0.
      sample: Which captions to take if there are more: the 'first' ones or, in training, 'random'
        ones.
      require_text: Whether an example without a caption is corrupt; see `data.corrupt`.
      features: Directories of `mmjax.data.pipeline.precomputed_features`, one per source. In
        training, these features of the frozen text tower replace the tokens. They belong to one
        caption, so `candidates` must be 1.
      keywords: How to make sentences from captions that are lists of keywords; None uses captions
        unchanged.
    """

    tokenizer: str = "word"
    vocab: str = ""
    merges: str = ""
    max_tokens: int = 16
    candidates: int = 5
    sample: Literal["first", "random"] = "first"
    require_text: bool = False
    features: str | tuple[str, ...] = ""
    keywords: Keywords | None = None

    def __post_init__(self) -> None:
        check_positive("text", self, "max_tokens", "candidates")
        if self.features and self.candidates != 1:
            raise UserError(
                f"data.text.candidates={self.candidates}, but data.text.features holds features "
                "of one caption per example. Set data.text.candidates=1, or data.text.features=''."
            )


def add_text(pipeline: Pipeline, options: Text, context: Context) -> None:
    """Adds the batch fields of text, with L candidates of W tokens.

    Fields: `text`, int32 [L, W] with 0 for padding, or float32 [1, D] with precomputed features;
    and `text_mask` [L], 1 where there is a caption.

    Functions: parse 'text', sample 'text', and postprocess 'tokens', which tokenizes a batch at
    once.
    """
    pipeline.context(_KEY, tf.string)
    pipeline.sequence(_KEY, tf.string)
    pipeline.add("parse", "text", _parse(options))
    if "text" in context.features:
        add_precomputed(pipeline, "text", context.features["text"], shape=[1])
        return
    pipeline.add("sample", "text", _sample(options, train=context.train))
    tokenizer = context.tokenizer

    def tokens(features: Features) -> Features:
        ids = tokenizer.encode_tensor(tf.reshape(features["text"], [-1]))
        shape = [-1, options.candidates, options.max_tokens]
        return features | {"text": tf.reshape(ids, shape)}

    pipeline.add("postprocess", "tokens", tokens)


def _parse(options: Text) -> Function:
    """Returns the function that reads the captions and drops empty ones."""
    limit = options.candidates

    def parse(features: Features) -> Features:
        captions = first_present(
            features[f"_context/{_KEY}"], features[f"_sequence/{_KEY}"].flat_values
        )
        lengths = tf.strings.length(captions)
        if options.keywords:
            lengths = keywords_of(captions).row_lengths()
        captions = tf.boolean_mask(captions, lengths > 0)
        if options.require_text:
            tf.debugging.Assert(
                tf.size(captions) > 0,
                ["the record has no caption, which data.text.require_text=True requires"],
            )
        mask = tf.sequence_mask(tf.minimum(tf.size(captions), limit), limit, tf.float32)
        return features | {"_captions": captions, "text_mask": mask}

    return parse


def _sample(options: Text, *, train: bool) -> Function:
    """Returns the function that chooses the candidates."""
    limit = options.candidates
    make_sentences = options.keywords and sentence_maker(options.keywords, train=train)

    def sample(features: Features) -> Features:
        captions = features["_captions"]
        if train and options.sample == "random":
            values = tf.random.stateless_uniform([tf.size(captions)], seed_of(features, "captions"))
            captions = tf.gather(captions, tf.argsort(values))
        captions = captions[:limit]
        if make_sentences:
            captions = make_sentences(captions, features)
        padded = tf.pad(captions, [[0, limit - tf.size(captions)]], constant_values="")
        return features | {"text": tf.ensure_shape(padded, [limit])}

    return sample

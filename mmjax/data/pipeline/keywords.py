"""Sentences from captions that are lists of keywords: the section `data.text.keywords`.

"Smooth, hard, cool." becomes "cool, and hard." or another combination: tactile attributes have no
order, and a text encoder should learn each keyword separately. All functions are TensorFlow and
deterministic given their seeds.

Source: the captions of TVL's published code (Fu et al. 2024, A Touch, Vision, and Language Dataset
for Multimodal Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import tensorflow as tf

from mmjax.data.pipeline.phases import Features, seed_of
from mmjax.data.text.synonyms import load_synonyms
from mmjax.errors import UserError

MAX_KEYWORDS = 62  # per caption: a subset is encoded in the bits of an int64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keywords:
    """The section `data.text.keywords`.

    In training the keywords of a caption are sampled anew each time it is read. In evaluation a
    sentence has all of them, in their order.

    Attributes:
      subset: Whether to take a random subset of the keywords, uniform over all nonempty subsets.
      eval_subset: Whether to do so in evaluation too, as TVL's published code does.
      shuffle: Whether to shuffle the keywords.
      synonyms: A JSON file {word: [other words]}, or 'tactile' for the table of mmjax. Each
        keyword becomes itself or one of its synonyms with equal probability. '' for none.
      keep_synonyms: Number of words kept of each list of synonyms, the keyword included; 0 for
        all.
      prompt: Start of the sentence, with its trailing space. TVL's is "This image gives tactile
        feelings of ".
      grammar: 'tvl' puts a comma before every 'and' ("smooth, and hard."), as in the training of
        the published encoders; 'english' omits it between two words ("smooth and hard.").
      seed: Seed of the sampling.
    """

    subset: bool = True
    eval_subset: bool = False
    shuffle: bool = True
    synonyms: str = ""
    keep_synonyms: int = 0
    prompt: str = ""
    grammar: Literal["tvl", "english"] = "tvl"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep_synonyms < 0:
            raise UserError(
                "data.text.keywords.keep_synonyms must be at least 0 (0 keeps all); got "
                f"{self.keep_synonyms}."
            )


def inserted_texts(options: Keywords) -> list[str]:
    """Returns the texts that sentences may contain and captions do not.

    These are 'and', the prompt and the synonyms. The vocabulary must cover them.
    """
    texts = ["and", *filter(None, [options.prompt])]
    if options.synonyms:
        groups = load_synonyms(options.synonyms, keep=options.keep_synonyms)
        texts += [word for group in groups.values() for word in group]
    return texts


def sentence_maker(options: Keywords, *, train: bool) -> Callable[[tf.Tensor, Features], tf.Tensor]:
    """Returns a function (captions [n], features of the example) -> sentences [n].

    Captions without any keyword become ''.
    """
    subset = options.subset if train else options.eval_subset
    replace = None
    if train and options.synonyms:
        replace = _synonym_sampler(load_synonyms(options.synonyms, keep=options.keep_synonyms))

    def make_sentences(captions: tf.Tensor, features: Features) -> tf.Tensor:
        def seed(choice: str) -> tf.Tensor:
            return seed_of(features, f"keywords{options.seed} {choice}")

        keywords = keywords_of(captions)
        if subset:
            keywords = _random_subset(keywords, seed("subset"))
        if train and options.shuffle:
            keywords = _shuffled(keywords, seed("order"))
        if replace:
            keywords = keywords.with_flat_values(replace(keywords.flat_values, seed("synonyms")))
        return join(keywords, prompt=options.prompt, grammar=options.grammar)

    return make_sentences


def keywords_of(captions: tf.Tensor) -> tf.RaggedTensor:
    """Returns the keywords of captions [n] in lower case, ragged [n, keywords].

    Keywords are separated by commas. Periods, line breaks and surrounding spaces are removed, and
    empty keywords are dropped.
    """
    plain = tf.strings.lower(tf.strings.regex_replace(captions, r"[.\r\n]", ""), encoding="utf-8")
    keywords = tf.strings.split(plain, ",")
    keywords = keywords.with_flat_values(tf.strings.strip(keywords.flat_values))
    return tf.ragged.boolean_mask(keywords, tf.strings.length(keywords) > 0)


def join(
    keywords: tf.RaggedTensor, *, prompt: str = "", grammar: Literal["tvl", "english"] = "tvl"
) -> tf.Tensor:
    """Returns sentences: the prompt, "a, b, and c", and a period; '' without keywords.

    Args:
      keywords: Ragged [n, keywords].
      prompt: Start of each sentence.
      grammar: See `Keywords`.

    Returns:
      string [n].
    """
    counts, captions = keywords.row_lengths(), keywords.value_rowids()
    position = tf.ragged.range(counts).flat_values
    count = tf.gather(counts, captions)
    last = tf.fill(tf.shape(position), ", and ")
    if grammar == "english":
        last = tf.where(count == 2, " and ", last)
    before = tf.where(position == 0, prompt, tf.where(position == count - 1, last, ", "))
    after = tf.where(position == count - 1, ".", "")
    parts = tf.strings.join([before, keywords.flat_values, after])
    return tf.strings.unsorted_segment_join(parts, captions, tf.size(counts))


def _random_subset(keywords: tf.RaggedTensor, seed: tf.Tensor) -> tf.RaggedTensor:
    """Returns a uniformly sampled nonempty subset of each caption's keywords, in their order."""
    counts = keywords.row_lengths()
    tf.debugging.assert_less_equal(
        counts,
        tf.constant(MAX_KEYWORDS, tf.int64),
        f"a caption has more than {MAX_KEYWORDS} keywords, of which no random subset can be "
        "sampled: set data.text.keywords.subset=False (and eval_subset=False), or shorten the "
        "caption",
    )
    values = tf.random.stateless_uniform(tf.shape(counts), seed, None, None, tf.int64)
    subsets = tf.bitwise.left_shift(tf.ones_like(counts), counts) - 1
    # 1 … 2^n − 1 in binary. The bias of the remainder of 64 random bits is negligible.
    bits = 1 + tf.math.floormod(values, tf.maximum(subsets, 1))
    position = tf.ragged.range(counts).flat_values
    chosen = tf.bitwise.right_shift(tf.gather(bits, keywords.value_rowids()), position) % 2 == 1
    return tf.ragged.boolean_mask(keywords, keywords.with_flat_values(chosen))


def _shuffled(keywords: tf.RaggedTensor, seed: tf.Tensor) -> tf.RaggedTensor:
    """Returns the keywords of each caption in a random order."""
    captions = keywords.value_rowids()
    values = tf.random.stateless_uniform(tf.shape(captions), seed, dtype=tf.float64)
    order = tf.argsort(values + tf.cast(captions, tf.float64))
    return keywords.with_flat_values(tf.gather(keywords.flat_values, order))


def _synonym_sampler(
    synonyms: dict[str, list[str]],
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function (words [n], seed) -> words [n]: each word or one of its synonyms."""
    indices = tf.constant(range(len(synonyms)), tf.int64, shape=[len(synonyms)])
    keys = tf.constant(list(synonyms), tf.string, shape=[len(synonyms)])
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, indices), -1)
    # The last list is for words without synonyms.
    lists = tf.ragged.constant([*synonyms.values(), [""]], tf.string, ragged_rank=1)

    def sample(words: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        index = table.lookup(words)
        group = tf.where(index < 0, tf.constant(len(synonyms), tf.int64), index)
        values = tf.random.stateless_uniform(tf.shape(words), seed, None, None, tf.int64)
        choice = tf.math.floormod(values, tf.gather(lists.row_lengths(), group))
        sampled = tf.gather(lists.flat_values, tf.gather(lists.row_starts(), group) + choice)
        return tf.where(index < 0, words, sampled)

    return sample

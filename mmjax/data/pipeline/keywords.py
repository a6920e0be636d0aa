"""Sentences out of captions that are lists of keywords: the section `data.text.keywords`.

"Smooth, hard, cool." becomes "cool, and hard." or any other choice: what a touch feels like has no
order, and an encoder should know each word by itself. Everything is TensorFlow, and a function of
the seeds that it is given.

Source: the captions of TVL's published code (Fu et al. 2024, A Touch, Vision, and Language Dataset
for Multimodal Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from mmjax.data.pipeline.phases import Features, seed_of
from mmjax.data.text.synonyms import load_synonyms
from mmjax.errors import UserError, unknown

MOST = 62  # keywords of a caption: a subset is the bits of an int64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keywords:
    """The section `data.text.keywords`.

    In training a caption's keywords are drawn anew each time it is seen; in evaluation all of them
    stand in their order.

    Attributes:
      subset: take a random choice of the keywords, any but the empty one with equal probability.
      eval_subset: in evaluation too, as TVL's published code does.
      shuffle: put them in a random order.
      synonyms: a JSON file {word: [other words]}, or 'tactile' for the table that comes with mmjax:
        each word becomes itself or one of the others, with equal probability. '' is none.
      keep_synonyms: of each word's, so many, itself included; 0 is all.
      prompt: what begins the sentence, with its blank. TVL's is "This image gives tactile feelings
        of ".
      grammar: 'tvl' puts a comma before every 'and' ("smooth, and hard."), as the released encoders
        were trained; 'english' not between two words ("smooth and hard.").
      seed: another one draws other words.
    """

    subset: bool = True
    eval_subset: bool = False
    shuffle: bool = True
    synonyms: str = ""
    keep_synonyms: int = 0
    prompt: str = ""
    grammar: str = "tvl"
    seed: int = 0

    def __post_init__(self):
        if self.grammar not in ("tvl", "english"):
            raise unknown("data.text.keywords.grammar", self.grammar, ("tvl", "english"))
        if self.keep_synonyms < 0:
            raise UserError(
                f"data.text.keywords.keep_synonyms={self.keep_synonyms} must be at least 0 (all)."
            )


def inserted(options: Keywords) -> list[str]:
    """What sentences may hold that captions do not: 'and', the prompt, the synonyms."""
    texts = ["and", *filter(None, [options.prompt])]
    if options.synonyms:
        groups = load_synonyms(options.synonyms, keep=options.keep_synonyms)
        texts += [word for group in groups.values() for word in group]
    return texts


def sentence_maker(options: Keywords, *, train: bool) -> Callable[[tf.Tensor, Features], tf.Tensor]:
    """A function (captions [n], features of the example) → sentences [n].

    Captions without any keyword become ''.
    """
    subset = options.subset if train else options.eval_subset
    replace = None
    if train and options.synonyms:
        replace = _replacer(load_synonyms(options.synonyms, keep=options.keep_synonyms))

    def sentences(captions: tf.Tensor, features: Features) -> tf.Tensor:
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

    return sentences


def keywords_of(captions: tf.Tensor) -> tf.RaggedTensor:
    """The keywords of captions [n], ragged [n, keywords].

    They stand between commas. Full stops and line breaks are removed, letters made small, blanks
    around a keyword removed, and what is empty then is none.
    """
    plain = tf.strings.lower(tf.strings.regex_replace(captions, r"[.\r\n]", ""), encoding="utf-8")
    words = tf.strings.split(plain, ",")
    words = words.with_flat_values(tf.strings.strip(words.flat_values))
    return tf.ragged.boolean_mask(words, tf.strings.length(words) > 0)


def join(keywords: tf.RaggedTensor, *, prompt: str = "", grammar: str = "tvl") -> tf.Tensor:
    """Sentences [n] of keywords [n, …]: prompt, "a, b, and c", full stop; '' of none."""
    counts, rows = keywords.row_lengths(), keywords.value_rowids()
    place = tf.ragged.range(counts).flat_values
    count = tf.gather(counts, rows)
    last = tf.fill(tf.shape(place), ", and ")
    if grammar == "english":
        last = tf.where(count == 2, " and ", last)
    before = tf.where(place == 0, prompt, tf.where(place == count - 1, last, ", "))
    after = tf.where(place == count - 1, ".", "")
    pieces = tf.strings.join([before, keywords.flat_values, after])
    return tf.strings.unsorted_segment_join(pieces, rows, tf.size(counts))


def _random_subset(keywords: tf.RaggedTensor, seed: tf.Tensor) -> tf.RaggedTensor:
    """Each row's non-empty subsets have equal probability; the order stays."""
    counts = keywords.row_lengths()
    tf.debugging.assert_less_equal(
        counts, tf.constant(MOST, tf.int64), f"a caption has more than {MOST} keywords"
    )
    drawn = tf.random.stateless_uniform(tf.shape(counts), seed, None, None, tf.int64)
    subsets = tf.bitwise.left_shift(tf.ones_like(counts), counts) - 1
    # 1 … 2^n − 1 in binary; of 2^64 draws, the rest of the division favors none that matters.
    number = 1 + tf.math.floormod(drawn, tf.maximum(subsets, 1))
    place = tf.ragged.range(counts).flat_values
    chosen = tf.bitwise.right_shift(tf.gather(number, keywords.value_rowids()), place) % 2 == 1
    return tf.ragged.boolean_mask(keywords, keywords.with_flat_values(chosen))


def _shuffled(keywords: tf.RaggedTensor, seed: tf.Tensor) -> tf.RaggedTensor:
    """Each row in a random order."""
    rows = keywords.value_rowids()
    drawn = tf.random.stateless_uniform(tf.shape(rows), seed, dtype=tf.float64)
    order = tf.argsort(drawn + tf.cast(rows, tf.float64))
    return keywords.with_flat_values(tf.gather(keywords.flat_values, order))


def _replacer(synonyms: dict[str, list[str]]) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function (words [n], seed) → words [n], each of them or one of its synonyms."""
    numbers = tf.constant(range(len(synonyms)), tf.int64, shape=[len(synonyms)])
    words = tf.constant(list(synonyms), tf.string, shape=[len(synonyms)])
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(words, numbers), -1)
    lists = tf.ragged.constant([*synonyms.values(), [""]], tf.string, ragged_rank=1)

    def replace(words: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        number = table.lookup(words)
        row = tf.where(number < 0, tf.constant(len(synonyms), tf.int64), number)
        drawn = tf.random.stateless_uniform(tf.shape(words), seed, None, None, tf.int64)
        place = tf.math.floormod(drawn, tf.gather(lists.row_lengths(), row))
        found = tf.gather(lists.flat_values, tf.gather(lists.row_starts(), row) + place)
        return tf.where(number < 0, words, found)

    return replace

"""The rule-based describer: diagnostic text from geometry, without any model or server.

It states what `geometry.compare` measures in a few varied sentences, in the vocabulary that word
negatives know. The same pair with the same masks always gets the same text. A vision-language model
has to be better than this to be worth its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmjax.diagnostic_text import phrases
from mmjax.diagnostic_text.geometry import Comparison, Deviation, compare
from mmjax.diagnostic_text.pairs import Pair, stable_seed
from mmjax.diagnostic_text.writer import Failure, Text, Writer
from mmjax.errors import UserError


def describe(pair: Pair, *, max_sentences: int = 3, seed: int = 0) -> str:
    """Returns the text of a pair.

    Args:
      pair: The pair.
      max_sentences: Number of sentences, the most severe deviations first. Three fit into the 77
        tokens of CLIP.
      seed: Chooses among phrases of the same meaning, together with the pair's key.
    """
    comparison = compare(pair.truth, pair.prediction, pair.void)

    def choose(options: Sequence[str], slot: object) -> str:
        return options[stable_seed(seed, pair.key, slot) % len(options)]

    if not comparison.deviations:
        table = phrases.ABSENT if comparison.absent else phrases.ACCURATE
        return choose(table, "accurate").format(
            name=pair.class_name, where=phrases.place(comparison.where)
        )
    sentences = [
        _sentence(pair.class_name, deviation, choose)
        for deviation in comparison.deviations[:max_sentences]
    ]
    if len(sentences) < max_sentences and not comparison.deviations[0].whole:
        sentences.append(choose(phrases.quality(comparison.iou), "quality"))
        sentences[-1] = sentences[-1].format(name=pair.class_name)
    if len(sentences) < max_sentences and comparison.iou > 0.5 and _precise(comparison):
        sentences.append(choose(phrases.PRECISE_BOUNDARY, "boundary"))
    return " ".join(sentences)


def _precise(comparison: Comparison) -> bool:
    return comparison.boundary_error is not None and comparison.boundary_error < 0.08


def _sentence(
    name: str, deviation: Deviation, choose: Callable[[Sequence[str], object], str]
) -> str:
    case = deviation.type + ("_whole" if deviation.whole else "")
    several = "_several" if deviation.count > 1 and not deviation.whole else ""
    text = choose(phrases.SENTENCES[case + several], case)
    text = text.format(
        name=name,
        adverb=choose(phrases.adverbs(deviation.amount), f"{case} adverb"),
        intensity=choose(phrases.intensities(deviation.amount), f"{case} intensity"),
        where=phrases.place(deviation.where),
        direction=deviation.where,
        sides=phrases.sides(deviation.sides),
        size=phrases.size(deviation.amount),
    )
    return text[0].upper() + text[1:]


class DescriberWriter(Writer):
    """Writes the text of `describe`.

    Args:
      max_sentences: See `describe`.
      seed: See `describe`.
    """

    def __init__(self, *, max_sentences: int = 3, seed: int = 0):
        if max_sentences < 1:
            raise UserError(f"describer: max_sentences must be at least 1; got {max_sentences}.")
        self._max_sentences, self._seed = max_sentences, seed

    def write(self, pairs: Sequence[Pair]) -> list[Text | Failure]:
        options = dict(max_sentences=self._max_sentences, seed=self._seed)
        return [Text(pair.key, describe(pair, **options)) for pair in pairs]

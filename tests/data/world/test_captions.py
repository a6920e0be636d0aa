"""Tests of captions: vocabulary, omissions, and unambiguous wordings."""

import numpy as np

from mmjax.data.world import captions as world_captions
from mmjax.data.world.attributes import ATTRIBUTES
from mmjax.data.world.config import attributes_of


def test_captions_use_the_vocabulary_and_omit_attributes_only_in_training():
    vocabulary = set(world_captions.vocabulary())
    assert len(vocabulary) < 300
    used, omissions, count = set(), 0, 0
    for split in ("train", "test"):
        for index in range(300):
            attributes = attributes_of(0, split, index)
            rng = np.random.default_rng(index)
            text = world_captions.caption(rng, attributes, complete=split == "test")
            words = text.split()
            assert text == " ".join(words) and len(words) <= 16 and set(words) <= vocabulary, text
            assert words[-1] != "and" and "and and" not in text, text
            used |= set(words)
            absent = [
                attribute
                for attribute, value in attributes.items()
                if not any(wording in text for wording in world_captions.WORDS[attribute][value])
            ]
            assert len(absent) <= (split == "train"), (text, absent)
            omissions += len(absent)
            count += split == "train"
    assert 0.2 < omissions / count < 0.4
    assert len(used) > 0.9 * len(vocabulary)


def test_no_wording_has_two_meanings():
    """Otherwise a caption could describe two clips."""
    lists = [wordings for values in world_captions.WORDS.values() for wordings in values.values()]
    wordings = [wording for one in lists for wording in one]
    assert len(wordings) == len(set(wordings))
    assert set(world_captions.WORDS) == set(ATTRIBUTES)
    for attribute, values in ATTRIBUTES.items():
        assert set(world_captions.WORDS[attribute]) == set(values)

"""Reading only the context features of records, with a fallback to the whole record."""

import numpy as np
import pytest

from mmjax.data.sources import record_contexts
from mmjax.data.sources import registry as sources
from mmjax.data.storage import image_files, schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import raises

IMAGE = image_files.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def payload(number):
    if number == 4:
        return b"\xff" * 9
    return schema.encode(
        schema.Example(frames=[IMAGE], labels=[number % 3], filename=f"clip {number}")
    )


@pytest.fixture
def source(tmp_path):
    toy.build(tmp_path, 7, shards=2, payload=payload)
    return sources.open_source(str(tmp_path), split="train")


def first_label(context):
    values = context[schema.LABELS[0]].int64_list.value if context else ()
    return values[0] if values else None


def test_whole_records_are_fetched_only_when_the_context_has_no_value(source, monkeypatch):
    fetched, fetch = [], source.fetch
    monkeypatch.setattr(source, "fetch", lambda n: fetched.append(n) or fetch(n))
    from_context = lambda context: None if first_label(context) == 2 else first_label(context)  # noqa: E731
    order = [6, 0, 5, 2, 1]
    result = list(
        record_contexts.read(
            source,
            order,
            from_context=from_context,
            from_example=lambda example: 10 + example.labels[0],
        )
    )
    assert result == [0, 0, 12, 12, 1] and fetched == [5, 2]


def test_a_damaged_record_raises_or_gets_the_default_value(source):
    functions = dict(from_context=first_label, from_example=lambda example: example.labels[0])
    with raises(UserError, "9 bytes", "tf.train.SequenceExample", "mmjax validate"):
        list(record_contexts.read(source, range(7), **functions))
    result = list(record_contexts.read(source, range(7), **functions, damaged=-1))
    assert result == [0, 1, 2, 0, -1, 2, 0] == source.labels().tolist()

"""All modalities of a record: missing ones, invalid ones, and records of other tools."""

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.storage import image_files, schema
from tests.data import toy_clips as toy
from tests.data.pipeline.one_record import run, train
from tests.messages import raises


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 12)


def test_missing_modalities_are_zero_with_mask_zero(directory):
    data = train(directory, touch=dict(size=8))
    out = run(data, schema.Example(labels=[3]))
    for name in ("video", "audio", "touch"):
        assert out[f"{name}_mask"] == 0 and not out[name].any()
    assert not out["text"].any() and out["text_mask"].tolist() == [0, 0]
    assert out["label"] == 3
    whole = run(
        data, toy.example(2, touch=[image_files.encode_jpeg(np.full((9, 12, 3), 77, np.uint8))])
    )
    assert all(whole[f"{name}_mask"] == 1 for name in ("video", "audio", "touch"))
    assert np.abs(whole["touch"].astype(int) - 77).max() <= 2 and whole["touch"].shape == (8, 8, 3)


def test_error_for_missing_required_text_and_for_empty_audio(directory):
    with raises(tf.errors.InvalidArgumentError, "data.text.require_text"):
        run(train(directory, text=dict(require_text=True)), toy.example(0, captions=[""]))
    with raises(tf.errors.InvalidArgumentError, "audio", "waveform"):
        run(train(directory), toy.without_samples(0))


def test_feature_keys_of_other_tools_tf_examples_and_png_frames_are_read(directory):
    """Other tools write `waveform/floats`, `label/index`, a tf.Example, or PNG frames."""
    png = tf.io.encode_png(np.full((20, 24, 3), 99, np.uint8)).numpy()
    proto = tf.train.Example()
    feature = proto.features.feature
    feature["image/encoded"].bytes_list.value.append(png)
    feature["waveform/floats"].float_list.value.extend([0.5] * 10)
    feature["label/index"].int64_list.value.append(2)
    feature["caption/string"].bytes_list.value.append(b"red")
    out = run(train(directory), proto.SerializeToString())
    assert (out["video"] == 99).all() and (out["audio"] == 0.5).all()
    assert out["label"] == 2 and out["text_mask"].tolist() == [1, 0]

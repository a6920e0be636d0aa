"""Tests of the record schema against hand-written protobufs and TensorFlow's parser."""

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.messages import raises


def jpeg(seed=0, size=(8, 12)):
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def dmvr_record(waveform, *, waveform_key="WAVEFORM/feature/floats", label="clip/label"):
    """Returns a record with the fields that DMVR's generate_from_file.py writes."""
    proto = tf.train.SequenceExample()
    for seed in range(3):
        feature = proto.feature_lists.feature_list["image/encoded"].feature.add()
        feature.bytes_list.value[:] = [jpeg(seed)]
    if waveform is not None:
        feature = proto.feature_lists.feature_list[waveform_key].feature.add()
        feature.float_list.value[:] = list(waveform)
    proto.context.feature[f"{label}/index"].int64_list.value[:] = [4]
    proto.context.feature[f"{label}/text"].bytes_list.value[:] = [b"juggling"]
    proto.context.feature["caption/string"].bytes_list.value[:] = [b"she juggles", b"zw\xc3\xb6lf"]
    proto.context.feature["clip/start/timestamp"].int64_list.value[:] = [1_500_000]
    proto.context.feature["clip/end/timestamp"].int64_list.value[:] = [4_000_000]
    proto.context.feature["video/filename"].bytes_list.value[:] = [b"a/b.mp4"]
    return proto.SerializeToString()


SINE = np.sin(np.arange(400) / 7).astype(np.float32)


@pytest.mark.parametrize("waveform_key", ["WAVEFORM/feature/floats", "waveform/floats"])
@pytest.mark.parametrize("label", ["clip/label", "label"])
def test_decode_reads_dmvr_records(waveform_key, label):
    example = schema.decode(dmvr_record(SINE, waveform_key=waveform_key, label=label))
    assert example.frames == [jpeg(0), jpeg(1), jpeg(2)]
    np.testing.assert_array_equal(example.waveform, SINE)
    assert example.labels == [4] and example.label_texts == ["juggling"]
    assert example.captions == ["she juggles", "zwölf"]
    assert (example.start_us, example.end_us) == (1_500_000, 4_000_000)
    assert example.filename == "a/b.mp4"
    assert example.modalities == ("video", "audio", "text", "label")


def test_decode_reads_plain_example():
    proto = tf.train.Example()
    proto.features.feature["image/encoded"].bytes_list.value[:] = [jpeg()]
    proto.features.feature["waveform/floats"].float_list.value[:] = list(SINE)
    proto.features.feature["label/index"].int64_list.value[:] = [2, 7]
    example = schema.decode(proto.SerializeToString())
    assert example.frames == [jpeg()] and example.labels == [2, 7]
    np.testing.assert_array_equal(example.waveform, SINE)


def test_encoded_records_have_the_features_that_dmvr_parses():
    example = schema.Example(
        frames=[jpeg(1), jpeg(2)],
        waveform=SINE,
        captions=["one", "two"],
        labels=[3, 5],
        touch=[jpeg(3)],
    )
    context, lists = tf.io.parse_single_sequence_example(
        schema.encode(example),
        context_features={
            "caption/string": tf.io.VarLenFeature(tf.string),
            "clip/label/index": tf.io.VarLenFeature(tf.int64),
        },
        sequence_features={
            "image/encoded": tf.io.FixedLenSequenceFeature([], tf.string),
            "WAVEFORM/feature/floats": tf.io.VarLenFeature(tf.float32),
        },
    )
    assert list(lists["image/encoded"].numpy()) == example.frames
    np.testing.assert_array_equal(lists["WAVEFORM/feature/floats"].values, SINE)
    assert list(context["caption/string"].values.numpy()) == [b"one", b"two"]
    assert list(context["clip/label/index"].values.numpy()) == [3, 5]


@settings(max_examples=40, deadline=None)
@given(
    samples=st.none() | st.integers(0, 5000),
    captions=st.lists(st.text(max_size=20), max_size=4),
    labels=st.lists(st.integers(0, 10**6), max_size=4),
    frames=st.integers(0, 3),
    start=st.integers(0, 10**12),
)
def test_encode_decode_round_trip(samples, captions, labels, frames, start):
    example = schema.Example(
        frames=[jpeg(seed) for seed in range(frames)],
        captions=captions,
        labels=labels,
        start_us=start,
        end_us=start + 5,
        frame_rate=12.5,
        sample_rate=16000.0,
    )
    if samples is not None:
        example.waveform = np.linspace(-1, 1, samples, dtype=np.float32)
    decoded = schema.decode(schema.encode(example))
    if samples is None:
        assert decoded.waveform is None
    else:
        np.testing.assert_array_equal(decoded.waveform, example.waveform)
    decoded.waveform = example.waveform = None
    assert decoded == example


def test_depth_and_flow_round_trip():
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 60, (7, 9))
    np.testing.assert_allclose(schema.decode_depth(schema.encode_depth(depth)), depth, atol=6e-4)
    flow = rng.uniform(-90, 90, (7, 9, 2))
    np.testing.assert_allclose(schema.decode_flow(schema.encode_flow(flow)), flow, atol=1 / 127)


@pytest.mark.parametrize(
    "waveform, facts",
    [
        (np.zeros((4, 2), np.float32), ("float32", "[4, 2]", "mono")),
        (np.zeros(4, np.int16), ("int16", "[4]")),
        (np.array([0.0, 0.5, np.nan, 1, np.inf]), ("NaN", "has 2 ", "5 samples", "index 2")),
    ],
)
def test_encode_rejects_invalid_waveforms(waveform, facts):
    with raises(UserError, "clip.mp4", *facts):
        schema.encode(schema.Example(waveform=waveform, filename="clip.mp4"))


def test_encode_rejects_frames_that_are_not_jpeg():
    with raises(UserError, "image/encoded", 1, "x.mp4", "JPEG", "b'GIF8'"):
        schema.encode(schema.Example(frames=[jpeg(), b"GIF89a"], filename="x.mp4"))


def test_touch_fields_have_the_documented_feature_names():
    example = schema.Example(
        frames=[jpeg()], touch=[jpeg(1)], touch_background=[jpeg(2)], roi=(1, 2, 5, 6)
    )
    context, lists = tf.io.parse_single_sequence_example(
        schema.encode(example),
        context_features={"image/roi": tf.io.FixedLenFeature([4], tf.int64)},
        sequence_features={
            "touch/encoded": tf.io.FixedLenSequenceFeature([], tf.string),
            "touch/background/encoded": tf.io.FixedLenSequenceFeature([], tf.string),
        },
    )
    assert context["image/roi"].numpy().tolist() == [1, 2, 5, 6]
    assert lists["touch/encoded"].numpy().tolist() == [jpeg(1)]
    assert lists["touch/background/encoded"].numpy().tolist() == [jpeg(2)]
    decoded = schema.decode(schema.encode(example))
    assert decoded == example
    assert decoded.modalities == ("video", "touch")
    assert schema.decode(schema.encode(schema.Example(frames=[jpeg()]))).roi is None


@pytest.mark.parametrize("roi", [(1, 2, 3), (-1, 0, 4, 4), (0, 0, 0, 4)])
def test_invalid_roi_is_rejected_on_writing_and_reading(roi):
    with raises(UserError, "image/roi", "a.jpg", list(roi), "top, left, height"):
        schema.encode(schema.Example(frames=[jpeg()], roi=roi, filename="a.jpg"))
    proto = tf.train.SequenceExample()
    proto.context.feature["image/roi"].int64_list.value[:] = roi
    with raises(UserError, "image/roi", list(roi)):
        schema.decode(proto.SerializeToString())


def test_decode_rejects_bytes_that_are_not_a_record():
    facts = (50, "tf.train.SequenceExample", "tf.train.Example", "mmjax validate")
    with raises(UserError, *facts):
        schema.decode(b"\xff" * 50)
    with raises(UserError, *facts, "train-00000-of-00002, record 7"):
        schema.decode(b"\xff" * 50, where="train-00000-of-00002, record 7")


@pytest.mark.parametrize("amplitude", [1.0, 0.3, 0.01])
@pytest.mark.parametrize("bits", [16, 24])
def test_int32_waveform_is_detected_and_repaired(amplitude, bits):
    """DMVR's example writer reads FFmpeg's s32le samples of 16- or 24-bit audio as float32."""
    audio = amplitude * np.sin(np.arange(4000) / 9)
    steps = 2.0 ** (bits - 1)
    pcm = (np.round(audio * (steps - 1)) * 2 ** (32 - bits)).astype(np.int64).astype("<i4")
    record = dmvr_record(np.frombuffer(pcm.tobytes(), np.float32))
    with raises(UserError, "a/b.mp4", "32-bit", '"waveform_format": "int32"', "dataset.json"):
        schema.decode(record)
    with raises(UserError, "train-00000-of-00002, record 7", "a/b.mp4", "32-bit"):
        schema.decode(record, where="train-00000-of-00002, record 7")
    repaired = schema.decode(record, waveform_format="int32").waveform
    # Python's floats quiet signaling NaNs, which flips one bit worth 2^-9 of full scale.
    np.testing.assert_allclose(repaired, audio, atol=2**-9 + 2 / steps)


def test_the_loss_of_int32_waveforms_is_an_upper_bound_and_nothing_else_changes():
    audio = np.linspace(-0.9999, 0.9999, 100_001)
    pcm = np.round(audio * 2.0**31).astype(np.int32)
    written = np.array(pcm.view(np.float32).tolist(), np.float32)  # as protobuf's Python API
    repaired = schema.repair_int32_waveform(written)
    off = np.abs(repaired - audio) > 1e-6
    lost = (audio > -(2**-8)) & (audio < -(2**-9)) | (audio > 0.99609375) & (audio < 0.998046875)
    assert (off == lost).all() and lost.sum() > 100
    np.testing.assert_allclose(repaired[lost] - audio[lost], 2**-9, atol=1e-6)
    sentence = schema.describe_int32_loss(written)
    count = int(sentence.split()[2])
    assert lost.sum() <= count <= 2 * lost.sum() + 2
    assert schema.describe_int32_loss(pcm.view(np.float32)[~lost & (np.abs(audio) < 0.99)]) != ""
    assert schema.describe_int32_loss(pcm[np.abs(audio - 0.5) < 0.4].view(np.float32)) == ""


@pytest.mark.parametrize("audio", [np.zeros(100), 1e-4 * SINE, SINE, 20 * SINE, np.ones(3)])
def test_float_audio_is_not_detected_as_int32(audio):
    assert not schema.is_int32_waveform(audio.astype(np.float32))

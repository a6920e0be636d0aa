"""`mmjax validate` reports each type of defect in a dataset with it, and none in a valid one."""

import dataclasses
import io
import json
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmjax.data.build import record_checks, validate
from mmjax.data.storage import dataset, image_files, schema, tfrecord
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions, raises


def jpeg(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def good(seed: int = 0) -> schema.Example:
    """One second of noise as video and audio."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, 8000).astype(np.float32)
    return schema.Example(
        frames=[jpeg(100 * seed + k) for k in range(5)],
        waveform=noise,
        captions=["noise"],
        labels=[1],
        frame_rate=5.0,
        sample_rate=8000.0,
        filename=f"{seed}.mp4",
    )


def write(directory, train, test=()):
    """Writes a dataset of examples or of payloads; returns its path."""
    splits = {}
    for split, examples in (("train", train), ("test", test)):
        if len(examples):
            name = dataset.shard_name(split, 0, 1)
            payloads = [e if isinstance(e, bytes) else schema.encode(e) for e in examples]
            tfrecord.write_shard(directory / name, payloads)
            splits[split] = dataset.SplitInfo(num_examples=len(examples), shards=[name])
    info = dataset.DatasetInfo(
        name="made", splits=splits, modalities=("video", "audio", "text", "label"), num_classes=3
    )
    info.save(directory)
    return str(directory)


def changed(**changes) -> schema.Example:
    return dataclasses.replace(good(1), **changes)


def raw(example: schema.Example, waveform: np.ndarray) -> bytes:
    """Encodes an example with a waveform that the writer would refuse."""
    proto = tf.train.SequenceExample.FromString(schema.encode(example))
    values = proto.feature_lists.feature_list[schema.WAVEFORM[0]].feature[0].float_list
    values.ClearField("value")
    values.value.extend(waveform.tolist())
    return proto.SerializeToString()


def int32_as_float(example: schema.Example) -> np.ndarray:
    return np.round(example.waveform * 2.0**31).astype(np.int32).view(np.float32)


def touched(seed: int, **changes) -> schema.Example:
    """A record of an image and touch that depend on the seed."""
    fields = dict(frames=[jpeg(seed)], touch=[jpeg(50 + seed)], touch_background=[jpeg(99)])
    return schema.Example(**fields | {"roi": (4, 8, 28, 32), "filename": f"{seed}.png"} | changes)


def small(value: int, size=(32, 40)) -> bytes:
    return image_files.encode_jpeg(np.full((*size, 3), value, np.uint8))


BROKEN_TOUCH = {
    "roi": touched(1, roi=(4, 9, 28, 32)),
    "jpeg": touched(1, touch=[jpeg(51)[:200]]),
    "background": touched(1, touch_background=[small(70, (32, 42))]),
    "blank": touched(1, touch=[small(70)]),
    "missing": touched(1, touch_background=[]),
    "duplicate": dataclasses.replace(touched(0), filename="1.png"),
}


@pytest.mark.parametrize("problem", BROKEN_TOUCH)
def test_each_touch_defect_is_the_only_finding(tmp_path, problem):
    path = write(tmp_path, [touched(0), BROKEN_TOUCH[problem], touched(2)])
    info = dataset.DatasetInfo.load(path)
    info.modalities, info.statistics = ("video", "touch"), {"touch_backgrounds": 2}
    info.save(path)
    result = validate.validate(path, progress=False)
    assert dict(result.counts) == {problem: 1}
    assert result.findings[0].filename == "1.png"


def enlarged(data: bytes) -> bytes:
    """Returns a JPEG or PNG with a header of 65500×65500 pixels."""
    data = bytearray(data)
    if data[:2] == b"\xff\xd8":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", 65_500, 65_500)
    else:
        data[16:24] = struct.pack(">II", 65_500, 65_500)
    return bytes(data)


def png(*, damaged: bool = False) -> bytes:
    """Returns a PNG, damaged in a way that Pillow does not notice."""
    data = bytearray(schema.encode_mask(np.arange(1280).reshape(32, 40) % 251))
    if damaged:
        position = data.index(b"IDAT")
        data[position + 4 + struct.unpack_from(">I", data, position - 4)[0]] ^= 1  # its checksum
        Image.open(io.BytesIO(data)).load()
    return bytes(data)


UNREADABLE = {
    "frames of a smaller size": changed(frames=[*good(1).frames[:4], small(9, (16, 20))]),
    "a huge JPEG": changed(frames=[enlarged(jpeg(7))]),
    "a huge PNG": touched(1, touch=[enlarged(png())]),
    "a huge mask": changed(masks=[enlarged(png())]),
    "a wrong checksum": touched(1, touch=[png(damaged=True)]),
    "a damaged depth": changed(depth=[png(), png()[:-20]]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_images_that_training_could_not_decode_are_found(tmp_path, name):
    result = validate.validate(write(tmp_path, [UNREADABLE[name]]), progress=False)
    (finding,) = [finding for finding in result.findings if finding.problem == "jpeg"]
    facts = {
        "frames of a smaller size": ("40×32", "20×16"),
        "a damaged depth": ("depth", 1),
        "a wrong checksum": ("touch image", "TensorFlow"),
    }
    assert_mentions(finding.detail, *facts.get(name, ("65500×65500", "MMJAX_MAX_IMAGE_PIXELS")))


def test_records_with_only_touch_pass_and_missing_touch_is_found(tmp_path):
    only_touch = [touched(k, frames=[], roi=None) for k in range(2)]
    path = write(tmp_path, only_touch, [touched(3, touch=[], touch_background=[])])
    info = dataset.DatasetInfo.load(path)
    info.modalities = ("touch",)
    info.save(path)
    result = validate.validate(path, progress=False)
    (finding,) = result.findings
    assert (finding.problem, finding.split, finding.record) == ("missing", "test", 0)
    assert_mentions(finding.detail, "no touch", "the dataset has touch")


BROKEN = {
    "layout": tf.train.SequenceExample(
        context=tf.train.Features(feature={"my/key": tf.train.Feature()})
    ).SerializeToString(),
    "jpeg": changed(frames=[*good(1).frames[:4], jpeg(9)[:200]]),
    "label": changed(labels=[3]),
    "int32": raw(good(1), int32_as_float(good(1))),
    "waveform": raw(good(1), np.array([0.1, np.nan, 0.2], np.float32)),
    "length": changed(waveform=good(1).waveform[:5000]),
    "silence": changed(waveform=np.zeros(8000, np.float32)),
    "constant": changed(frames=[jpeg(7), *[jpeg(7)] * 4]),
    "blank": changed(frames=[image_files.encode_jpeg(np.full((32, 40, 3), 9, np.uint8))] * 5),
    "repeated": changed(frames=[jpeg(7), jpeg(7), jpeg(7), jpeg(7), jpeg(8)]),
    "caption": changed(captions=[" "]),
    "unlabeled": changed(labels=[]),
    "missing": changed(waveform=None),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_each_defect_is_the_only_finding_and_is_located(tmp_path, problem):
    result = validate.validate(write(tmp_path, [good(0), BROKEN[problem], good(2)]), progress=False)
    assert dict(result.counts) == {problem: 1} and result.records == 3
    (finding,) = result.findings
    assert (finding.split, finding.record) == ("train", 1)
    assert finding.filename == ("" if problem == "layout" else "1.mp4")
    assert result.num_errors == (problem in record_checks.ERRORS)


def test_empty_and_loud_waveforms_are_found(tmp_path):
    path = write(
        tmp_path, [changed(waveform=np.zeros(0, np.float32)), raw(good(2), np.full(8000, 7.0))]
    )
    findings = validate.validate(path, progress=False).findings
    details = {f.record: f.detail for f in findings if f.problem == "waveform"}
    assert_mentions(details[0], "0 samples")
    assert_line_mentions(details[1], "peak", 7, "[-1, 1]")


def test_valid_dataset_has_no_findings(tmp_path, capsys):
    path = write(tmp_path, [good(k) for k in range(3)], [good(k) for k in range(3, 5)])
    assert cli.main(["validate", path, "--quiet", "--workers", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()  # no table of findings
    assert_line_mentions(line, 5)
    assert cli.main(["validate", path, "--quiet", "--workers", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"records": 5, "errors": 0, "counts": {}, "findings": []}


def test_duplicates_within_a_split_and_leaks_between_splits_are_found(tmp_path):
    path = write(tmp_path, [good(0), good(1), good(0)], [good(1), good(2)])
    result = validate.validate(path, progress=False)
    assert dict(result.counts) == {"duplicate": 1, "leak": 1}
    details = {f.problem: f.detail for f in result.findings}
    assert_mentions(details["duplicate"], "train-00000-of-00001.tfrecord, record 0")
    assert_mentions(details["leak"], "train-00000-of-00001.tfrecord, record 1")


def test_folds_leak_only_between_train_and_test_of_the_same_fold(tmp_path):
    same, folds = good(0), {}
    contents = {
        "train1+test2": [same, good(1), good(2)],
        "test1+train2": [good(3)],
        "train1+train2": [good(4)],
    }
    for split, examples in contents.items():
        name = dataset.shard_name(split, 0, 1)
        tfrecord.write_shard(tmp_path / name, [schema.encode(e) for e in examples])
        folds[split] = dataset.SplitInfo(num_examples=len(examples), shards=[name])
    dataset.DatasetInfo(name="folds", splits=folds, num_classes=3).save(tmp_path)
    assert not validate.validate(str(tmp_path), progress=False).counts
    selected = validate.validate(str(tmp_path), splits=["train1", "test2"], progress=False)
    assert selected.records == 4  # records that both splits share are checked once
    with raises(UserError, tmp_path, "'test3'", "train1, train2, test1, test2"):
        validate.validate(str(tmp_path), splits=["test3"], progress=False)

    def counts_with_copy_in(split):
        shard = tmp_path / folds[split].shards[0]
        tfrecord.write_shard(shard, [*map(schema.encode, [*contents[split], same])])
        result = validate.validate(str(tmp_path), progress=False)
        tfrecord.write_shard(shard, [*map(schema.encode, contents[split])])
        return dict(result.counts)

    # The original is in train1 and test2.
    assert counts_with_copy_in("test1+train2") == {"leak": 1}  # the copy is in test1
    assert counts_with_copy_in("train1+train2") == {"leak": 1}  # the copy is in train2
    assert counts_with_copy_in("train1+test2") == {"duplicate": 1}


def test_class_names_with_other_numbers_in_another_split_are_found(tmp_path, capsys):
    def labeled(seed, name, number):
        return dataclasses.replace(good(seed), labels=[number], label_texts=[name])

    train = [labeled(0, "run", 0), labeled(1, "walk", 1), labeled(2, "sit", 2)]
    path = write(tmp_path, train, [labeled(3, "run", 1), labeled(4, "sit", 2)])
    assert cli.main(["validate", path, "--quiet"]) == 1
    assert_mentions(capsys.readouterr().out, "classes", "'run' is 0 in train; 1 in test")
    (finding,) = validate.validate(path, progress=False).findings
    assert (finding.problem, finding.record) == ("classes", -1)
    path = write(tmp_path, train, [labeled(3, "run", 0)])
    info = dataset.DatasetInfo.load(path)
    info.class_names = ["run", "sit", "walk"]
    info.save(path)
    findings = validate.validate(path, progress=False).findings
    assert_mentions(findings[0].detail, "'sit' is 1 in dataset.json; 2 in train")
    assert [f.problem for f in findings] == ["classes", "classes"]


def test_repaired_int32_audio_says_how_much_is_lost(tmp_path):
    """Samples in (-0.0039, -0.00195) lose a bit; all others are exact."""
    exact = dataclasses.replace(good(0), waveform=np.full(8000, 0.25, np.float32))
    lossy = dataclasses.replace(good(1), waveform=np.full(8000, 0.25, np.float32))
    lossy.waveform[:80] = -0.003
    path = write(tmp_path, [raw(e, int32_as_float(e)) for e in (exact, lossy)])
    info = dataset.DatasetInfo.load(path)
    info.waveform_format = "int32"
    info.save(path)
    (finding,) = validate.validate(path, progress=False).findings
    assert (finding.problem, finding.record) == ("lossy", 1)
    assert_mentions(finding.detail, "80 of 8000", "1.0%", "0.00195", "signaling NaN")


def test_damaged_truncated_and_missing_shards_are_named(tmp_path, capsys):
    path = write(tmp_path, [good(k) for k in range(3)], [good(k) for k in range(3, 6)])
    train = tmp_path / "train-00000-of-00001.tfrecord"
    data = bytearray(train.read_bytes())
    data[len(data) // 2] ^= 1  # inside the second record
    train.write_bytes(data)
    test = tmp_path / "test-00000-of-00001.tfrecord"
    test.write_bytes(test.read_bytes()[:-100])
    assert cli.main(["validate", path, "--quiet", "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert_line_mentions(out, "error ", " damaged ", 2)
    assert_line_mentions(out, "train-00000-of-00001.tfrecord, record 1 ")
    assert_line_mentions(out, "test-00000-of-00001.tfrecord, record 2 ", "truncated")
    (tmp_path / "test-00000-of-00001.tfrecord").unlink()
    assert cli.main(["validate", path, "--quiet", "--workers", "1", "--split", "test"]) == 1
    facts = ("test-00000-of-00001.tfrecord", "No such file")
    assert_line_mentions(capsys.readouterr().out, *facts)


def test_json_report_max_records_and_threads(tmp_path, capsys):
    examples = [good(k) for k in range(70)]  # more than one chunk
    examples[69].labels = [-1]
    path = write(tmp_path, examples)
    assert cli.main(["validate", path, "--quiet", "--json", "--workers", "2"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["records"], report["errors"], report["counts"]) == (70, 1, {"label": 1})
    assert report["findings"][0]["record"] == 69
    assert cli.main(["validate", path, "--quiet", "--max-records", "7", "--workers", "1"]) == 1
    # The last record, which has the defect, is always among the sampled ones.
    assert_line_mentions(capsys.readouterr().out, 7, 1, 0)


def test_unknown_directory_and_split_are_named(tmp_path, capsys):
    path = write(tmp_path, [good(0)])
    assert cli.main(["validate", str(tmp_path / "nowhere")]) == 2
    assert_mentions(capsys.readouterr().err, tmp_path / "nowhere", "mmjax build")
    assert cli.main(["validate", path, "--split", "tset"]) == 2
    assert_line_mentions(capsys.readouterr().err, path, "'tset'", "train")

"""DMVR factories as data sources: construction, options, and what is refused."""

import itertools
import logging
import subprocess
import sys

import numpy as np
import pytest

from mmjax.data.pipeline import loader
from mmjax.errors import UserError
from tests.data.pipeline import dmvr_stand_ins as stand_ins
from tests.messages import assert_mentions, raises


def spec(name):
    return f"dmvr:tests.data.pipeline.dmvr_stand_ins:{name}"


def section(name, **changes):
    return dict(
        train=spec(name),
        video=dict(num_frames=2, size=8),
        audio=dict(num_samples=6),
        label=dict(num_classes=4),
    ) | dict(changes)


def train(cfg, **options):
    return loader.make_train_data(cfg, **dict(batch_size=4, seed=0) | options)


def evaluation(cfg, **options):
    return loader.make_eval_data(cfg, **dict(batch_size=4) | options)


TEXT = dict(max_tokens=3, candidates=2)


def numbers(batches, field="audio"):
    """Record numbers of the examples of batches."""
    audio = np.concatenate([b["audio"][b.get("mask", np.ones(4)) > 0] for b in batches])
    return np.round(audio.reshape(len(audio), -1)[:, 0] * 10).astype(int).tolist()


def test_build_gets_every_option_of_the_config_in_training_and_evaluation():
    cfg = section("Plain", text=TEXT)
    stand_ins.BUILT.clear()
    batch = next(train(cfg).iterate())
    (built,) = stand_ins.BUILT
    expected = dict(num_frames=2, stride=1, crop_size=8, min_resize=8, num_samples=6)
    expected |= dict(zero_centering_image=False, max_num_tokens=3, max_num_captions=2)
    assert built == expected | dict(is_training=True, num_test_clips=1, one_hot_label=False)
    assert batch["video"].shape == (4, 2, 8, 8, 3) and batch["video"].dtype == np.uint8
    assert batch["audio"].shape == (4, 6) and batch["text"].shape == (4, 2, 3)
    assert batch["label"].dtype == np.int32 and batch["text_mask"].tolist() == [[1, 1]] * 4

    stand_ins.BUILT.clear()
    data = evaluation(cfg, num_clips=3)
    result = list(data.iterate())
    (built,) = stand_ins.BUILT
    assert built == expected | dict(is_training=False, num_test_clips=3, one_hot_label=False)
    assert result[0]["video"].shape == (4, 3, 2, 8, 8, 3) and result[0]["audio"].shape == (4, 3, 6)
    assert [b["mask"].sum() for b in result] == [4, 4, 2] and data.num_batches == 3
    assert numbers(result) == list(range(10))
    assert result[2]["video"][:2, :, 0, 0, 0, 0].tolist() == [[8] * 3, [9] * 3]
    labels = np.concatenate([b["label"] for b in result])[:10]
    assert labels.tolist() == [k % 4 for k in range(10)]


@pytest.mark.parametrize(
    "name", ["Kwargs", "Swallows", "Explicit", "FromSubset", "partial_in_folder"]
)
def test_signatures_of_build_and_configure_are_followed(name):
    """Chains of `super()._build(**kwargs)`, `**kwargs`, an own `configure`, no `is_training`."""
    batch = next(train(section(name)).iterate())
    assert batch["video"].shape == (4, 2, 8, 8, 3) and batch["audio"].shape == (4, 6)
    result = list(evaluation(section(name)).iterate())
    assert numbers(result) == list(range(10))
    assert result[0]["video"][:, 0, 0, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "name, video, facts",
    [
        ("Plain", dict(flip=False), ("data.video.flip", "random_flip", "data.video.flip=True")),
        ("Plain", dict(crop="inception"), ("crop_resize_style", "min_area_ratio", "vgg")),
        ("FromSubset", dict(stride=2, fps=10.0), ("data.video.stride=2", "data.video.fps=10.0")),
        ("FromSubset", dict(min_resize=9), ("data.video.min_resize=9", "min_resize")),
    ],
)
def test_options_that_a_factory_does_not_take_are_refused_with_a_table(name, video, facts):
    cfg = section(name, video=dict(num_frames=2, size=8) | video)
    with raises(UserError, spec(name), "num_frames, ", "config.data.dmvr.ignore=", *facts):
        train(cfg)


def test_ignored_options_and_arguments_of_build_and_tune(caplog):
    ignored = dict(ignore=("data.video.flip", "data.video.stride"))
    cfg = section("FromSubset", video=dict(num_frames=2, size=8, flip=False, stride=2))
    train(cfg | dict(dmvr=ignored))
    with raises(UserError, "data.video.strude", "data.video.stride"):
        train(cfg | dict(dmvr=dict(ignore=("data.video.strude",))))
    stand_ins.BUILT.clear()
    data = train(
        section("Vatt", dmvr=dict(build=dict(tokenizer="bert"), tune=dict(shuffle_buffer=2)))
    )
    next(data.iterate())
    assert stand_ins.BUILT[0]["tokenizer"] == "bert"
    assert data._factory.object.tuned == {"shuffle_buffer": 2}
    with raises(UserError, "config.data.dmvr.build", "tokenizr", "num_frames"):
        train(section("Plain", dmvr=dict(build=dict(tokenizr="bert"))))
    with caplog.at_level(logging.WARNING):
        train(section("Swallows", video=dict(num_frames=2, size=8, stride=2)))
    assert_mentions(caplog.text, "**kwargs", "data.video.stride=2")


@pytest.mark.parametrize("name", ["AlwaysTraining", "Unlisted", "Unnamed"])
def test_training_augmentation_in_evaluation_is_refused(name):
    train(section(name))
    with raises(UserError, spec(name), "is_training", "random crops"):
        evaluation(section(name, label=None))


def test_video_and_audio_may_have_different_numbers_of_clips(caplog):
    cfg = section("OneClipOfAudio")
    batch = next(evaluation(cfg, num_clips=3).iterate())
    assert batch["video"].shape == (4, 3, 2, 8, 8, 3) and batch["audio"].shape == (4, 1, 6)
    assert "clips" not in caplog.text
    batch = next(evaluation(section("IgnoresClips"), num_clips=3).iterate())
    assert batch["video"].shape == (4, 1, 2, 8, 8, 3)
    assert_mentions(caplog.text, spec("IgnoresClips"), "1 clips of video", "3")
    cfg = section("Vatt")  # the crops of VATT multiply the clips of video, not those of audio
    batches = list(evaluation(cfg, num_clips=2, num_audio_clips=2, multi_crop=True).iterate())
    assert batches[0]["video"].shape == (4, 6, 2, 8, 8, 3)
    assert batches[0]["audio"].shape == (4, 2, 6) and numbers(batches) == list(range(10))


def test_views_are_counted_without_labels_text_or_keys():
    cfg = section("OneClipOfAudio", label=None, audio=None)
    data = evaluation(cfg, num_clips=3)
    result = [data._convert({"image": np.zeros([n * 3, 2, 8, 8, 3])}) for n in (4, 2)]
    assert [b["video"].shape[:2] for b in result] == [(4, 3), (2, 3)]


@pytest.mark.parametrize(
    "change, facts",
    [
        (dict(video=dict(num_frames=4, size=8)), ("[4, 32, 8, 8, 3]", "data.video.num_frames")),
        (dict(video=dict(num_frames=32, size=7)), ("[4, 32, 8, 8, 3]", "data.video.size", "7")),
        (
            dict(video=None, audio=dict(num_samples=5)),
            ("[4, 6]", "data.audio.num_samples", "5"),
        ),
        (dict(video=None, text=dict(max_tokens=9)), ("[4, 2, 3]", "data.text.max_tokens", "9")),
        (dict(video=None, text=dict(max_tokens=3, candidates=1)), ("data.text.candidates",)),
        (dict(video=None, label=dict(num_classes=3)), ("data.label.num_classes",)),
    ],
)
def test_sizes_that_differ_from_the_config_are_one_clear_error(change, facts):
    with raises(UserError, spec("IgnoresSizes"), *facts):
        next(train(section("IgnoresSizes", **change)).iterate())


def test_captions_in_addition_to_those_of_the_keyword():
    cfg = section("WithContext", text=dict(max_tokens=3, candidates=5))
    build = {"max_context_sentences": 4}
    with raises(UserError, spec("WithContext"), "data.text.candidates", f"dmvr.build={build}"):
        next(train(cfg).iterate())
    batch = next(train(cfg | dict(dmvr=dict(build=build))).iterate())
    assert batch["text"].shape == (4, 5, 3) and batch["text_mask"].all()


def test_labels_in_every_form():
    data = evaluation(section("Plain"))
    convert = data._convert
    image, audio = np.zeros([3, 2, 8, 8, 3]), np.zeros([3, 6])

    def label(value, *, multi=False, classes=4):
        cfg = section("Plain", label=dict(num_classes=classes, multi_label=multi))
        convert = evaluation(cfg)._convert
        return convert({"image": image, "audio": audio, "label": np.array(value)})["label"]

    one_hot = np.eye(4, dtype=np.float32)[[2, 0, 1]]
    assert label(one_hot).tolist() == [2, 0, 1]
    assert label(one_hot * [[1], [0], [2]]).tolist() == [2, -1, 1]  # no label; a repeated index
    assert label(np.array([[2], [0], [1]])).tolist() == [2, 0, 1]
    assert label(np.array([2, 0, 1], np.int64)).dtype == np.int32
    assert label([[1, 2.0, 0, 0]] * 3, multi=True).tolist() == [[1, 1, 0, 0]] * 3
    assert label([[1, 3], [0, -1], [2, 2]], multi=True).tolist() == [
        [0, 1, 0, 1],
        [1, 0, 0, 0],
        [0, 0, 1, 0],
    ]
    for value, facts in [
        ([[1.0, 1, 0, 0]] * 3, ("several classes", "multi_label=True")),
        ([[4], [0], [1]], ("class index 4", "data.label.num_classes=4")),
        ([[0.5], [0.5], [0.2]], ("data.label.num_classes",)),
        ([[1, 2], [1, 0], [3, 3]], ("one class index",)),
    ]:
        with raises(UserError, spec("Plain"), *facts):
            label(value)
    assert convert.num_classes == 4


def test_the_number_of_classes_is_the_width_of_one_hot_labels():
    assert train(section("Plain", label=dict())).num_classes == 4
    data = evaluation(section("Plain", label=None))
    assert next(data.iterate())["label"].tolist() == [0, 1, 2, 3]  # evaluators may need them
    assert data.info.num_classes == 4
    with raises(UserError, spec("FromSubset"), "config.data.label.num_classes"):
        data = train(section("FromSubset", label=dict()))
        data._convert._label = lambda value, count: {"label": np.zeros(count, np.int32)}
        _ = data.num_classes


def test_frames_in_other_ranges():
    with raises(UserError, spec("Centered"), "[-1, ", "config.data.dmvr.zero_centered=True"):
        next(evaluation(section("Centered")).iterate())
    data = evaluation(section("Centered", dmvr=dict(zero_centered=True)))
    assert next(data.iterate())["video"][:, 0, 0, 0, 0, 0].tolist() == [0, 1, 2, 3]
    data = evaluation(section("Plain", dmvr=dict(zero_centered=True)))
    assert next(data.iterate())["video"][:, 0, 0, 0, 0, 0].tolist() == [0, 1, 2, 3]
    batch = {"image": np.full([4, 2, 8, 8, 3], np.nan), "audio": np.zeros([4, 6])}
    with raises(UserError, "[nan, nan]"):
        data._convert(batch | {"label": np.zeros([4, 1], int)})


def test_audio_of_the_script_of_dmvr_is_refused():
    convert = evaluation(section("Plain"))._convert
    pcm = (np.linspace(-0.9, 0.9, 24) * 2**31).astype(np.int32).view(np.float32).reshape(4, 6)
    batch = {"image": np.zeros([4, 2, 8, 8, 3]), "label": np.zeros([4, 1], int)}
    with raises(UserError, spec("Plain"), "generate_from_file.py", "docs/dmvr.md"):
        convert(batch | {"audio": pcm})
    with raises(UserError, spec("Plain"), "NaN"):
        convert(batch | {"audio": np.full([4, 6], np.nan)})


def test_tokenizers_are_initialized_and_their_padding_becomes_0(caplog):
    cfg = section("Vatt", text=TEXT, video=dict(num_frames=2, size=8, crop="inception"))
    data = train(cfg)
    assert data._factory.object.tokenizer.calls == 1 and data.vocab_size == 64
    batch = next(data.iterate())
    assert batch["text"].shape == (4, 2, 3)
    assert stand_ins.BUILT[-1]["color_augmentation"] is False  # the device augments color
    cfg = section("VattPadsWithThree", text=TEXT)
    batch = next(evaluation(cfg).iterate())  # ids 1, 2, 3, 4: example 2 has only padding
    assert batch["text"][:, 0, 0].tolist() == [1, 2, 0, 4]
    assert batch["text_mask"][:, 0].tolist() == [1, 1, 0, 1]
    assert_mentions(caplog.text, spec("VattPadsWithThree"), "id 3")


def test_images_are_clips_of_one_frame():
    cfg = dict(train=spec("Plain"), image=dict(size=8), label=dict(num_classes=4))
    batch = next(train(cfg).iterate())
    assert batch["image"].shape == (4, 8, 8, 3) and batch["image_mask"].tolist() == [1] * 4
    assert stand_ins.BUILT[-1]["num_frames"] == 1
    with raises(UserError, spec("Plain"), "touch", "data.touch=None"):
        next(train(cfg | dict(touch=dict(size=8), image=None)).iterate())
    with raises(UserError, "data.video and data.image"):
        train(section("Plain", image=dict(size=8)))


@pytest.mark.parametrize(
    "modality, options, fact",
    [
        ("image", dict(size=8, crops=((0.5, 1.0), (0.5, 1.0))), "data.image.crops=()"),
        ("text", dict(keywords={}), "data.text.keywords=None"),
        ("text", dict(features="x", candidates=1), "data.text.features=''"),
        ("corrupt", "skip", "data.corrupt='fail'"),
        ("limit", 3, "data.limit=0"),
    ],
)
def test_options_that_no_factory_has_are_refused(modality, options, fact):
    video = None if modality == "image" else dict(num_frames=2, size=8)
    with raises(UserError, spec("Plain"), fact):
        train(section("Plain", **{"video": video, modality: options}))


def test_constructors_with_arguments():
    data = train(section("InFolder(base_dir='/x', split=2)"))
    factory = data._factory.object
    assert (factory.base_dir, factory.subset, factory.fold) == ("/x", "train", 2)
    factory = evaluation(section("partial_in_folder"))._factory.object
    assert (factory.base_dir, factory.subset, factory.fold) == ("/data", "test", 1)
    assert train(section("make_in_folder"))._factory.object.base_dir == "/data"
    assert evaluation(section("get_class(name='plain')"))._factory.object.subset == "test"
    data = evaluation(section("Plain"), data=spec("Plain( subset = 'test' )"), split="test")
    assert data._factory.object.subset == "test"


@pytest.mark.parametrize(
    "name, facts",
    [
        ("InFolder", ("base_dir", "InFolder(base_dir=…)")),
        ("InFolder(base_dir='/x', split=7)", ("ValueError", "Unknown fold 7")),
        ("InFolder('/x')", ("keyword arguments", "base_dir='/data'")),
        ("Plain(subset=open('x'))", ("literal", "subset='train'")),
        ("Plain(subset='train'", ("literal",)),
        ("Plain(subset='train')(a=1)", ("literal",)),
        ("Plain(folder='/x')", ("folder", "subset", "config.data.dmvr.build")),
        ("Plain(subset='test')", ("subset='test'", "'train'", "config.data.split")),
        ("shared(subset='train')", ("subset", "object")),
        ("Plainn", ("Plain",)),
        ("Builder", ("Builder", "configure()", "make_dataset()", "docs/dmvr.md")),
        ("Loader", ("Loader", "dmvr_factory")),
        ("loader", ("Loader", "dmvr_factory")),
        ("Broken", ("RuntimeError", "no such layer", "num_frames=2")),
        ("Sharded(count=0)", ("no shards",)),
        ("Sharded(directory='/nowhere')", ("2 of 2 shards", "/nowhere/train-0")),
    ],
)
def test_invalid_specifications_and_factories_are_named(name, facts):
    with raises(UserError, spec(name), *facts):
        train(section(name))


def test_a_missing_package_is_named_with_its_installation(tmp_path, monkeypatch):
    (tmp_path / "needs_dmvr.py").write_text("import dmvr.builders\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "dmvr", None)
    with raises(UserError, "dmvr:needs_dmvr:Factory", "pip install", "github.com/google-deepmind"):
        train(section("Plain", train="dmvr:needs_dmvr:Factory"))


@pytest.mark.parametrize("name", ["shared", "without_subset"])
def test_a_factory_without_subset_cannot_serve_two_splits(name):
    """It would return training examples for evaluation."""
    cfg = section(name)
    for _ in range(2):  # a copy is configured each time
        next(train(cfg).iterate())
    with raises(UserError, spec(name), "subset", "'train'", "'test'"):
        evaluation(cfg)
    assert not stand_ins.shared._is_configured


def test_a_configured_object_serves_only_as_configured():
    assert next(train(section("configured")).iterate())["video"].shape == (4, 2, 8, 8, 3)
    with raises(UserError, spec("configured"), "data.video.stride=2", "configured already"):
        train(section("configured", video=dict(num_frames=2, size=8, stride=2)))
    with raises(UserError, spec("configured"), "configured for training"):
        evaluation(section("configured"), split="train")


def test_training_resumes_by_dropping_batches_and_says_what_is_not_reproducible(caplog):
    data = train(section("Plain"))
    assert_mentions(
        caplog.text, spec("Plain"), "without seeds", "config.data.dmvr.deterministic=True"
    )
    batch = next(data.iterate(2))
    assert_mentions(caplog.text, "dropping 2 batches")
    assert batch["example_id"].tolist() == [8, 9, 10, 11]
    assert data.batch_ids(2)["position"].tolist() == [8, 9, 10, 11]


def test_hosts_read_disjoint_shards(caplog):
    read = [numbers([b | {"mask": np.ones(2)} for b in _take("Sharded", p)]) for p in range(2)]
    assert {k % 2 for k in read[0]} == {0} and {k % 2 for k in read[1]} == {1}
    caplog.clear()
    _take("Plain", 1)
    assert_mentions(caplog.text, spec("Plain"), "2 hosts")


def _take(name, process):
    data = train(section(name), process_index=process, process_count=2)
    batches = list(itertools.islice(data.iterate(), 6))
    assert batches[0]["video"].shape[0] == 2
    assert batches[1]["example_id"].tolist() == [4 + 2 * process, 5 + 2 * process]
    return batches


def test_evaluation_is_sharded_over_hosts():
    parts = [
        list(evaluation(section("Plain"), process_index=p, process_count=2).iterate())
        for p in range(2)
    ]
    assert [b["example_id"].tolist() for b in parts[1]] == [[2, 3], [6, 7], [0, 0]]
    assert numbers([{**b} for b in parts[0]]) == [0, 1, 4, 5, 8, 9]


CODE = """
import itertools
from tests.data.pipeline.test_dmvr import section, train

def sums(start=0, **options):
    data = train(section("Plain", dmvr=dict(deterministic=True)), **options)
    batches = itertools.islice(data.iterate(start), 5 - start)
    return [b["video"].sum(axis=(1, 2, 3, 4)).tolist() for b in batches]

whole = sums()
assert sums(2) == whole[2:], (sums(2), whole)
assert sums(process_index=1, process_count=2) == [batch[2:] for batch in whole]
assert sums(seed=1) != whole
"""


def test_deterministic_order_is_a_function_of_the_seed(user_env):
    """In a process of its own: TensorFlow's op determinism cannot be switched off again."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300, env=user_env()
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_options_of_factories_need_a_factory():
    with raises(UserError, "config.data.dmvr", "config.data.train='world'"):
        train(section("Plain", train="world", dmvr=dict(ignore=())))

"""`mmjax.load` for every task: features of files equal those of a dataset of these files."""

import csv
import pathlib
import re

import jax
import numpy as np
import pytest

import mmjax
from mmjax import config, sharding
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.manager import Checkpoints
from mmjax.data.storage.dataset import DatasetDir
from mmjax.errors import UserError
from mmjax.evals.features.embeddings import aggregate_views, normalize
from mmjax.evals.features.store import FeatureStore
from mmjax.tools import cli
from tests.data import films
from tests.messages import raises
from tests.saved_runs import ONE_LAYER, save_run

REPOSITORY = pathlib.Path(mmjax.__file__).resolve().parent.parent
CAPTIONS = ["a red circle is bouncing", "a small striped moon", "look at this"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Three video files with audio, the second longer than a clip and the third shorter."""
    directory = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    paths = []
    for index, seconds in enumerate((2.0, 3.5, 0.3)):
        smooth = rng.integers(0, 256, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
        frames = [
            np.roll(smooth, 3 * k, axis=1).astype(np.uint8) for k in range(round(20 * seconds))
        ]
        tone = films.tone(300 * (index + 1), seconds=seconds, sample_rate=16_000)[None]
        paths.append(films.write_film(directory / f"{index}.mp4", frames=frames, waveform=tone))
    return paths


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run of the pretraining demo: `(run directory, task, state, training data)`."""
    path = tmp_path_factory.mktemp("pretrained")
    return path, *save_run(config.load("pretrain", "demo:smoke", ONE_LAYER), path)


@pytest.fixture(scope="module")
def model(pretrained):
    return mmjax.load(pretrained[0])


@pytest.fixture(scope="module")
def dataset(media, pretrained, tmp_path_factory):
    """The dataset that `mmjax build` makes of the files, at the rates of the training data."""
    directory, info = tmp_path_factory.mktemp("built"), pretrained[3].info
    table = directory / "clips.csv"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([["path", "caption"], *zip(media, CAPTIONS, strict=True)])
    rates = ["--fps", str(info.fps), "--sample-rate", str(round(info.sample_rate))]
    arguments = ["--csv", str(table), "--out", str(directory / "data"), *rates]
    assert cli.main(["build", *arguments, "--workers", "1", "--quiet"]) == 0
    return directory / "data"


def features_of(dataset, pretrained, names, **views):
    """The outputs of an evaluator on the dataset, in the order of the files."""
    _, task, state, data = pretrained
    store = FeatureStore(
        task=task,
        data_cfg=config.plain(config.load("pretrain", "demo:smoke").data),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    request = store.request(
        names, data=str(dataset), split="train", batch_size=2, views=views or None
    )
    features = store.get(state, request)
    records = DatasetDir(dataset).split("train")
    stems = [re.search(rb"(\d)\.mp4", records.read(k))[1] for k in range(len(records))]
    return {name: features.arrays[name][np.argsort(stems)] for name in names}


def test_embeddings_of_files_equal_those_of_a_built_dataset(dataset, media, pretrained, model):
    names = ["video/text", "video/audio", "audio/video", "text/video", "video", "audio", "text"]
    expected = features_of(dataset, pretrained, names)
    assert model.modalities == ("video", "audio", "text")
    assert model.spaces == {"video": ("audio", "text"), "audio": ("video",), "text": ("video",)}
    results = {
        "video/text": model.embed_video(media),
        "video/audio": model.embed_video(media, target="audio"),
        "audio/video": model.embed_audio(media),
        "text/video": model.embed_text(CAPTIONS),
        "video": model.embed_video(media, target="features"),
        "audio": model.embed_audio(media, target="features"),
        "text": model.embed_text(CAPTIONS, target="features"),
    }
    for name, result in results.items():
        assert result.shape[0] == 3 and result.dtype == np.float32
        vectors = expected[name].mean(axis=1)
        if "/" in name:
            vectors = normalize(vectors)
        np.testing.assert_allclose(result, vectors, atol=1e-4 * np.abs(vectors).max(), err_msg=name)
        assert np.abs(result[0] - result[1]).max() > 1e-2 * np.abs(result).max()


def test_several_clips_are_averaged_as_in_evaluation(dataset, media, pretrained, model):
    views = dict(video=dict(num_clips=3), audio=dict(num_clips=3))
    expected = features_of(dataset, pretrained, ["video/text", "audio/video"], **views)
    for name, embed in (("video/text", model.embed_video), ("audio/video", model.embed_audio)):
        assert expected[name].shape[1] == 3
        vectors = aggregate_views(expected[name], "embd")
        np.testing.assert_allclose(embed(media, num_clips=3), vectors, atol=1e-4)
        assert not np.allclose(embed(media), vectors, atol=1e-3)


def test_a_single_input_gives_a_vector_and_the_batch_size_changes_nothing(media, model):
    expected = model.embed_video(media)
    np.testing.assert_allclose(model.embed_video(media[1]), expected[1], atol=1e-5)
    np.testing.assert_allclose(model.embed_video(media, batch_size=2), expected, atol=1e-5)
    assert model.embed_audio(media[0]).shape == model.embed_text("a star").shape == (128,)


def test_arrays_are_inputs(model):
    video = np.random.default_rng(0).integers(0, 256, (12, 40, 50, 3), np.uint8)
    audio = films.tone(400, seconds=1, sample_rate=16_000)
    single = model.embed_video(video)
    assert single.shape == (128,) and abs(np.linalg.norm(single) - 1) < 1e-5
    np.testing.assert_allclose(model.embed_video([video, video[::-1]])[0], single, atol=1e-5)
    expected = model.embed_audio(audio)
    result = model.embed_audio(audio, sample_rate=model.sample_rate)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_zero_shot_classification_of_video_uses_the_space_of_text(media, model):
    classifier = model.zero_shot(CAPTIONS, templates=("{}",))
    assert classifier.modality == "video" and classifier.modalities == ("video",)
    scale = 1 / 0.07  # the default temperature of the loss
    scores = np.exp(scale * model.embed_video(media) @ model.embed_text(CAPTIONS).T)
    expected = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(media), expected, rtol=1e-3)
    assert classifier.classify(media[0]) == CAPTIONS[expected[0].argmax()]
    with raises(UserError, "modality", "'audio'", "video"):
        model.zero_shot(CAPTIONS, modality="audio")


def test_invalid_inputs_are_an_error(media, model, tmp_path):
    silent = films.write_film(tmp_path / "silent.mp4", frames=[np.zeros((48, 64, 3), np.uint8)] * 8)
    with raises(UserError, silent, "audio"):
        model.embed_audio(silent)
    with raises(UserError, tmp_path / "nothing.mp4"):
        model.embed_video(tmp_path / "nothing.mp4")
    with raises(UserError, "uint8 [num_frames, height, width, 3]", "float64 [4, 8, 8, 3]"):
        model.embed_video(np.zeros((4, 8, 8, 3)))
    with raises(UserError, "[num_samples]", "int16 [100]"):
        model.embed_audio(np.zeros(100, np.int16))
    with raises(UserError, "44100 Hz", f"{model.sample_rate:g} Hz"):
        model.embed_audio(np.zeros(100, np.float32), sample_rate=44_100)
    with raises(UserError, "target of embed_audio", "'text'", "video"):
        model.embed_audio(media, target="text")
    with raises(UserError, "num_clips", 0):
        model.embed_video(media, num_clips=0)
    with raises(UserError, "image", "video, audio, text"):
        model.embed_image(np.zeros((8, 8, 3), np.uint8))
    with raises(UserError, "--task=pretrain", "zero_shot"):
        model.classify(media)


def test_a_model_loads_without_its_training_data(media, model, pretrained, tmp_path):
    path, _, _, data = pretrained
    gone = f"--config.data.train={tmp_path / 'gone'}"
    with raises(
        UserError, tmp_path / "gone", "--config.data.text.vocab=", "--config.data.text=None"
    ):
        mmjax.load(path, overrides=[gone])
    vocab = f"--config.data.text.vocab={data.tokenizer.vocab}"
    with raises(UserError, "config.data.audio.sample_rate"):
        mmjax.load(path, overrides=[gone, vocab])
    rate = f"--config.data.audio.sample_rate={data.info.sample_rate}"
    without = mmjax.load(path, overrides=[gone, vocab, rate])
    np.testing.assert_allclose(
        without.embed_audio(media), model.embed_audio(media), atol=1e-2
    )  # the length of the video at an unknown frame rate is not exact
    with raises(UserError, media[0], "--config.data.video.fps="):
        without.embed_video(media)
    fps = f"--config.data.video.fps={data.info.fps}"
    complete = mmjax.load(path, overrides=[gone, vocab, rate, fps])
    np.testing.assert_allclose(complete.embed_video(media), model.embed_video(media), atol=1e-5)


def test_a_finetuned_model_classifies_files(media, tmp_path):
    cfg = config.load("finetune", "demo:smoke", ["--config.model.backbone.num_layers=1"])
    task, state, data = save_run(cfg, tmp_path)
    model = mmjax.load(tmp_path)
    assert model.modalities == ("video",) and model.spaces == {"video": ()}
    names = tuple(data.info.class_names)
    assert model.class_names == names and model.logits(media).shape == (3, len(names))
    expected = [names[i] for i in model.logits(media).argmax(axis=1)]
    assert model.classify(media) == expected and model.classify(media[0]) == expected[0]
    kernel = np.asarray(state["params"]["classifier"]["kernel"])
    bias = np.asarray(state["params"]["classifier"]["bias"])
    features = model.embed_video(media)
    np.testing.assert_allclose(model.logits(media), features @ kernel + bias, atol=1e-3)
    gone = mmjax.load(
        tmp_path,
        overrides=["--config.data.train=nowhere", f"--config.data.video.fps={data.info.fps}"],
    )
    assert gone.classify(media) == [names.index(name) for name in expected]


def test_a_guided_model_embeds_images(tmp_path):
    cfg = config.load("guided", "demo:slip,smoke")
    save_run(cfg, tmp_path)
    model = mmjax.load(tmp_path)
    assert model.modalities == ("image", "text")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert model.embed_image(image).shape == model.embed_text("a star").shape
    assert model.embed_image([image], target="features").shape[0] == 1
    assert model.zero_shot(["star", "moon"]).modality == "image"


class MeanColor:
    """A task from outside the package with nothing but `predict`."""

    def __init__(self, cfg, data_spec):
        self.predict = {"features": self._features}

    def init(self, key):
        return {"scale": jax.numpy.ones(())}, {}

    def _features(self, params, extra, batch):
        mean = batch["image"].astype("float32").mean(axis=(2, 3))
        return {"image": params["scale"] * mean}


def test_a_task_from_another_module_needs_only_predict(tmp_path):
    cfg = config.base()
    cfg.task = f"{__name__}:MeanColor"
    cfg.data = dict(train="nowhere", image=dict(size=8))
    saved = Checkpoints(tmp_path)
    saved.save(1, {"params": {"scale": np.float32(2)}, "extra": {}}, {"step": 1})
    saved.close()
    (tmp_path / run_dir.CONFIG).write_text(config.to_json(cfg))
    image = np.full((16, 16, 3), (10, 20, 30), np.uint8)
    np.testing.assert_allclose(mmjax.load(tmp_path).embed_image(image), [20, 40, 60])

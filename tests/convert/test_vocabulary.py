"""A converted checkpoint keeps its vocabulary and is evaluated with it, without training data."""

import json
import logging

import jax
import numpy as np
import pytest
import tensorflow as tf

from mmjax import config, eval_job
from mmjax.checkpoints.run_dir import RunDir
from mmjax.data.pipeline import loader
from mmjax.data.sources import registry as sources
from mmjax.data.text.word_vocab import SPECIAL, split_words
from mmjax.data.world import build as world
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.convert import published
from tests.convert.runs import read_report
from tests.convert.vatt.test_vatt_conversion import convert, run_model
from tests.messages import assert_mentions, raises

# As many tokens as the embedding of `published` has, in an order that no dataset would give them.
WORDS = [*SPECIAL, "zebra", "is", "small", "a", "red", "large", "the", "blue", "green", "star"]
WORDS += [f"word{i}" for i in range(50 - len(WORDS))]
MISSING = ("youcook2", "ucf101", "hmdb51", "esc50")  # evaluators without datasets here


def write(path, words=WORDS):
    path.write_text("".join(f"{word}\n" for word in words))
    return str(path)


def test_vocabulary_is_copied_into_the_run_and_reported(tmp_path, capsys):
    source = write(tmp_path / "words.txt")
    run, _ = convert(tmp_path, published.tx_fac(), "--vocab", source)
    assert (run / "vocab.txt").read_text() == (tmp_path / "words.txt").read_text()
    text = RunDir(run, create=False).read_config().data.text
    assert text.vocab == str(run / "vocab.txt") and text.tokenizer == "word"
    for output in (capsys.readouterr().out, read_report(run).summary):
        (line,) = [line for line in output.splitlines() if source in line]
        assert_mentions(line, 50, "tokenizer word")


def test_an_unknown_vocabulary_is_reported(tmp_path, capsys):
    run, _ = convert(tmp_path, published.ut_fac(), "--head-dim", "8")
    for output in (capsys.readouterr().out, read_report(run).summary):
        (line,) = [line for line in output.splitlines() if "--vocab FILE" in line]
        assert_mentions(line, "UNKNOWN", 50, "--config.data.text.vocab=FILE")
    assert "vocab" not in RunDir(run, create=False).read_config().data.text
    assert not (run / "vocab.txt").exists()


def test_a_wordpiece_vocabulary_selects_the_bert_tokenizer(tmp_path):
    vocab = write(tmp_path / "wordpieces.txt", ["[PAD]", "[UNK]", *(f"##{i}" for i in range(48))])
    run, _ = convert(
        tmp_path, published.tx_fac(published.BERT), "--head-dim", "8", "--vocab", vocab
    )
    assert RunDir(run, create=False).read_config().data.text.tokenizer == "bert"


def test_files_that_are_not_the_vocabulary_are_rejected(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    prefix = published.write(tmp_path / "source", published.values(published.tx_fac()))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    wrong = {
        write(tmp_path / "few.txt", WORDS[:-1]): (49, 50),
        write(tmp_path / "list.txt", WORDS[4:]): ("<pad> <bos> <eos> <unk>",),
        str(tmp_path / "bytes.txt"): ("UTF-8", "0xff"),
        str(tmp_path / "none.txt"): (),
    }
    for path, facts in wrong.items():
        for option in (["--inspect"], ["--out", str(tmp_path / "run")]):
            assert cli.main(["convert", prefix, *option, "--vocab", path]) == 2
            assert_mentions(capsys.readouterr().err, f"--vocab {path}", *facts)
    assert not (tmp_path / "run").exists()
    good = write(tmp_path / "words.txt")
    assert cli.main(["convert", prefix, "--inspect", "--json", "--vocab", good]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["vocabulary"] == {"path": good, "tokenizer": "word"} and facts["vocab_size"] == 50


def test_a_checkpoint_without_text_needs_no_vocabulary(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    command = ["convert", prefix, "--inspect", "--head-dim", "8"]
    assert cli.main(command) == 0
    assert "--vocab" not in capsys.readouterr().out
    vocab = write(tmp_path / "words.txt")
    assert cli.main([*command, "--vocab", vocab]) == 2
    assert_mentions(capsys.readouterr().err, f"--vocab {vocab}", "checkpoint")


def captions_of(split):
    """Yields the first caption of each example of the tiny world, read from its records."""
    source = sources.open_source("world:tiny", split=split)
    for record in range(source.num_examples):
        example = tf.train.SequenceExample.FromString(source.fetch(record))
        yield example.context.feature["caption/string"].bytes_list.value[0].decode()


def token_ids(captions, words):
    """Returns the tokens of captions, int [N, 16]: indices in a list of words, 3 for others."""
    tokens = np.zeros((len(captions), 16), np.int32)
    for out, caption in zip(tokens, captions, strict=True):
        ids = [words.index(w) if w in words else 3 for w in split_words(caption)]
        out[: len(ids)] = ids[:16]
    return tokens


def ranks(text, video):
    """Ranks each `video` [N, windows, D] among all for its `text` [N, D]; the best rank is 1."""
    video = video.mean(axis=1)
    cosines = text @ video.T / np.linalg.norm(text, axis=1)[:, None] / np.linalg.norm(video, axis=1)
    return 1 + (cosines > np.diag(cosines)[:, None]).sum(axis=1)


def test_retrieval_uses_the_converted_vocabulary_without_training_data(
    tmp_path, monkeypatch, caplog
):
    """The metrics are those of the model on tokens of the vocabulary it was converted with."""
    directory = world.ensure_world("world:tiny")
    captions = list(captions_of("test"))
    # As many words as the embedding has, in two orders; the first is the model's.
    known = sorted({word for caption in captions for word in split_words(caption)})
    words, others = [*SPECIAL, *known[::-1]][:50], [*SPECIAL, *known][:50]
    arrays = published.values(published.tx_fac())
    table = f"{published.ROOT}{published.TEXT}embedding/embeddings"
    arrays[table] *= 20  # so that captions have clearly different features
    prefix, run = published.write(tmp_path, arrays), tmp_path / "run"
    vocab = write(tmp_path / "words.txt", words)
    assert cli.main(["convert", prefix, "--out", str(run), "--vocab", vocab]) == 0
    monkeypatch.chdir(tmp_path)
    overrides = [f"--config.evals.msrvtt.data={directory}", "--config.tensorboard=False"]
    overrides += [f"--config.evals.{name}=None" for name in MISSING]
    with caplog.at_level(logging.INFO):
        assert eval_job.run_job(None, "", overrides=overrides, override_checkpoint=str(run)) == 0
    (line,) = [line for line in caplog.text.splitlines() if str(run / "vocab.txt") in line]
    assert_mentions(line, 50, "tokenizer word")
    metrics = json.loads((run / "metrics.jsonl").read_text())

    section = config.plain(RunDir(run, create=False).read_config().data)
    windows = loader.make_eval_data(
        section | dict(audio=None, text=None), data=directory, batch_size=32, num_clips=4
    )
    frames = next(windows.iterate())["video"]  # [32, 4, T, H, W, 3]
    video = (frames.reshape(-1, *frames.shape[2:]) / 127.5 - 1).astype(np.float32)

    def expected(words):
        inputs = {"video": video, "text": token_ids(captions, words)}
        projected = jax.device_get(run_model(run, inputs)[2])
        return ranks(projected["text/video"], projected["video/text"].reshape(32, 4, -1))

    correct, wrong = expected(words), expected(others)
    prefix = "msrvtt/text_to_video"
    for name, value in {
        "R@1": (correct == 1).mean(),
        "R@10": (correct <= 10).mean(),
        "median_rank": np.median(correct),
        "mean_rank": correct.mean(),
    }.items():
        assert metrics[f"{prefix}/{name}"] == pytest.approx(value, abs=1e-6), name
    assert abs(metrics[f"{prefix}/mean_rank"] - wrong.mean()) > 0.1


def test_the_data_spec_of_a_config_equals_that_of_its_data():
    directory = world.ensure_world("world:tiny")
    cfg = config.base()
    cfg.data = dict(
        train=directory,
        video=dict(num_frames=4, size=32),
        audio=dict(num_samples=800, stride=2, sample_rate=8000.0),
        text=dict(vocab=f"{directory}/vocab.txt"),
    )
    data = loader.make_train_data(config.plain(cfg.data), batch_size=8, seed=0)
    real = DataSpec.of(data)
    cfg.data.train = "nowhere"
    data_spec = eval_job._data_spec(config.resolve(cfg))
    assert (
        data_spec.vocab_size == real.vocab_size
        and data_spec.sample_rate == real.sample_rate == 4000
    )
    for name in ("video", "audio", "text"):
        assert (data_spec.batch[name].shape, data_spec.batch[name].dtype) == (
            real.batch[name].shape,
            real.batch[name].dtype,
        )
    # A key that is left to the training data needs them.
    for key in ("text.vocab=", "audio.sample_rate=0.0", "label.multi_label=False"):
        incomplete = cfg.copy_and_resolve_references()
        config.apply(incomplete, [f"--config.data.{key}"])
        with raises(UserError, "nowhere", "mmjax build"):
            eval_job._data_spec(config.resolve(incomplete))

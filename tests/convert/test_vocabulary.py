"""A converted checkpoint keeps its vocabulary, and is evaluated with it, without training data."""

import json
import logging

import jax
import numpy as np
import pytest
import tensorflow as tf

from mmjax import config, evaluate
from mmjax.data import loader, sources, world
from mmjax.data.tokenizers import SPECIAL, split_words
from mmjax.errors import UserError
from mmjax.rundir import RunDir
from mmjax.tasks import DataFacts
from mmjax.tools import cli
from tests.convert import published
from tests.convert.test_convert import convert, run_model

# As many as the table of `published` has rows, in an order that no dataset would give them.
WORDS = [*SPECIAL, "zebra", "is", "small", "a", "red", "large", "the", "blue", "green", "star"]
WORDS += [f"word{i}" for i in range(50 - len(WORDS))]
MISSING = ("youcook2", "ucf101", "hmdb51", "esc50")  # evaluators whose datasets are not there


def write(path, words=WORDS):
    path.write_text("".join(f"{word}\n" for word in words))
    return str(path)


def test_the_vocabulary_is_kept_with_the_run(tmp_path, capsys):
    source = write(tmp_path / "words.txt")
    run, _ = convert(tmp_path, published.tx_fac(), "--vocab", source)
    assert (run / "vocab.txt").read_text() == (tmp_path / "words.txt").read_text()
    text = RunDir(run, create=False).read_config().data.text
    assert text.vocab == str(run / "vocab.txt") and text.tokenizer == "word"
    said = f"Vocabulary: {source}, 50 words, tokenizer word"
    assert said in capsys.readouterr().out
    assert said in (run / "conversion.txt").read_text()


def test_an_unknown_vocabulary_is_said(tmp_path, capsys):
    run, _ = convert(tmp_path, published.ut_fac(), "--head-dim", "8")
    for text in (capsys.readouterr().out, (run / "conversion.txt").read_text()):
        assert "Vocabulary: UNKNOWN" in text and "the 50 words" in text
        assert "--vocab FILE" in text and "--config.data.text.vocab=FILE" in text
    assert "vocab" not in RunDir(run, create=False).read_config().data.text
    assert not (run / "vocab.txt").exists()


def test_pieces_of_bert(tmp_path):
    pieces = write(tmp_path / "pieces.txt", ["[PAD]", "[UNK]", *(f"##{i}" for i in range(48))])
    run, _ = convert(
        tmp_path, published.tx_fac(published.BERT), "--head-dim", "8", "--vocab", pieces
    )
    assert RunDir(run, create=False).read_config().data.text.tokenizer == "bert"


def test_a_file_that_is_not_its_vocabulary(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    prefix = published.write(tmp_path / "source", published.values(published.tx_fac()))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    wrong = {
        write(tmp_path / "few.txt", WORDS[:-1]): "has 49 words, the checkpoint's table 50",
        write(tmp_path / "list.txt", WORDS[4:]): "missing: <pad> <bos> <eos> <unk>",
        str(tmp_path / "bytes.txt"): "is no vocabulary of words",
        str(tmp_path / "none.txt"): "there is no such file",
    }
    for path, said in wrong.items():
        for option in (["--inspect"], ["--out", str(tmp_path / "run")]):
            assert cli.main(["convert", prefix, *option, "--vocab", path]) == 2
            error = capsys.readouterr().err
            assert f"--vocab {path}" in error and said in error
    assert not (tmp_path / "run").exists()
    good = write(tmp_path / "words.txt")
    assert cli.main(["convert", prefix, "--inspect", "--json", "--vocab", good]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["vocabulary"] == {"path": good, "tokenizer": "word"} and facts["words"] == 50


def test_a_checkpoint_without_words(tmp_path, capsys):
    prefix = published.write(tmp_path, published.values(published.finetuned()))
    command = ["convert", prefix, "--inspect", "--head-dim", "8"]
    assert cli.main(command) == 0
    assert "ocabulary" not in capsys.readouterr().out
    assert cli.main([*command, "--vocab", write(tmp_path / "words.txt")]) == 2
    assert "has no table of words" in capsys.readouterr().err


def captions_of(split):
    """The first caption of each record of the tiny world, read from the records themselves."""
    source = sources.open_source("world:tiny", split=split)
    for record in range(source.num_examples):
        example = tf.train.SequenceExample.FromString(source.fetch(record))
        yield example.context.feature["caption/string"].bytes_list.value[0].decode()


def numbers(captions, words):
    """int [N, 16]: the places of captions' words in a list, 3 for others."""
    rows = np.zeros((len(captions), 16), np.int32)
    for row, caption in zip(rows, captions, strict=True):
        ids = [words.index(w) if w in words else 3 for w in split_words(caption)]
        row[: len(ids)] = ids[:16]
    return rows


def ranks(text, video):
    """From 1: of each row of `video` [N, windows, D] among all, by a row of `text` [N, D]."""
    video = video.mean(axis=1)
    cosines = text @ video.T / np.linalg.norm(text, axis=1)[:, None] / np.linalg.norm(video, axis=1)
    return 1 + (cosines > np.diag(cosines)[:, None]).sum(axis=1)


def test_retrieval_where_only_its_own_dataset_is(tmp_path, monkeypatch, caplog):
    """The metrics are those of the model on the numbers of the vocabulary it was converted with."""
    folder = world.ensure_world("world:tiny")
    captions = list(captions_of("test"))
    # As many words of the captions as the table has rows, in two orders: one is the model's.
    known = sorted({word for caption in captions for word in split_words(caption)})
    words, others = [*SPECIAL, *known[::-1]][:50], [*SPECIAL, *known][:50]
    arrays = published.values(published.tx_fac())
    table = f"{published.ROOT}{published.TEXT}embedding/embeddings"
    arrays[table] *= 20  # captions differ enough to be told apart
    prefix, run = published.write(tmp_path, arrays), tmp_path / "run"
    vocab = write(tmp_path / "words.txt", words)
    assert cli.main(["convert", prefix, "--out", str(run), "--vocab", vocab]) == 0
    monkeypatch.chdir(tmp_path)
    overrides = [f"--config.evals.msrvtt.data={folder}", "--config.tensorboard=False"]
    overrides += [f"--config.evals.{name}=None" for name in MISSING]
    with caplog.at_level(logging.INFO):
        assert evaluate.run_job(None, "", overrides=overrides, override_checkpoint=str(run)) == 0
    assert caplog.text.count(f"Vocabulary: {run / 'vocab.txt'}, 50 words, tokenizer word.") == 1
    found = json.loads((run / "metrics.jsonl").read_text())

    section = config.plain(RunDir(run, create=False).read_config().data)
    windows = loader.make_eval_data(
        section | dict(audio=None, text=None), data=folder, batch_size=32, num_clips=4
    )
    frames = next(windows.iterate())["video"]  # [32, 4, T, H, W, 3]
    video = (frames.reshape(-1, *frames.shape[2:]) / 127.5 - 1).astype(np.float32)

    def expected(words):
        inputs = {"video": video, "text": numbers(captions, words)}
        projected = jax.device_get(run_model(run, inputs)[2])
        return ranks(projected["text/video"], projected["video/text"].reshape(32, 4, -1))

    right, wrong = expected(words), expected(others)
    prefix = "msrvtt/text_to_video"
    for name, value in {
        "R@1": (right == 1).mean(),
        "R@10": (right <= 10).mean(),
        "median_rank": np.median(right),
        "mean_rank": right.mean(),
    }.items():
        assert found[f"{prefix}/{name}"] == pytest.approx(value, abs=1e-6), name
    assert abs(found[f"{prefix}/mean_rank"] - wrong.mean()) > 0.1


def test_what_a_config_says_is_what_its_data_say():
    folder = world.ensure_world("world:tiny")
    cfg = config.base()
    cfg.data = dict(
        train=folder,
        video=dict(num_frames=4, size=32),
        audio=dict(num_samples=800, stride=2, sample_rate=8000.0),
        text=dict(vocab=f"{folder}/vocab.txt"),
    )
    data = loader.make_train_data(config.plain(cfg.data), batch_size=8, seed=0)
    real = DataFacts.of(data)
    cfg.data.train = "nowhere"
    facts = evaluate._facts(cfg)
    assert facts.vocab_size == real.vocab_size and facts.sample_rate == real.sample_rate == 4000
    for name in ("video", "audio", "text"):
        assert (facts.spec[name].shape, facts.spec[name].dtype) == (
            real.spec[name].shape,
            real.spec[name].dtype,
        )
    # What is left to the training data needs them.
    for key in ("text.vocab=", "audio.sample_rate=0.0", "label.multi_label=False"):
        unsaid = cfg.copy_and_resolve_references()
        config.apply(unsaid, [f"--config.data.{key}"])
        with pytest.raises(UserError, match="nowhere"):
            evaluate._facts(unsaid)

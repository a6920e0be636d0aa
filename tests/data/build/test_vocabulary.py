"""`mmjax vocab` writes the words of a dataset's captions."""

from mmjax.data.storage import dataset, schema, tfrecord
from mmjax.tools import cli
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions


def write(directory, captions=("it costs $5", "another caption")):
    """Writes a dataset with one example; returns its path."""
    example = schema.Example(captions=list(captions), labels=[0])
    tfrecord.write_shard(directory / dataset.shard_name("train", 0, 1), [schema.encode(example)])
    return str(directory)


def test_vocab_writes_the_words_of_a_split(tmp_path, capsys):
    path = write(tmp_path)
    assert cli.main(["vocab", path, "--size", "20"]) == 0
    words = (tmp_path / "vocab.txt").read_text().split("\n")
    assert "caption" in words and "costs" in words
    count = len(set(words) - {""})
    assert_line_mentions(capsys.readouterr().out, tmp_path / "vocab.txt", count)
    other = tmp_path / "silent"
    other.mkdir()
    assert cli.main(["vocab", write(other, captions=[])]) == 2
    assert_mentions(capsys.readouterr().err, other, "'train'", "captions")


def test_keyword_options_need_keywords(tmp_path, capsys):
    assert cli.main(["vocab", write(tmp_path), "--prompt", "a photo"]) == 2
    assert_mentions(capsys.readouterr().err, "--prompt", "--keywords")

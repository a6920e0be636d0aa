"""Tests of word vocabularies: splitting, ranking, and the file format."""

import subprocess
import sys

import pytest

from mmjax.data.text import word_vocab
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises


def test_word_vocabulary_is_ranked_by_frequency_and_truncated():
    vocab = word_vocab.build_word_vocab(["b b, a", "C c b", "a d"], size=7)
    assert vocab == ["<pad>", "<bos>", "<eos>", "<unk>", "b", "a", "c"]


def test_written_vocabulary_reads_back(tmp_path):
    vocab = word_vocab.build_word_vocab(["über red"])
    word_vocab.write_word_vocab(tmp_path / "vocab.txt", vocab)
    assert word_vocab.read_word_vocab(tmp_path / "vocab.txt") == {w: n for n, w in enumerate(vocab)}


SPECIAL = "<pad>\n<bos>\n<eos>\n<unk>\n"


@pytest.mark.parametrize(
    "text, facts",
    [
        ("<unk>\n<pad>\n<bos>\n<eos>\n", ("<pad> <bos> <eos> <unk>", 0, 1)),
        ("<pad>\n<bos>\n<eos>\n", ("<pad> <bos> <eos> <unk>", ": <unk>")),
        ("", ("missing: <pad> <bos> <eos> <unk>",)),
        (f"{SPECIAL}red\n\nred\n", ("'red'", "twice", "line 7", "first line is 5")),
        (
            "0 <pad>\n1 <bos>\n2 <eos>\n3 <unk>\n2 red\n",
            ("'red'", "id 2 ", "twice", "line 5", "3."),
        ),
        ("<pad>\ntwo words\n", ("line 2", "'two words'")),
        ("0 <pad>\n<bos>\n", ("line 1", "'0 <pad>'", "`id token`")),
    ],
)
def test_error_for_an_invalid_vocabulary_names_the_line(tmp_path, text, facts):
    path = tmp_path / "vocab.txt"
    path.write_text(text)
    with raises(UserError, path) as info:
        word_vocab.read_word_vocab(path)
    assert_mentions(str(info.value).replace(str(path), "FILE"), *facts)


def test_word_vocabularies_do_not_import_tensorflow():
    code = (
        "import sys; from mmjax.data.text import word_vocab, clip_bpe; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_vocabulary_with_unicode_spaces_in_words_is_read_as_written(tmp_path):
    texts = ["caf\u00e9\u00a0au lait", "a\u2028b \u3000 c\x85d e\x1cf"]
    words = word_vocab.build_word_vocab(texts)
    word_vocab.write_word_vocab(tmp_path / "v.txt", words)
    assert list(word_vocab.read_word_vocab(tmp_path / "v.txt")) == words

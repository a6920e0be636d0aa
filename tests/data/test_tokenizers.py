"""Tokenizers against their definitions, with small files made for the purpose."""

import gzip
import json

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import tokenizers
from mmjax.errors import UserError

TEXTS = ["A red, RED circle!", "", "don't stop; it’s  über-fine\tnow", "red " * 30]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "vocab.txt"
    vocab = tokenizers.build_word_vocab(["a red circle", "a red square", "über red"], size=7)
    tokenizers.write_word_vocab(path, vocab)
    return str(path)


def both_ways(tokenizer, texts=TEXTS):
    rows = tokenizer.encode(texts)
    assert rows.dtype == np.int32 and rows.shape == (len(texts), tokenizer.max_words)
    assert np.array_equal(rows, tokenizer.encode_tensor(tf.constant(texts)).numpy())
    dataset = tf.data.Dataset.from_tensors(texts).map(tokenizer.encode_tensor)
    assert np.array_equal(next(iter(dataset)).numpy(), rows)
    assert rows.min() >= 0 and rows.max() < tokenizer.vocab_size
    return rows


def test_word_vocabulary_is_ranked_and_cut():
    vocab = tokenizers.build_word_vocab(["b b, a", "C c b", "a d"], size=7)
    assert vocab == ["<pad>", "<bos>", "<eos>", "<unk>", "b", "a", "c"]


def test_word_tokenizer_strips_lowers_and_looks_up(words):
    tokenizer = tokenizers.make_tokenizer("word", vocab=words, max_words=5)
    rows = both_ways(tokenizer)
    number = tokenizer.words
    assert rows[0].tolist() == [number["a"], number["red"], number["red"], number["circle"], 0]
    assert rows[1].tolist() == [0] * 5
    assert rows[2].tolist() == [number["<unk>"]] * 5  # dont stop it’s überfine now
    assert rows[3].tolist() == [number["red"]] * 5
    assert tokenizer.vocab_size == 7 and tokenizer.pad_id == 0
    assert tokenizer.decode(rows[0]) == "a red red circle" and tokenizer.decode(rows[1]) == ""
    assert tokenizer.decode(np.float32([number["<bos>"], 3, 5, number["<eos>"]])) == "<unk> a"


def test_word_vocabulary_with_numbers(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("3 <unk>\n0 <pad>\n1 <bos>\n2 <eos>\n9 red\n")
    tokenizer = tokenizers.make_tokenizer("word", vocab=str(path), max_words=3)
    assert both_ways(tokenizer, ["red x"]).tolist() == [[9, 3, 0]]
    assert tokenizer.vocab_size == 10


@pytest.mark.parametrize(
    "text, message",
    [
        ("<unk>\n<pad>\n<bos>\n<eos>\n", "<pad> with number 0, not 1"),
        ("<pad>\n<bos>\n<eos>\n", "missing: <unk>"),
        ("<pad>\n<bos>\n<eos>\n<unk>\nred\nred\n", "comes twice"),
        ("<pad>\ntwo words\n", "lines must be"),
    ],
)
def test_bad_word_vocabularies_are_refused(tmp_path, text, message):
    path = tmp_path / "vocab.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        tokenizers.make_tokenizer("word", vocab=str(path))


def test_unknown_tokenizer_and_missing_file(words):
    with pytest.raises(UserError, match="Did you mean 'word'"):
        tokenizers.make_tokenizer("words", vocab=words)
    with pytest.raises(UserError, match="data.text.vocab='nowhere' is not a file"):
        tokenizers.make_tokenizer("bert", vocab="nowhere")


def test_bert_pieces(tmp_path):
    pieces = ["[PAD]", "[UNK]", "red", "circ", "##le", ",", "uber", "a"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    tokenizer = tokenizers.make_tokenizer("bert", vocab=str(path), max_words=6)
    rows = both_ways(tokenizer, ["A red, Über CIRCLE", "", "zebra red"])
    named = [[pieces[i] for i in row if i] for row in rows]
    assert named == [["a", "red", ",", "uber", "circ", "##le"], [], ["[UNK]", "red"]]
    texts = ["a red , uber circle", "", "[UNK] red"]
    assert [tokenizer.decode(row) for row in rows] == texts


def test_sentencepiece_with_and_without_padding(tmp_path):
    import sentencepiece

    corpus = [
        f"a {c} {s} moves {d}" for c in ("red", "blue") for s in ("circle", "square") for d in "ab"
    ]
    rows = {}
    for pad in (0, -1):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_prefix=str(tmp_path / f"m{pad}"),
            vocab_size=40,
            hard_vocab_limit=False,
            pad_id=pad,
            unk_id=1 if pad == 0 else 0,
            bos_id=2 if pad == 0 else 1,
            eos_id=3 if pad == 0 else 2,
            minloglevel=2,
        )
        path = str(tmp_path / f"m{pad}.model")
        tokenizer = tokenizers.make_tokenizer("sentencepiece", vocab=path, max_words=20)
        rows[pad] = both_ways(tokenizer, ["a red circle moves", ""])
        assert not rows[pad][1].any()
        model = sentencepiece.SentencePieceProcessor(model_file=path)
        ids = [int(i) for i in rows[pad][0] if i]
        assert model.decode([i - (pad != 0) for i in ids]) == "a red circle moves"
        assert [tokenizer.decode(row) for row in rows[pad]] == ["a red circle moves", ""]
    # Unraised, the number 0 of the second model would be a word's, and be taken for padding.
    assert (rows[0] != 0).sum() == (rows[-1] != 0).sum()


MERGES = [("r", "e"), ("re", "d</w>"), ("a", "b")]


LINES = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]


def write_clip(path):
    """A small vocabulary in the layout of CLIP's own file."""
    with gzip.open(path, "wt") as file:
        file.write("\n".join(LINES))


def test_clip_byte_pairs_from_both_kinds_of_files(tmp_path):
    """CLIP's own file, and vocab.json + merges.txt."""
    own = tmp_path / "bpe.txt.gz"
    write_clip(own)
    alone = tokenizers.make_tokenizer("clip", vocab=str(own), max_words=8)
    # 256 bytes twice, three merges, two marks; printable ASCII comes first: 'a' is byte 97 - 33.
    begin, end, red = 515, 516, 513
    assert alone.vocab_size == 517
    rows = both_ways(alone, ["RED  ab!", "", "red " * 20])
    want = [begin, red, ord("a") - 33, 256 + ord("b") - 33, 256 + ord("!") - 33, end, 0, 0]
    # 'a b' only merges inside a word; here 'b' ends one.
    assert rows[0].tolist() == want
    assert not rows[1].any()
    assert rows[2].tolist() == [begin] + [red] * 6 + [end]

    numbers, _ = tokenizers._clip_files(str(own), "")
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    (tmp_path / "merges.txt").write_text("\n".join(LINES))
    pair = tokenizers.make_tokenizer(
        "clip", vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"), max_words=8
    )
    assert np.array_equal(pair.encode(["RED ab!"]), rows[:1])
    with pytest.raises(UserError, match="merges"):
        tokenizers.make_tokenizer("clip", vocab=str(tmp_path / "vocab.json"))


@pytest.fixture
def clip(tmp_path):
    write_clip(tmp_path / "bpe.txt.gz")
    return tokenizers.make_tokenizer("clip", vocab=str(tmp_path / "bpe.txt.gz"), max_words=24)


@pytest.mark.parametrize(
    "text, plain",
    [
        (" Red\t\n AB ", "red ab"),
        ("a &amp;lt; b &amp; c", "a < b & c"),
        ("‘ab’ “ab”", "' ab ' \" ab \""),
        ("cafe\u0301 über 日本", "café über 日本"),
        ("!ab!!", "! ab !!"),
        ("it's 42", "it 's 4 2"),
    ],
)
def test_clip_cleans_and_decodes(clip, text, plain):
    rows = clip.encode([text, plain])
    assert [clip.decode(row) for row in rows] == [plain, plain]
    if " '" not in plain:  # a blank before 's makes it two pieces
        assert np.array_equal(*rows)
    assert clip.decode(rows[0].astype(np.float32)) == plain  # as predictions hold them


def test_clip_cuts_what_is_too_long_before_the_end_mark(clip):
    row = clip.encode(["red " * 40])[0]
    assert row.tolist() == [515] + [513] * 22 + [516]
    assert clip.decode(row) == " ".join(["red"] * 22)


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_clips_vocabulary_is_found_in_a_package_that_is_not_imported(
    tmp_path, monkeypatch, package
):
    folder = tmp_path / "site" / package
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    with pytest.raises(UserError, match="pip install --no-deps open_clip_torch.*merges.txt"):
        tokenizers.make_tokenizer("clip", vocab="")
    write_clip(folder / tokenizers.CLIP_FILE)
    tokenizer = tokenizers.make_tokenizer("clip", vocab="")
    assert tokenizer.vocab == str(folder / tokenizers.CLIP_FILE) and tokenizer.vocab_size == 517

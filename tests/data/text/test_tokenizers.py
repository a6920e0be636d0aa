"""Tests of tokenizers against their definitions, with small vocabularies."""

import gzip
import json

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.text import clip_bpe, tokenizers, word_vocab
from mmjax.errors import UserError
from tests.messages import raises

TEXTS = ["A red, RED circle!", "", "don't stop; it’s  über-fine\tnow", "red " * 30]


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "vocab.txt"
    vocab = word_vocab.build_word_vocab(["a red circle", "a red square", "über red"], size=7)
    word_vocab.write_word_vocab(path, vocab)
    return str(path)


def encode_both_ways(tokenizer, texts=TEXTS):
    """Encodes in Python and in TensorFlow, checks that both agree, and returns the ids."""
    ids = tokenizer.encode(texts)
    assert ids.dtype == np.int32 and ids.shape == (len(texts), tokenizer.max_tokens)
    assert np.array_equal(ids, tokenizer.encode_tensor(tf.constant(texts)).numpy())
    dataset = tf.data.Dataset.from_tensors(texts).map(tokenizer.encode_tensor)
    assert np.array_equal(next(iter(dataset)).numpy(), ids)
    assert ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    return ids


def test_word_tokenizer_strips_punctuation_lowercases_and_looks_up(vocab_file):
    tokenizer = tokenizers.make_tokenizer("word", vocab=vocab_file, max_tokens=5)
    ids = encode_both_ways(tokenizer)
    id_of = tokenizer.words
    assert ids[0].tolist() == [id_of["a"], id_of["red"], id_of["red"], id_of["circle"], 0]
    assert ids[1].tolist() == [0] * 5
    assert ids[2].tolist() == [id_of["<unk>"]] * 5  # dont stop it’s überfine now
    assert ids[3].tolist() == [id_of["red"]] * 5
    assert tokenizer.vocab_size == 7 and tokenizer.pad_id == 0
    assert tokenizer.decode(ids[0]) == "a red red circle" and tokenizer.decode(ids[1]) == ""
    assert tokenizer.decode(np.float32([id_of["<bos>"], 3, 5, id_of["<eos>"]])) == "<unk> a"


def test_word_vocabulary_with_explicit_ids(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("3 <unk>\n0 <pad>\n1 <bos>\n2 <eos>\n9 red\n")
    tokenizer = tokenizers.make_tokenizer("word", vocab=str(path), max_tokens=3)
    assert encode_both_ways(tokenizer, ["red x"]).tolist() == [[9, 3, 0]]
    assert tokenizer.vocab_size == 10


def test_unknown_tokenizer_and_missing_file_are_named(vocab_file):
    with raises(UserError, "data.text.tokenizer", "'words'", "'word'", "bert, clip"):
        tokenizers.make_tokenizer("words", vocab=vocab_file)
    with raises(UserError, "'bert'", "data.text.vocab='nowhere'", "mmjax vocab"):
        tokenizers.make_tokenizer("bert", vocab="nowhere")


def test_bert_subwords(tmp_path):
    subwords = ["[PAD]", "[UNK]", "red", "circ", "##le", ",", "uber", "a"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(subwords) + "\n")
    tokenizer = tokenizers.make_tokenizer("bert", vocab=str(path), max_tokens=6)
    ids = encode_both_ways(tokenizer, ["A red, Über CIRCLE", "", "zebra red"])
    actual = [[subwords[i] for i in text_ids if i] for text_ids in ids]
    assert actual == [["a", "red", ",", "uber", "circ", "##le"], [], ["[UNK]", "red"]]
    texts = ["a red , uber circle", "", "[UNK] red"]
    assert [tokenizer.decode(text_ids) for text_ids in ids] == texts


@pytest.mark.parametrize(
    "lines, facts",
    [
        (["[PAD]", "[CLS]", "red"], ("missing: [UNK]",)),
        (["red"], ("missing: [PAD] [UNK]",)),
        (["[UNK]", "[PAD]"], ("[PAD]", "line 2")),
    ],
)
def test_error_for_a_bert_vocabulary_names_the_missing_token(tmp_path, lines, facts):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(lines) + "\n")
    with raises(UserError, path, *facts):
        tokenizers.make_tokenizer("bert", vocab=str(path))


def upper_case_tokenizer(vocab, *, merges, max_tokens):
    """A tokenizer from outside the package: one token per upper-case letter."""
    tokenizer = tokenizers.Tokenizer(vocab_size=27, max_tokens=max_tokens)
    tokenizer.ids = lambda texts: [[ord(c) - 64 for c in text if c.isupper()] for text in texts]
    return tokenizer


def test_a_tokenizer_may_come_from_another_module():
    name = f"{__name__}:upper_case_tokenizer"
    tokenizer = tokenizers.make_tokenizer(name, vocab="", max_tokens=3)
    assert tokenizer.encode(["AxB", ""]).tolist() == [[1, 2, 0], [0, 0, 0]]


def test_sentencepiece_with_and_without_padding(tmp_path):
    import sentencepiece

    corpus = [
        f"a {c} {s} moves {d}" for c in ("red", "blue") for s in ("circle", "square") for d in "ab"
    ]
    ids = {}
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
        tokenizer = tokenizers.make_tokenizer("sentencepiece", vocab=path, max_tokens=20)
        ids[pad] = encode_both_ways(tokenizer, ["a red circle moves", ""])
        assert not ids[pad][1].any()
        model = sentencepiece.SentencePieceProcessor(model_file=path)
        model_ids = [int(i) - (pad != 0) for i in ids[pad][0] if i]
        assert model.decode(model_ids) == "a red circle moves"
        assert [tokenizer.decode(text_ids) for text_ids in ids[pad]] == ["a red circle moves", ""]
    # The second model has no padding token, so its ids are raised by 1: id 0 would be padding.
    assert (ids[0] != 0).sum() == (ids[-1] != 0).sum()


MERGES = [("r", "e"), ("re", "d</w>"), ("a", "b")]


LINES = ["#version: 0.2", *(" ".join(pair) for pair in MERGES), ""]


def write_clip(path):
    """Writes a small vocabulary in the format of CLIP's own file."""
    with gzip.open(path, "wt") as file:
        file.write("\n".join(LINES))


def test_clip_byte_pairs_from_both_file_formats(tmp_path):
    """CLIP's own file, and vocab.json with merges.txt."""
    file = tmp_path / "bpe.txt.gz"
    write_clip(file)
    tokenizer = tokenizers.make_tokenizer("clip", vocab=str(file), max_tokens=8)
    # 2 × 256 bytes, three merges, two special tokens. Printable ASCII is first: 'a' has id 97 - 33.
    begin, end, red = 515, 516, 513
    assert tokenizer.vocab_size == 517
    ids = encode_both_ways(tokenizer, ["RED  ab!", "", "red " * 20])
    expected = [begin, red, ord("a") - 33, 256 + ord("b") - 33, 256 + ord("!") - 33, end, 0, 0]
    # The merge 'a b' applies only inside a word; here 'b' is the end of one.
    assert ids[0].tolist() == expected
    assert not ids[1].any()
    assert ids[2].tolist() == [begin] + [red] * 6 + [end]

    vocab, _ = clip_bpe.read_files(str(file), "")
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(LINES))
    pair = tokenizers.make_tokenizer(
        "clip",
        vocab=str(tmp_path / "vocab.json"),
        merges=str(tmp_path / "merges.txt"),
        max_tokens=8,
    )
    assert np.array_equal(pair.encode(["RED ab!"]), ids[:1])
    with raises(UserError, "'clip'", tmp_path / "vocab.json", "data.text.merges", "merges.txt"):
        tokenizers.make_tokenizer("clip", vocab=str(tmp_path / "vocab.json"))


@pytest.fixture
def clip(tmp_path):
    write_clip(tmp_path / "bpe.txt.gz")
    return tokenizers.make_tokenizer("clip", vocab=str(tmp_path / "bpe.txt.gz"), max_tokens=24)


@pytest.mark.parametrize(
    "text, plain",
    [
        (" Red\t\n AB ", "red ab"),
        ("a &amp;lt; b &amp; c", "a < b & c"),
        ("‘ab’ “ab”", "' ab ' \" ab \""),
        ("cafe\u0301 über 日本", "café über 日本"),
        ("!ab!!", "! ab !!"),
        ("it's 42", "it 's 4 2"),
        ("e\ufb03cient \ufb01sh", "efficient fish"),  # ligatures
        ("\uff32\uff45\uff44\u3000\uff15", "red 5"),  # full-width letters
        ("sch\u00c3\u00b6n caf\u00c3\u00a9", "sch\u00f6n caf\u00e9"),  # UTF-8 read as Latin-1
        ("&lt;b&gt; AT&amp;amp;T", "< b > at & t"),
    ],
)
def test_clip_cleans_and_decodes(clip, text, plain):
    ids = clip.encode([text, plain])
    assert [clip.decode(text_ids) for text_ids in ids] == [plain, plain]
    if " '" not in plain:  # A space before 's makes it two tokens.
        assert np.array_equal(*ids)
    assert clip.decode(ids[0].astype(np.float32)) == plain  # Predictions are float32.


def test_clip_truncates_before_the_end_token(clip):
    ids = clip.encode(["red " * 40])[0]
    assert ids.tolist() == [515] + [513] * 22 + [516]
    assert clip.decode(ids) == " ".join(["red"] * 22)


@pytest.mark.parametrize("package", ["open_clip", "clip"])
def test_clip_vocabulary_is_found_in_an_installed_package_without_importing_it(
    tmp_path, monkeypatch, package
):
    directory = tmp_path / "site" / package
    directory.mkdir(parents=True)
    (directory / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    facts = ("pip install --no-deps open_clip_torch", "data.text.vocab", "merges.txt")
    with raises(UserError, "'clip'", *facts):
        tokenizers.make_tokenizer("clip", vocab="")
    write_clip(directory / clip_bpe.VOCAB_FILE)
    tokenizer = tokenizers.make_tokenizer("clip", vocab="")
    assert tokenizer.vocab == str(directory / clip_bpe.VOCAB_FILE) and tokenizer.vocab_size == 517

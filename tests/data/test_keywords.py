"""Keyword captions against an independent Python implementation, and their draws by counting."""

import collections
import itertools
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import keywords, loader, schema
from mmjax.data.keywords import Keywords
from mmjax.errors import UserError
from mmjax.tools import cli, index
from tests.data import toy_clips as toy

CAPTIONS = [
    "Smooth, hard, COOL.",
    "soft,\n fuzzy",
    "rough",
    "textured, hard, ",
    "a. b, , Über Größe ,, c,d,e",
    " ., \n,",
    "",
]


def parsed(caption):
    caption = caption.replace(".", "").replace("\n", "").replace("\r", "").lower()
    return [word for word in (piece.strip() for piece in caption.split(",")) if word]


def sentence(words, prompt="", grammar="tvl"):
    if len(words) < 2:
        return f"{prompt}{words[0]}." if words else ""
    if grammar == "english" and len(words) == 2:
        return f"{prompt}{words[0]} and {words[1]}."
    return prompt + ", ".join(words[:-1]) + f", and {words[-1]}."


def made(options, captions, position=0, *, train=True):
    features = {"_seed": tf.constant([3, position], tf.int64)}
    out = keywords.sentence_maker(options, train=train)(tf.constant(captions), features)
    return [text.decode() for text in out.numpy()]


def drawn(options, caption, number=1, *, train=True):
    """What becomes of one caption at each position, as tuples of words."""
    make = keywords.sentence_maker(options, train=train)

    @tf.function(autograph=False)
    def at(position):
        return make(
            tf.constant([caption]), {"_seed": tf.stack([tf.constant(3, tf.int64), position])}
        )

    data = tf.data.Dataset.range(number).map(at)
    texts = [text[0].decode() for text in data.as_numpy_iterator()]
    return [tuple(text.rstrip(".").replace(" and ", " ").split(", ")) for text in texts]


@pytest.mark.parametrize("grammar", ["tvl", "english"])
@pytest.mark.parametrize("prompt", ["", "This image gives tactile feelings of "])
def test_evaluation_has_all_keywords_in_their_order(grammar, prompt):
    options = Keywords(grammar=grammar, prompt=prompt, synonyms="tactile")
    want = [sentence(parsed(caption), prompt, grammar) for caption in CAPTIONS]
    assert made(options, CAPTIONS, train=False) == want
    still = Keywords(grammar=grammar, prompt=prompt, subset=False, shuffle=False)
    assert made(still, CAPTIONS) == want


def test_sentences_as_tvl_wrote_them():
    options = Keywords()
    got = made(options, ["a", "a, b", "a, b, c", "background"], train=False)
    assert got == ["a.", "a, and b.", "a, b, and c.", "background."]
    english = Keywords(grammar="english")
    assert made(english, ["a, b", "a, b, c"], train=False) == ["a and b.", "a, b, and c."]


def chi_square(counts, expected):
    return sum((count - expected) ** 2 / expected for count in counts)


def test_subsets_are_uniform_and_keep_the_order():
    words = ("a", "b", "c", "d")
    subsets = [s for n in range(1, 5) for s in itertools.combinations(words, n)]
    number = 200 * len(subsets)
    counts = collections.Counter(drawn(Keywords(shuffle=False), "a, b, c, d", number))
    assert counts.keys() == set(subsets)
    assert chi_square(counts.values(), 200) < 36.1  # 14 degrees of freedom, p = 0.001


def test_orders_are_uniform():
    counts = collections.Counter(drawn(Keywords(subset=False), "a, b, c", 1200))
    assert counts.keys() == set(itertools.permutations("abc"))
    assert chi_square(counts.values(), 200) < 20.5  # 5 degrees of freedom, p = 0.001


def test_synonyms_are_uniform_the_word_included(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"hard": ["firm", "solid", "hard"], "soft": []}))
    options = Keywords(subset=False, shuffle=False, synonyms=str(path))
    found = drawn(options, "hard, soft, new, hard", 900)
    assert {words[1:3] for words in found} == {("soft", "new")}
    pairs = collections.Counter((words[0], words[3]) for words in found)
    assert pairs.keys() == set(itertools.product(("hard", "firm", "solid"), repeat=2))
    assert chi_square(pairs.values(), 100) < 26.2  # 8 degrees of freedom, p = 0.001
    two = Keywords(subset=False, shuffle=False, synonyms=str(path), keep_synonyms=2)
    assert {words[0] for words in drawn(two, "hard, soft", 60)} == {"hard", "firm"}


def test_captions_of_an_example_are_drawn_on_their_own():
    words = "a, b, c, d, e"
    rows = [made(Keywords(), [words] * 3, position) for position in range(20)]
    assert np.mean([len(set(row)) for row in rows]) > 2.5


@pytest.mark.parametrize("number", [1, 30, 62])
def test_many_keywords(number):
    words = [f"w{n}" for n in range(number)]
    sizes = [len(w) for w in drawn(Keywords(shuffle=False), ", ".join(words), 60)]
    assert min(sizes) >= 1 and np.mean(sizes) == pytest.approx(number / 2, abs=0.6 + number / 20)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 62 keywords"):
        made(Keywords(), [", ".join(words + ["x"] * (63 - number))])


def test_evaluation_draws_subsets_if_asked_to_another_for_each_seed():
    def texts(**options):
        return [drawn(Keywords(**options), "a, b, c, d", 40, train=False)]

    assert texts(eval_subset=True) == texts(eval_subset=True, shuffle=True, synonyms="tactile")
    assert texts(eval_subset=True) != texts(eval_subset=True, seed=1)
    assert texts(seed=1) == texts() == [[("a", "b", "c", "d")] * 40]
    assert all(list(words) == sorted(words) for words in texts(eval_subset=True)[0])


# Through the loader.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = ["red, blue, circle.", " ,.", "square, moves,"]
    payload = lambda n: schema.encode(toy.example(n, captions=[texts[n % 3]]))  # noqa: E731
    built = toy.build(tmp_path_factory.mktemp("toy"), 9, payload=payload)
    index.vocabulary(str(built), also=["and"])
    return built


def section(folder, **options):
    text = dict(max_words=4, candidates=1, keywords=options)
    return dict(train=folder, text=text)


def batches(folder, first=0, number=1, hosts=(0, 1), **options):
    data = loader.make_train_data(
        section(folder, **options),
        batch_size=6,
        seed=5,
        process_index=hosts[0],
        process_count=hosts[1],
    )
    return list(itertools.islice(data.iterate(first), number))


def test_captions_without_keywords_count_as_none(folder):
    (batch,) = batches(folder, first=0)
    empty = batch["example_id"] % 3 == 1
    assert np.array_equal(batch["text_mask"][:, 0], 1.0 - empty)
    assert not batch["text"][empty].any() and batch["text"][~empty].any(axis=(1, 2)).all()


def test_batches_are_a_function_of_seed_and_step_on_any_number_of_hosts(folder):
    whole = batches(folder, number=6)
    assert all(toy.same(a, b) for a, b in zip(whole[4:], batches(folder, 4, 2), strict=True))
    parts = [batches(folder, number=6, hosts=(p, 2)) for p in range(2)]
    for batch, *rows in zip(whole, *parts, strict=True):
        assert toy.same(batch, {k: np.concatenate([row[k] for row in rows]) for k in batch})
    others = batches(folder, number=6, seed=1)
    assert any(not np.array_equal(a["text"], b["text"]) for a, b in zip(whole, others, strict=True))


def test_evaluation_is_whole_and_in_order(folder):
    data = loader.make_eval_data(section(folder), split="train", batch_size=9)
    (batch,) = data.iterate()
    words = data.tokenizer.words
    number = [words[w] if w in words else words["<unk>"] for w in ("red", "blue", "and", "circle")]
    assert batch["text"][0, 0].tolist() == number and batch["text_mask"][:3, 0].tolist() == [
        1,
        0,
        1,
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(grammar="latin"), "Unknown data.text.keywords.grammar 'latin'"),
        (dict(keep_synonyms=-1), "keep_synonyms=-1 must be at least 0"),
        (dict(subsets=True), "data.text.keywords.subsets. Did you mean data.text.keywords.subset"),
        (dict(synonyms="nowhere.json"), "no file nowhere.json of synonyms"),
    ],
)
def test_wrong_options_are_named(folder, options, message):
    with pytest.raises(UserError, match=message):
        batches(folder, **options)


def test_words_that_are_inserted_must_be_in_the_vocabulary(folder, tmp_path):
    """Else they would all be the one unknown word, and nobody would notice."""
    synonyms = tmp_path / "synonyms.json"
    synonyms.write_text(json.dumps({"soft": ["fluffy", "velvety"]}))
    options = dict(synonyms=str(synonyms), prompt="This feels ")
    section = dict(train=str(folder), text=dict(keywords=options))
    with pytest.raises(UserError, match="5 words .* lacks: feels, fluffy, soft, this, velvety"):
        loader.make_train_data(section, batch_size=2, seed=0)
    copy = shutil.copytree(folder, tmp_path / "copy")
    arguments = ["--keywords", "--synonyms", str(synonyms), "--prompt", "This feels "]
    assert cli.main(["vocab", str(copy), *arguments]) == 0
    section["train"] = str(copy)
    loader.make_train_data(section, batch_size=2, seed=0)
    assert cli.main(["vocab", str(copy), "--prompt", "This feels "]) == 2  # without --keywords

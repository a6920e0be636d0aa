"""Keyword captions: sentences against pure Python, sampling against chi-square tests."""

import collections
import itertools
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.build import vocabulary
from mmjax.data.pipeline import keywords, loader
from mmjax.data.pipeline.keywords import Keywords
from mmjax.data.storage import schema
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises

CAPTIONS = [
    "Smooth, hard, COOL.",
    "soft,\n fuzzy",
    "rough",
    "textured, hard, ",
    "a. b, , Über Größe ,, c,d,e",
    " ., \n,",
    "",
]


def parse_keywords(caption):
    caption = caption.replace(".", "").replace("\n", "").replace("\r", "").lower()
    return [keyword for keyword in map(str.strip, caption.split(",")) if keyword]


def sentence(words, prompt="", grammar="tvl"):
    if len(words) < 2:
        return f"{prompt}{words[0]}." if words else ""
    if grammar == "english" and len(words) == 2:
        return f"{prompt}{words[0]} and {words[1]}."
    return prompt + ", ".join(words[:-1]) + f", and {words[-1]}."


def make_texts(options, captions, position=0, *, train=True):
    features = {"_seed": tf.constant([3, position], tf.int64)}
    out = keywords.sentence_maker(options, train=train)(tf.constant(captions), features)
    return [text.decode() for text in out.numpy()]


def sample_keywords(options, caption, number=1, *, train=True):
    """Returns the keywords sampled from one caption at each position, as tuples."""
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
def test_evaluation_keeps_all_keywords_in_order(grammar, prompt):
    options = Keywords(grammar=grammar, prompt=prompt, synonyms="tactile")
    expected = [sentence(parse_keywords(caption), prompt, grammar) for caption in CAPTIONS]
    assert make_texts(options, CAPTIONS, train=False) == expected
    deterministic = Keywords(grammar=grammar, prompt=prompt, subset=False, shuffle=False)
    assert make_texts(deterministic, CAPTIONS) == expected


def test_sentences_have_the_grammar_of_tvl_or_english():
    options = Keywords()
    result = make_texts(options, ["a", "a, b", "a, b, c", "background"], train=False)
    assert result == ["a.", "a, and b.", "a, b, and c.", "background."]
    english = Keywords(grammar="english")
    assert make_texts(english, ["a, b", "a, b, c"], train=False) == ["a and b.", "a, b, and c."]


def chi_square(counts, expected):
    return sum((count - expected) ** 2 / expected for count in counts)


def test_subsets_are_uniform_and_keep_their_order():
    words = ("a", "b", "c", "d")
    subsets = [s for n in range(1, 5) for s in itertools.combinations(words, n)]
    number = 200 * len(subsets)
    counts = collections.Counter(sample_keywords(Keywords(shuffle=False), "a, b, c, d", number))
    assert counts.keys() == set(subsets)
    assert chi_square(counts.values(), 200) < 36.1  # 14 degrees of freedom, p = 0.001


def test_orders_are_uniform():
    counts = collections.Counter(sample_keywords(Keywords(subset=False), "a, b, c", 1200))
    assert counts.keys() == set(itertools.permutations("abc"))
    assert chi_square(counts.values(), 200) < 20.5  # 5 degrees of freedom, p = 0.001


def test_synonyms_and_the_keyword_itself_are_equally_likely(tmp_path):
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps({"hard": ["firm", "solid", "hard"], "soft": []}))
    options = Keywords(subset=False, shuffle=False, synonyms=str(path))
    result = sample_keywords(options, "hard, soft, new, hard", 900)
    assert {words[1:3] for words in result} == {("soft", "new")}
    pairs = collections.Counter((words[0], words[3]) for words in result)
    assert pairs.keys() == set(itertools.product(("hard", "firm", "solid"), repeat=2))
    assert chi_square(pairs.values(), 100) < 26.2  # 8 degrees of freedom, p = 0.001
    two = Keywords(subset=False, shuffle=False, synonyms=str(path), keep_synonyms=2)
    assert {words[0] for words in sample_keywords(two, "hard, soft", 60)} == {"hard", "firm"}


def test_captions_of_one_example_are_sampled_independently():
    words = "a, b, c, d, e"
    examples = [make_texts(Keywords(), [words] * 3, position) for position in range(20)]
    assert np.mean([len(set(texts)) for texts in examples]) > 2.5


@pytest.mark.parametrize("number", [1, 30, 62])
def test_a_caption_may_have_up_to_62_keywords(number):
    words = [f"w{n}" for n in range(number)]
    sizes = [len(w) for w in sample_keywords(Keywords(shuffle=False), ", ".join(words), 60)]
    assert min(sizes) >= 1 and np.mean(sizes) == pytest.approx(number / 2, abs=0.6 + number / 20)
    with raises(tf.errors.InvalidArgumentError, 62, "data.text.keywords.subset=False"):
        make_texts(Keywords(), [", ".join(words + ["x"] * (63 - number))])


def test_eval_subset_samples_subsets_that_depend_on_the_seed():
    def texts(**options):
        return [sample_keywords(Keywords(**options), "a, b, c, d", 40, train=False)]

    assert texts(eval_subset=True) == texts(eval_subset=True, shuffle=True, synonyms="tactile")
    assert texts(eval_subset=True) != texts(eval_subset=True, seed=1)
    assert texts(seed=1) == texts() == [[("a", "b", "c", "d")] * 40]
    assert all(list(words) == sorted(words) for words in texts(eval_subset=True)[0])


# With the data loader.


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    texts = ["red, blue, circle.", " ,.", "square, moves,"]
    payload = lambda n: schema.encode(toy.example(n, captions=[texts[n % 3]]))  # noqa: E731
    built = toy.build(tmp_path_factory.mktemp("toy"), 9, payload=payload)
    vocabulary.write_vocabulary(str(built), extra_texts=["and"])
    return built


def section(directory, **options):
    text = dict(max_tokens=4, candidates=1, keywords=options)
    return dict(train=directory, text=text)


def batches(directory, first=0, number=1, hosts=(0, 1), **options):
    data = loader.make_train_data(
        section(directory, **options),
        batch_size=6,
        seed=5,
        process_index=hosts[0],
        process_count=hosts[1],
    )
    return list(itertools.islice(data.iterate(first), number))


def test_captions_without_keywords_are_masked(directory):
    (batch,) = batches(directory, first=0)
    empty = batch["example_id"] % 3 == 1
    assert np.array_equal(batch["text_mask"][:, 0], 1.0 - empty)
    assert not batch["text"][empty].any() and batch["text"][~empty].any(axis=(1, 2)).all()


def test_batches_are_a_function_of_seed_and_step_on_any_number_of_hosts(directory):
    whole = batches(directory, number=6)
    assert all(toy.same(a, b) for a, b in zip(whole[4:], batches(directory, 4, 2), strict=True))
    parts = [batches(directory, number=6, hosts=(p, 2)) for p in range(2)]
    for batch, *shards in zip(whole, *parts, strict=True):
        assert toy.same(batch, {k: np.concatenate([s[k] for s in shards]) for k in batch})
    others = batches(directory, number=6, seed=1)
    assert any(not np.array_equal(a["text"], b["text"]) for a, b in zip(whole, others, strict=True))


def test_evaluation_batches_have_all_keywords_in_order(directory):
    data = loader.make_eval_data(section(directory), split="train", batch_size=9)
    (batch,) = data.iterate()
    words = data.tokenizer.words
    assert batch["text"][0, 0].tolist() == [words[w] for w in ("red", "blue", "and", "circle")]
    assert batch["text_mask"][:3, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(grammar="latin"), ("data.text.keywords.grammar", "'latin'", "english, tvl")),
        (dict(keep_synonyms=-1), ("data.text.keywords.keep_synonyms", "-1", 0)),
        (dict(subst=True), ("data.text.keywords.subst", "data.text.keywords.subset", "shuffle")),
        (dict(synonyms="nowhere.json"), ("nowhere.json", "JSON", "'tactile'")),
    ],
)
def test_error_for_invalid_options(directory, options, facts):
    with raises(UserError, *facts):
        batches(directory, **options)


def test_inserted_words_must_be_in_the_vocabulary(directory, tmp_path, capsys):
    """Otherwise they would all silently become the unknown token."""
    synonyms = tmp_path / "synonyms.json"
    synonyms.write_text(json.dumps({"soft": ["fluffy", "velvety"]}))
    options = dict(synonyms=str(synonyms), prompt="This feels ")
    section = dict(train=str(directory), text=dict(keywords=options))
    missing = "feels, fluffy, soft, this, velvety"
    command = f'--keywords --synonyms {synonyms} --prompt "This feels "'
    with raises(UserError, "data.text.keywords", missing, "mmjax vocab", command):
        loader.make_train_data(section, batch_size=2, seed=0)
    copy = shutil.copytree(directory, tmp_path / "copy")
    arguments = ["--keywords", "--synonyms", str(synonyms), "--prompt", "This feels "]
    assert cli.main(["vocab", str(copy), *arguments]) == 0
    section["train"] = str(copy)
    tokenizer = loader.make_train_data(section, batch_size=2, seed=0).tokenizer
    assert set(missing.split(", ")) <= set(tokenizer.words)
    capsys.readouterr()
    assert cli.main(["vocab", str(copy), "--prompt", "This feels "]) == 2
    assert_mentions(capsys.readouterr().err, "--prompt", "--keywords")

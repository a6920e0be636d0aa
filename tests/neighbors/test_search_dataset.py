"""`mmjax neighbors`: the records that become pairs, reports and error messages."""

import io
import json
import re
import tracemalloc

import numpy as np
import PIL.Image
import pytest

from mmjax.data.pairs import pair_files
from mmjax.data.pipeline import precomputed_features
from mmjax.data.sources import registry as sources
from mmjax.data.storage import schema
from mmjax.tools import cli
from tests.data import toy_clips as toy
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions

COUNT = 40
WIDTH = 6
RNG = np.random.default_rng(3)
FEATURES = RNG.standard_normal((COUNT, WIDTH)).astype(np.float32)
FEATURES[30:35] = FEATURES[0:5]  # copies
COLORS = ("red", "green", "blue", "gray", "pink", "teal", "gold")
# Records 0 and 30, 1 and 31, … have captions that differ only in case and spaces.
CAPTIONS = [f"A {COLORS[n % 7]} thing {n % 13}" for n in range(COUNT)]
CAPTIONS[30:35] = [f" {text.upper()} " for text in CAPTIONS[0:5]]
DIRS = [f"{('old_cars', 'cats')[n % 2]}_{2015 + n // 2 % 3}_{n // 8:06}" for n in range(COUNT)]


def _jpeg(record):
    file = io.BytesIO()
    PIL.Image.new("RGB", (24, 16), (record * 5, 90, 200 - record * 4)).save(file, "JPEG")
    return file.getvalue()


def example(record):
    return schema.Example(
        frames=[_jpeg(record)],
        captions=[CAPTIONS[record]],
        labels=[record % 4],
        filename=f"{DIRS[record]}/item{record}.jpg",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "toy"
    return toy.build(directory, COUNT, payload=lambda n: schema.encode(example(n)))


@pytest.fixture
def features(tmp_path):
    directory = tmp_path / "features"
    (directory / "train").mkdir(parents=True)
    np.save(directory / "train" / "text.npy", FEATURES)
    precomputed_features.write_description(directory, dataset="toy", num_examples={"train": COUNT})
    return directory


def find(features, out, *options):
    small = ["--out", out, "--quiet", "--block", 16]  # the default block exceeds 40 records
    return cli.main(["neighbors", *map(str, [features, *small, *options])])


def read(out, data):
    return pair_files.open_pairs(
        out, source=sources.open_source(data, split="train"), split="train"
    )


def nearest(allowed):
    """Returns (index, cosine) of each record's nearest neighbor among `allowed`, bool [N, N].

    The index is -1 for a record without any allowed neighbor.
    """
    vectors = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    scores = (vectors[:, None] * vectors).sum(2)
    scores = np.where(allowed & ~np.eye(COUNT, dtype=bool), scores.round(6), -9)
    return np.where(scores.max(1) > -9, scores.argmax(1), -1), scores.max(1)


def equal(values):
    values = np.array(values)
    return values[:, None] == values


def test_nearest_neighbors_are_written_as_pairs(features, data, tmp_path, capsys):
    assert find(features, tmp_path / "pairs") == 0
    result = read(tmp_path / "pairs", data)
    expected, cosine = nearest(np.ones((COUNT, COUNT), bool))
    np.testing.assert_array_equal(result.neighbors[:, 0], expected)
    np.testing.assert_allclose(result.similarity[:, 0], cosine, atol=2e-6)
    assert (result.neighbors[30:35, 0] == np.arange(5)).all()
    made = pair_files.read_description(tmp_path / "pairs")["made"]
    assert made["modality"] == "text" and made["k"] == 1 and made["distinct"] == 35
    output = capsys.readouterr().out
    assert_line_mentions(output, tmp_path / "pairs", "40 of 40", "40 pairs")
    assert_line_mentions(output, "100%: 1.000")  # quantiles of the similarity
    assert_line_mentions(output, 40, 6, "float32", 1)
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == sorted(
        [pair_files.FILE, pair_files.NEIGHBORS, pair_files.SIMILARITY]
    )


def test_exclude_duplicates_by_caption_or_features(features, data, tmp_path, capsys):
    find(features, tmp_path / "a", "--exclude-duplicates", "--data", data)
    texts = [" ".join(text.lower().split()) for text in CAPTIONS]
    expected = nearest(~equal(texts))[0]
    np.testing.assert_array_equal(read(tmp_path / "a", data).neighbors[:, 0], expected)
    assert_line_mentions(capsys.readouterr().out, "caption", " 0 pairs", "(0%)")
    find(features, tmp_path / "b", "--exclude-duplicates", "features", "--data", data)
    copies = (FEATURES[:, None] == FEATURES).all(2)
    np.testing.assert_array_equal(read(tmp_path / "b", data).neighbors[:, 0], nearest(~copies)[0])
    find(features, tmp_path / "c", "--data", data)
    neighbors = nearest(~equal(range(COUNT)))[0]
    same = sum(texts[n] == texts[other] for n, other in enumerate(neighbors))
    assert same >= 10
    assert_line_mentions(capsys.readouterr().out, "caption", f" {same} pairs")


def test_one_long_caption_does_not_multiply_memory(tmp_path):
    texts = [f"{n % 30}" for n in range(300)]
    texts[7] = "x" * 2**20  # in an array of fixed-width strings, all captions would take 1.2 GiB
    payload = lambda n: schema.encode(schema.Example(captions=[texts[n]]))  # noqa: E731
    data = toy.build(tmp_path / "toy", 300, payload=payload)
    np.save(tmp_path / "f.npy", np.repeat(RNG.standard_normal((150, 4)), 2, 0))
    tracemalloc.start()
    try:
        options = ["--data", data, "--exclude-duplicates", "captions"]
        assert find(tmp_path / "f.npy", tmp_path / "pairs", *options) == 0
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_mutual_and_min_similarity_filter_pairs(features, data, tmp_path, capsys):
    find(features, tmp_path / "all", "--k", 3)
    every = read(tmp_path / "all", data)
    find(features, tmp_path / "some", "--k", 3, "--mutual", "--min-similarity", 0.6)
    below = int(((every.neighbors >= 0) & (every.similarity < 0.6)).sum())
    assert_line_mentions(capsys.readouterr().out, below, "--min-similarity")
    result = read(tmp_path / "some", data)
    kept = 0
    for record in range(COUNT):
        expected = [
            other
            for other, cosine in zip(every.neighbors[record], every.similarity[record], strict=True)
            if cosine >= 0.6 and record in every.neighbors[other]
        ]
        kept += len(expected)
        assert result.neighbors[record].tolist() == expected + [-1] * (3 - len(expected))
        assert (result.similarity[record][len(expected) :] == 0).all()
    assert 0 < kept < (every.neighbors >= 0).sum()


@pytest.mark.parametrize(
    "scope", ["label", "subreddit", "year", "subreddit-year", "csv", "jsonl", "parquet", "npy"]
)
def test_scope_restricts_neighbors_to_a_group(features, data, tmp_path, scope):
    parts = [directory.rsplit("_", 2) for directory in DIRS]
    authors = [None if n < 3 else f"author{n % 5}" for n in range(COUNT)]
    groups = {
        "label": [n % 4 for n in range(COUNT)],
        "subreddit": [part[0] for part in parts],
        "year": [part[1] for part in parts],
        "subreddit-year": [part[0] + part[1] for part in parts],
        "npy": [n % 3 - 9 for n in range(COUNT)],
    }.get(scope, authors)
    option = ["--scope", scope, "--data", data]
    table = tmp_path / f"table.{scope}"
    rows = [
        {"path": example(n).filename, "author": authors[n]}
        for n in reversed(range(COUNT))  # in a different order, and one is missing
        if n != 2
    ]
    if scope == "csv":
        lines = [f"{row['path']},{row['author'] or ''}" for row in rows]
        table.write_text("\n".join(["path,author", *lines]))
    elif scope == "jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    elif scope == "parquet":
        pyarrow, parquet = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    elif scope == "npy":
        np.save(table, np.array(groups))
        option = ["--groups", table]
    if scope in ("csv", "jsonl", "parquet"):
        option[1] = f"{table}:author"
    assert find(features, tmp_path / "pairs", *option) == 0
    allowed = equal(groups)
    allowed[[value is None for value in groups]] = False
    np.testing.assert_array_equal(
        read(tmp_path / "pairs", data).neighbors[:, 0], nearest(allowed)[0]
    )
    alone = pair_files.read_description(tmp_path / "pairs")["made"]["alone"]
    assert alone == sum(value is None for value in groups)


def test_plan_writes_nothing(features, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["neighbors", str(features), "--plan", "--k", "2", "--block", "16"]) == 0
    output = capsys.readouterr().out
    assert_line_mentions(output, 40, 6, "float32", 2)
    # Of 3×3 blocks of 16 records, the 6 of the upper triangle are computed.
    assert_line_mentions(output, f"{2 * 6 * 16**2 * WIDTH:.3g}", "devices", 8)
    assert sorted(tmp_path.rglob("*")) == before


def test_npy_features_are_searched_in_parts_in_bfloat16(tmp_path, data):
    np.save(tmp_path / "x.npy", FEATURES.astype(np.float16))
    options = ["--data", data, "--block", 8, "--memory", 1e-7, "--dtype", "bfloat16"]
    assert find(tmp_path / "x.npy", tmp_path / "pairs", *options) == 0
    result = read(tmp_path / "pairs", data)
    assert (result.similarity[:, 0] > nearest(np.ones((COUNT, COUNT), bool))[1] - 2e-3).all()


def test_show_and_figure_present_sampled_records(features, data, tmp_path, capsys):
    figure = tmp_path / "new" / "look.png"
    options = ["--data", data, "--show", 3, "--figure", figure, "--k", 2]
    assert find(features, tmp_path / "pairs", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    # A record is followed by its two neighbors, whose lines are indented and show the cosine.
    shown = [n for n, line in enumerate(lines[:-2]) if re.match(r" +-?\d\.\d{3} ", lines[n + 1])]
    shown = [n for n in shown if not lines[n].startswith(" ")]
    result = read(tmp_path / "pairs", data)
    assert len(shown) == 3
    for n in shown:
        record = CAPTIONS.index(lines[n].split(": ", 1)[1])
        assert_line_mentions(lines[n], record, CAPTIONS[record])
        for rank in range(2):
            other, cosine = result.neighbors[record, rank], result.similarity[record, rank]
            facts = (f" {cosine:.3f} ", int(other), f": {CAPTIONS[other]}")
            assert_line_mentions(lines[n + 1 + rank], *facts)
    with PIL.Image.open(figure) as image:
        assert image.height > image.width / 2  # three rows of three images
        colors = np.asarray(image.convert("RGB")).reshape(-1, 3)
    record = CAPTIONS.index(lines[shown[0]].split(": ", 1)[1])
    expected = np.array([record * 5, 90, 200 - record * 4])
    assert (np.abs(colors.astype(int) - expected).max(1) < 8).sum() > 1000


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--scope", "label"], ("--scope", "--data")),
        (["--exclude-duplicates"], ("--exclude-duplicates captions", "--data")),
        (["--show", "2"], ("--show", "--data")),
        (["--scope", "lable", "--data", "DATA"], ("--scope", "'lable'", "'label'", "subreddit")),
        (["--scope", "none.csv:a", "--data", "DATA"], ("none.csv",)),
        (["--groups", "none.npy"], ("--groups", "none.npy")),
        (["--groups", "g.npy", "--scope", "label", "--data", "DATA"], ("--scope", "--groups")),
        (["--modality", "image"], ("train/image.npy", "text")),
        (["--split", "test"], ("features/test", "--split")),
        (["--k", "0"], ("--k", 0, 1)),
        (["--block", "0"], ("--block", 0, 1)),
        (["--min-similarity", "1.5"], ("--min-similarity", "1.5", -1, 1)),
        (["--memory", "-1"], ("--memory", "-1.0", 0)),
        (["--data", "world:tiny"], ("--data", "world:tiny", 64, 40, "toy/train")),
    ],
)
def test_wrong_options_are_named(features, data, tmp_path, capsys, options, facts):
    options = [data if option == "DATA" else option for option in options]
    assert find(features, tmp_path / "pairs", *options) == 2
    assert_line_mentions(capsys.readouterr().err, *facts)
    assert not (tmp_path / "pairs" / pair_files.FILE).exists()


def test_wrong_features_are_named(features, data, tmp_path, capsys):
    def fails(*options, facts, path=features):
        assert find(path, tmp_path / "pairs", *options) == 2
        assert_line_mentions(capsys.readouterr().err, *facts)

    facts = (tmp_path, "features.json", "mmjax sentences", "mmjax embed", ".npy")
    fails(path=tmp_path, facts=facts)
    fails("--k", COUNT, facts=("--k", 40, 39))
    image, train = features / "train" / "image.npy", features / "train"
    np.save(image, FEATURES[:9])
    fails(facts=(train, "image, text", "--modality"))
    fails("--modality", "image", facts=(image, 9, "features.json", 40))
    np.save(image, FEATURES.reshape(COUNT, 2, 3))
    fails("--modality", "image", facts=(image, "[40, 2, 3]", "[N, D]"))
    fails("--modality", "touch", facts=(train / "touch.npy", "image, text"))
    fails("--split", "test", facts=(features / "test", "--split"))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=FEATURES)
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    for name in ("broken.npy", "empty.npy", "several.npy"):
        path = tmp_path / name
        fails(path=path, facts=(path, "array"))
        fails("--groups", path, "--modality", "text", facts=("--groups", path, "array"))
    broken = FEATURES.copy()
    broken[7, 2] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    fails(path=tmp_path / "nan.npy", facts=(f"{tmp_path}/nan.npy[7, 2]", "nan"))
    np.save(tmp_path / "one.npy", np.float32(1))
    fails(path=tmp_path / "one.npy", facts=(tmp_path / "one.npy", "[]", "[N, D]"))
    assert cli.main(["neighbors", str(features), "--modality", "text"]) == 2
    assert_mentions(capsys.readouterr().err, "--out", "--plan")


def test_tilde_in_out_is_expanded(features, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find(features, "~/pairs") == 0
    assert not (tmp_path / "~").exists() and (tmp_path / "pairs" / pair_files.FILE).exists()


def test_existing_file_at_out_is_kept(features, tmp_path, capsys):
    (tmp_path / "pairs").write_text("mine")
    assert find(features, tmp_path / "pairs") == 2
    assert_mentions(capsys.readouterr().err, "mmjax neighbors", tmp_path / "pairs")
    assert (tmp_path / "pairs").read_text() == "mine"

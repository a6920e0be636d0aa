"""`mmjax neighbours` and `mmjax pairs`: which records become pairs, and what a user is told."""

import io
import json
import tracemalloc

import numpy as np
import PIL.Image
import pytest

from mmjax.data import pairs, schema, sources, stored
from mmjax.tools import cli, neighbour_scopes
from tests.data import toy_clips as toy

COUNT = 40
WIDTH = 6
DRAW = np.random.default_rng(3)
FEATURES = DRAW.standard_normal((COUNT, WIDTH)).astype(np.float32)
FEATURES[30:35] = FEATURES[0:5]  # copies
COLOURS = ("red", "green", "blue", "grey", "pink", "teal", "gold")
# Records 0 and 30, 1 and 31 … have the same caption but for case and spaces, others of 7 colours.
CAPTIONS = [f"A {COLOURS[n % 7]} thing {n % 13}" for n in range(COUNT)]
CAPTIONS[30:35] = [f" {text.upper()} " for text in CAPTIONS[0:5]]
FOLDERS = [f"{('old_cars', 'cats')[n % 2]}_{2015 + n // 2 % 3}_{n // 8:06}" for n in range(COUNT)]


def _jpeg(number):
    file = io.BytesIO()
    PIL.Image.new("RGB", (24, 16), (number * 5, 90, 200 - number * 4)).save(file, "JPEG")
    return file.getvalue()


def example(number):
    return schema.Example(
        frames=[_jpeg(number)],
        captions=[CAPTIONS[number]],
        labels=[number % 4],
        filename=f"{FOLDERS[number]}/item{number}.jpg",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    return toy.build(folder, COUNT, payload=lambda n: schema.encode(example(n)))


@pytest.fixture
def features(tmp_path):
    folder = tmp_path / "features"
    (folder / "train").mkdir(parents=True)
    np.save(folder / "train" / "text.npy", FEATURES)
    stored.write_description(folder, dataset="toy", num_examples={"train": COUNT})
    return folder


def find(features, out, *options):
    small = ["--out", out, "--quiet", "--block", 16]  # the usual size is for more than 40 records
    return cli.main(["neighbours", *map(str, [features, *small, *options])])


def read(out, data):
    return pairs.open_pairs(out, source=sources.open_source(data, split="train"), split="train")


def nearest(allowed):
    """(neighbour, cosine) of each record among those allowed, bool [N, N]; -1: none."""
    vectors = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    scores = (vectors[:, None] * vectors).sum(2)
    scores = np.where(allowed & ~np.eye(COUNT, dtype=bool), scores.round(6), -9)
    return np.where(scores.max(1) > -9, scores.argmax(1), -1), scores.max(1)


def equal(values):
    values = np.array(values)
    return values[:, None] == values


def test_pairs_that_training_takes(features, data, tmp_path, capsys):
    assert find(features, tmp_path / "pairs") == 0
    found = read(tmp_path / "pairs", data)
    want, cosine = nearest(np.ones((COUNT, COUNT), bool))
    np.testing.assert_array_equal(found.neighbours[:, 0], want)
    np.testing.assert_allclose(found.similarity[:, 0], cosine, atol=2e-6)
    assert (found.neighbours[30:35, 0] == np.arange(5)).all()
    made = pairs.read_description(tmp_path / "pairs")["made"]
    assert made["modality"] == "text" and made["k"] == 1 and made["distinct"] == 35
    told = capsys.readouterr().out
    assert "40 of 40 records have a neighbour, 40 pairs" in told and "100 %: 1.000" in told
    assert "40 rows of 6 (float32), the nearest 1 of each" in told
    assert sorted(path.name for path in (tmp_path / "pairs").iterdir()) == sorted(
        [pairs.FILE, pairs.NEIGHBOURS, pairs.SIMILARITY]
    )


def test_duplicates(features, data, tmp_path, capsys):
    find(features, tmp_path / "a", "--exclude-duplicates", "--data", data)
    texts = [" ".join(text.lower().split()) for text in CAPTIONS]
    want = nearest(~equal(texts))[0]
    np.testing.assert_array_equal(read(tmp_path / "a", data).neighbours[:, 0], want)
    assert "same caption: 0 pairs" in capsys.readouterr().out
    find(features, tmp_path / "b", "--exclude-duplicates", "features", "--data", data)
    copies = (FEATURES[:, None] == FEATURES).all(2)
    np.testing.assert_array_equal(read(tmp_path / "b", data).neighbours[:, 0], nearest(~copies)[0])
    find(features, tmp_path / "c", "--data", data)
    same = int(
        np.sum(
            [texts[n] == texts[other] for n, other in enumerate(nearest(~equal(range(COUNT)))[0])]
        )
    )
    assert same >= 10 and f"same caption: {same} pairs" in capsys.readouterr().out


def test_long_captions_cost_no_memory(tmp_path):
    texts = [f"{n % 30}" for n in range(300)]
    texts[7] = "x" * 2**20  # as an array of fixed width, all captions would take 1.2 GiB
    payload = lambda n: schema.encode(schema.Example(captions=[texts[n]]))  # noqa: E731
    data = toy.build(tmp_path / "toy", 300, payload=payload)
    np.save(tmp_path / "f.npy", np.repeat(DRAW.standard_normal((150, 4)), 2, 0))
    tracemalloc.start()
    try:
        options = ["--data", data, "--exclude-duplicates", "captions"]
        assert find(tmp_path / "f.npy", tmp_path / "pairs", *options) == 0
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_mutual_and_least_similarity(features, data, tmp_path, capsys):
    find(features, tmp_path / "all", "--k", 3)
    every = read(tmp_path / "all", data)
    find(features, tmp_path / "some", "--k", 3, "--mutual", "--min-similarity", 0.6)
    told = capsys.readouterr().out
    assert "--min-similarity" in told
    found = read(tmp_path / "some", data)
    kept = 0
    for record in range(COUNT):
        want = [
            other
            for other, cosine in zip(
                every.neighbours[record], every.similarity[record], strict=True
            )
            if cosine >= 0.6 and record in every.neighbours[other]
        ]
        kept += len(want)
        assert found.neighbours[record].tolist() == want + [-1] * (3 - len(want))
        assert (found.similarity[record][len(want) :] == 0).all()
    assert 0 < kept < (every.neighbours >= 0).sum()


@pytest.mark.parametrize(
    "scope", ["label", "subreddit", "year", "subreddit-year", "csv", "jsonl", "parquet", "npy"]
)
def test_scopes(features, data, tmp_path, scope):
    parts = [folder.rsplit("_", 2) for folder in FOLDERS]
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
        for n in reversed(range(COUNT))  # in another order, and not all
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
        read(tmp_path / "pairs", data).neighbours[:, 0], nearest(allowed)[0]
    )
    alone = pairs.read_description(tmp_path / "pairs")["made"]["alone"]
    assert alone == sum(value is None for value in groups)


def test_subreddits_with_underscores():
    found = neighbour_scopes.groups_of(
        "subreddit", None, ["a/old_cars_2017_1/x.jpg", "old_cars_2018_2/y.jpg", "old_2017_1/z.jpg"]
    )
    assert found[0] == found[1] != found[2]


def test_plan_writes_nothing(features, tmp_path, capsys):
    assert cli.main(["neighbours", str(features), "--plan", "--k", "2", "--block", "16"]) == 0
    told = capsys.readouterr().out
    assert "the nearest 2 of each" in told and "floating point operations" in told
    assert not (tmp_path / "pairs").exists()


def test_a_file_of_features_and_a_search_in_parts(tmp_path, data):
    np.save(tmp_path / "x.npy", FEATURES.astype(np.float16))
    options = ["--data", data, "--block", 8, "--memory", 1e-7, "--dtype", "bfloat16"]
    assert find(tmp_path / "x.npy", tmp_path / "pairs", *options) == 0
    found = read(tmp_path / "pairs", data)
    assert (found.similarity[:, 0] > nearest(np.ones((COUNT, COUNT), bool))[1] - 2e-3).all()


def test_examples_to_look_at(features, data, tmp_path, capsys):
    picture = tmp_path / "new" / "look.png"
    options = ["--data", data, "--show", 3, "--figure", picture, "--k", 2]
    assert find(features, tmp_path / "pairs", *options) == 0
    told = capsys.readouterr().out.splitlines()
    shown = [n for n, line in enumerate(told) if line.startswith("record ")]
    found = read(tmp_path / "pairs", data)
    assert len(shown) == 3
    for line in shown:
        record = int(told[line].split()[1].rstrip(":"))
        assert told[line] == f"record {record}: {CAPTIONS[record]}"
        other, cosine = found.neighbours[record, 0], found.similarity[record, 0]
        assert told[line + 1] == f"  {cosine:.3f}  record {other}: {CAPTIONS[other]}"
    with PIL.Image.open(picture) as image:
        assert image.height > image.width / 2  # three rows of three pictures
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    record = int(told[shown[0]].split()[1].rstrip(":"))
    expected = np.array([record * 5, 90, 200 - record * 4])
    assert (np.abs(colours.astype(int) - expected).max(1) < 8).sum() > 1000


def test_lists_there_and_back(features, data, tmp_path, capsys):
    find(features, tmp_path / "pairs", "--k", 2)
    path, out = tmp_path / "list.json", tmp_path / "again"
    assert cli.main(["pairs", str(tmp_path / "pairs"), "--data", data, "--out", str(path)]) == 0
    entries = json.loads(path.read_text())
    found = read(tmp_path / "pairs", data)
    other = found.neighbours[7, 0]
    assert [[FOLDERS[7], "item7"], [FOLDERS[other], f"item{other}"]] in [e[:2] for e in entries]
    assert len(entries) == 2 * COUNT
    entries.append([["elsewhere", "1"], [FOLDERS[0], "item0"], 0.99])
    path.write_text(json.dumps(entries))
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(out)]) == 0
    assert "Of 81 entries, 1 name a record that toy/train has not" in capsys.readouterr().out
    again = read(out, data)
    np.testing.assert_allclose(again.similarity, found.similarity, atol=1e-6)
    assert (np.sort(again.neighbours, 1) == np.sort(found.neighbours, 1)).mean() > 0.95  # ties


def test_thresholds_of_lists(data, tmp_path):
    def entry(one, other, *values):
        return [[FOLDERS[one], f"item{one}"], [FOLDERS[other], f"item{other}"], *values]

    path, out = tmp_path / "list.json", tmp_path / "pairs"
    listed = [entry(0, 1, 0.9), entry(1, 2, 0.4), entry(2, 3, 0.8, 0.5), entry(3, 0, 0.7, 1.5)]
    path.write_text(json.dumps(listed))
    options = ["--data", data, "--out", str(out), "--min-similarity", "0.5", "--min-ratio", "0.9"]
    assert cli.main(["pairs", str(path), *options]) == 0
    assert read(out, data).neighbours[:5, 0].tolist() == [1, -1, -1, 0, -1]
    assert pairs.read_description(out)["made"]["below"] == 2


def test_a_pair_that_a_list_has_twice_is_one_neighbour(data, tmp_path):
    path, out = tmp_path / "list.json", tmp_path / "pairs"
    names = [[folder, f"item{number}"] for number, folder in enumerate(FOLDERS)]
    listed = [(0, 1, 0.5), (0, 2, 0.8), (0, 1, 0.9), (5, 6, 0.7)]
    path.write_text(json.dumps([[names[a], names[b], value] for a, b, value in listed]))
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(out)]) == 0
    found = read(out, data)
    assert found.neighbours[[0, 5]].tolist() == [[1, 2], [6, -1]]
    np.testing.assert_allclose(found.similarity[[0, 5]], [[0.9, 0.8], [0.7, 0.0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scope", "label"], "--scope needs --data"),
        (["--exclude-duplicates"], "--exclude-duplicates captions needs --data"),
        (["--show", "2"], "--show needs --data"),
        (["--scope", "lable", "--data", "DATA"], "Unknown --scope 'lable'. Did you mean 'label'?"),
        (["--scope", "none.csv:a", "--data", "DATA"], "There is no table none.csv"),
        (["--groups", "none.npy"], "--groups none.npy cannot be read"),
        (["--groups", "g.npy", "--scope", "label", "--data", "DATA"], "give one"),
        (["--modality", "image"], "There is no"),
        (["--split", "test"], "has no features"),
        (["--k", "0"], "--k 0 must be at least 1"),
        (["--block", "0"], "--block 0 must be at least 1"),
        (["--min-similarity", "1.5"], "--min-similarity 1.5 is a cosine"),
        (["--memory", "-1"], "--memory -1.0 must be above 0"),
        (["--data", "world:tiny"], "but the features are 40 of toy/train"),
    ],
)
def test_wrong_options(features, data, tmp_path, capsys, options, message):
    options = [data if option == "DATA" else option for option in options]
    assert find(features, tmp_path / "pairs", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pairs" / pairs.FILE).exists()


def test_wrong_features(features, data, tmp_path, capsys):
    def says(message, *options, where=features):
        assert find(where, tmp_path / "pairs", *options) == 2
        assert message in capsys.readouterr().err

    says("is no folder of features", where=tmp_path)
    says("--k 40: of 40 records each has 39 others at most", "--k", COUNT)
    np.save(features / "train" / "image.npy", FEATURES[:9])
    says("has features of image, text: say --modality NAME")
    says("has 9 rows, but features.json says 40", "--modality", "image")
    np.save(features / "train" / "image.npy", FEATURES.reshape(COUNT, 2, 3))
    says("has the shape [40, 2, 3]; expected a row for each record", "--modality", "image")
    says("train/touch.npy. That split has features of image, text", "--modality", "touch")
    says("has no features: name another --split", "--split", "test")
    (tmp_path / "broken.npy").write_bytes(b"no array")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=FEATURES)
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    for name in ("broken.npy", "empty.npy", "several.npy"):
        says("cannot be read as an array", where=tmp_path / name)
        says("cannot be read as an array", "--groups", tmp_path / name, "--modality", "text")
    np.save(tmp_path / "one.npy", np.float32(1))
    says("has the shape []", where=tmp_path / "one.npy")
    assert cli.main(["neighbours", str(features), "--modality", "text"]) == 2
    assert "Give --out PAIRS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "is no list of pairs"),
        ('[[["a", "1"], ["b", "2"]]]', "entry 0 is not"),
        ('[[["a", "1"], ["b", "2"], "near"]]', "entry 0 is not"),
        ('[[["a", "1"], "b", 0.5]]', "entry 0 is not"),
        ('[[["a", "1"], ["b", "2"], 0.5, 1, 1]]', "entry 0 is not"),
    ],
)
def test_wrong_lists(data, tmp_path, capsys, content, message):
    path = tmp_path / "list.json"
    path.write_text(content)
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_list_of_other_pictures_writes_nothing(data, tmp_path, capsys):
    path, out = tmp_path / "list.json", tmp_path / "pairs"
    path.write_text(json.dumps([[["elsewhere", "1"], [FOLDERS[0], "item0"], 0.9]]))
    assert cli.main(["pairs", str(path), "--data", data, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert "fits no record of toy/train" in told and f"first is {FOLDERS[0]}/item0" in told
    assert not out.exists()


def test_names_that_occur_twice(tmp_path, capsys):
    def twice(number):
        return schema.encode(schema.Example(captions=["x"], filename=f"{number}/d/same.jpg"))

    data = toy.build(tmp_path / "toy", 2, payload=twice)
    (tmp_path / "list.json").write_text("[]")
    options = ["--data", data, "--out", str(tmp_path / "out")]
    assert cli.main(["pairs", str(tmp_path / "list.json"), *options]) == 2
    assert "Two records are called d/same" in capsys.readouterr().err


def test_home(features, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find(features, "~/pairs") == 0
    assert not (tmp_path / "~").exists() and (tmp_path / "pairs" / pairs.FILE).exists()


def test_a_file_in_the_way_of_the_folder(features, tmp_path, capsys):
    (tmp_path / "pairs").write_text("mine")
    assert find(features, tmp_path / "pairs") == 2
    assert "mmjax neighbours: " in capsys.readouterr().err
    assert (tmp_path / "pairs").read_text() == "mine"

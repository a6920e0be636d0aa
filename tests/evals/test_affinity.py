import types

import numpy as np
import pytest
from PIL import Image

from mmjax.errors import UserError
from mmjax.evals import affinity_figure
from tests.evals.words import TouchTask, Words


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def touch(bench):
    b = bench({})
    b.task, b.tokenizer = TouchTask(), Words()
    b.data_cfg = dict(corrupt="fail", touch={}, image={}, text=dict(max_words=8), label=None)
    rng = np.random.default_rng(0)
    texts = [["soft, wet.", "hard.", "dry, and cold.", "black ice."][i % 4] for i in range(23)]
    base = rng.normal(size=(23, 1, 6))
    b.splits["test"] = {
        "touch": (base + 0.5 * rng.normal(size=(23, 1, 6))).astype(np.float32),
        "image": (base + 0.5 * rng.normal(size=(23, 1, 6))).astype(np.float32),
        "text": b.tokenizer.encode(texts)[:, None],
        "touch_mask": (np.arange(23) != 5).astype(np.float32),
        "text_mask": np.ones((23, 1), np.float32),
    }
    b.texts = texts
    return b


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, and it is drawn all the same."""
    calls, draw = [], affinity_figure.draw

    def record(cosines, path, **options):
        calls.append(types.SimpleNamespace(cosines=cosines, path=path, **options))
        draw(cosines, path, **options)

    monkeypatch.setattr(affinity_figure, "draw", record)
    return calls


def test_numbers_are_of_all_examples_and_the_figure_of_some(touch, drawn, tmp_path):
    cfg = dict(type="affinity", num_examples=9, batch_size=8, threshold=0.636)
    found = touch.run(folder=tmp_path, near=cfg)
    keep = np.arange(23) != 5
    touches, images = (unit(touch.splits["test"][m][keep, 0]) for m in ("touch", "image"))
    matrix = touches @ images.T
    assert found["near/diagonal"] == pytest.approx(np.diag(matrix).mean(), rel=1e-5)
    others = matrix[~np.eye(22, dtype=bool)]
    assert found["near/off_diagonal"] == pytest.approx(others.mean(), rel=1e-4)
    (figure,) = drawn
    assert figure.path == tmp_path / "figures" / "near-00000010.png"
    with Image.open(figure.path) as image:
        assert min(image.size) > 900
    # Rows are pictures, columns touches, of the same examples in the same order.
    colours = np.array([picture[0, 0] for picture in figure.columns.pictures])
    all_colours = np.clip(np.round(40 * touch.splits["test"]["touch"][:, 0, :3] + 128), 0, 255)
    chosen = [int(np.flatnonzero((all_colours == colour).all(1))[0]) for colour in colours]
    assert len(set(chosen)) == 9 and chosen == sorted(chosen) and 5 not in chosen
    places = np.searchsorted(np.flatnonzero(keep), chosen)
    np.testing.assert_allclose(figure.cosines, matrix.T[np.ix_(places, places)], atol=1e-5)
    said = [text.replace(" ", "") for text in figure.rows.captions]
    assert said == [touch.texts[i].replace(" ", "") for i in chosen]
    assert figure.columns.captions is None and figure.rows.pictures[0].dtype == np.uint8
    same = np.array([[touch.texts[i] == touch.texts[j] for j in chosen] for i in chosen])
    assert (figure.outlined >= same).all() and not figure.outlined.all()
    top1 = (figure.cosines.argmax(axis=0) == np.arange(9)).mean()
    assert f"touch → image {top1:.0%}" in figure.subtitle and "step 10" in figure.title
    assert "9 of 23 examples of fake, test" in figure.subtitle
    touch.run(folder=tmp_path, near=cfg | dict(seed=1))
    assert not np.array_equal(drawn[1].cosines, figure.cosines)


def test_text_stands_at_its_side_and_similar_captions_are_right(touch, drawn, tmp_path):
    cfg = dict(type="affinity", target="text", path=str(tmp_path), num_examples=6, threshold=0.636)
    touch.run(near=cfg)
    (figure,) = drawn
    assert figure.path.parent == tmp_path
    assert figure.rows.pictures is None and len(figure.rows.captions) == 6
    right = figure.outlined[figure.cosines.argmax(axis=0), np.arange(6)]
    assert f"touch → text {right.mean():.0%}" in figure.subtitle
    assert "which count as right" in figure.subtitle
    touch.run(near=dict(type="affinity", query="text", path=str(tmp_path)))
    np.testing.assert_array_equal(drawn[1].outlined, np.eye(10, dtype=bool))  # by default
    assert drawn[1].columns.captions and drawn[1].rows.captions is None


def test_many_examples_are_drawn_without_pictures(touch, drawn, tmp_path):
    del touch.task.predict["inputs"]  # nor are they asked for
    for name in ("touch", "image", "text", "touch_mask", "text_mask"):
        touch.splits["test"][name] = np.tile(
            touch.splits["test"][name], (2, *[1] * (touch.splits["test"][name].ndim - 1))
        )
    touch.run(near=dict(type="affinity", num_examples=40, path=str(tmp_path)))
    assert drawn[0].cosines.shape == (40, 40) and drawn[0].rows.pictures is None


def test_without_text_the_diagonal_is_outlined(touch, drawn, tmp_path):
    touch.data_cfg["text"] = None
    for name in ("text", "text_mask"):
        del touch.splits["test"][name]
    touch.run(near=dict(type="affinity", num_examples=4, path=str(tmp_path)))
    np.testing.assert_array_equal(drawn[0].outlined, np.eye(4, dtype=bool))
    assert drawn[0].rows.captions is None and "utlined" not in drawn[0].subtitle


def test_a_folder_that_cannot_be_written_costs_the_figure_alone(touch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level("WARNING", logger="absl"):
        found = touch.run(near=dict(type="affinity", path=str(tmp_path / "file")))
    assert "no figure" in caplog.text and set(found) == {"near/diagonal", "near/off_diagonal"}


@pytest.mark.parametrize("size, sides", [(1, "both"), (13, "both"), (33, "none")])
def test_figures_of_every_size(tmp_path, size, sides):
    side = affinity_figure.Side(
        "touch", [np.zeros((5, 9, 3), np.uint8)] * size, ["$a_b$ " * 30] * size
    )
    affinity_figure.draw(
        np.linspace(-1, 1, size * size).reshape(size, size),
        tmp_path / "a.png",
        rows=side,
        columns=side,
        title="a",
        outlined=np.eye(size, dtype=bool),
    )
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    black = (pixels == 0).all(axis=1).sum()  # the pictures
    assert (black > 5000) == (sides == "both")
    outline = (pixels == (255, 45, 45)).all(axis=1).sum()
    assert (outline > 100) == (sides == "both")


def test_options_that_cannot_be(touch):
    for options in (dict(query="image"), dict(num_examples=0)):
        with pytest.raises(UserError, match="must be two modalities"):
            touch.make(near=dict(type="affinity", **options))

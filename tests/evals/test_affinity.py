"""The affinity evaluator: mean cosines of all examples, and a figure of some of them."""

import types

import numpy as np
import pytest
from PIL import Image

from mmjax.errors import UserError
from mmjax.evals import affinity_figure
from tests.evals.synthetic import unit
from tests.evals.touch_task import FakeTokenizer, TouchTask
from tests.messages import assert_mentions, raises


@pytest.fixture
def touch(make_harness):
    harness = make_harness({})
    harness.task, harness.tokenizer = TouchTask(), FakeTokenizer()
    harness.data_cfg = dict(corrupt="fail", touch={}, image={}, text=dict(max_tokens=8), label=None)
    rng = np.random.default_rng(0)
    texts = [["soft, wet.", "hard.", "dry, and cold.", "black ice."][i % 4] for i in range(23)]
    base = rng.normal(size=(23, 1, 6))
    harness.splits["test"] = {
        "touch": (base + 0.5 * rng.normal(size=(23, 1, 6))).astype(np.float32),
        "image": (base + 0.5 * rng.normal(size=(23, 1, 6))).astype(np.float32),
        "text": harness.tokenizer.encode(texts)[:, None],
        "touch_mask": (np.arange(23) != 5).astype(np.float32),
        "text_mask": np.ones((23, 1), np.float32),
    }
    harness.texts = texts
    return harness


@pytest.fixture
def figures(monkeypatch):
    """Arguments of each call that draws a figure; the figure is drawn, too."""
    calls, draw = [], affinity_figure.draw

    def record(cosines, path, **options):
        calls.append(types.SimpleNamespace(cosines=cosines, path=path, **options))
        draw(cosines, path, **options)

    monkeypatch.setattr(affinity_figure, "draw", record)
    return calls


def test_metrics_use_all_examples_and_the_figure_shows_a_sample(touch, figures, tmp_path):
    cfg = dict(type="affinity", num_examples=9, batch_size=8, threshold=0.636)
    results = touch.run(directory=tmp_path, near=cfg)
    keep = np.arange(23) != 5
    touches, images = (unit(touch.splits["test"][m][keep, 0]) for m in ("touch", "image"))
    matrix = touches @ images.T
    assert results["near/diagonal"] == pytest.approx(np.diag(matrix).mean(), rel=1e-5)
    others = matrix[~np.eye(22, dtype=bool)]
    assert results["near/off_diagonal"] == pytest.approx(others.mean(), rel=1e-4)
    (figure,) = figures
    assert figure.path == tmp_path / "figures" / "near-00000010.png"
    with Image.open(figure.path) as image:
        assert min(image.size) > 900
    # Rows are images and columns touches, of the same examples in the same order.
    colors = np.array([pixels[0, 0] for pixels in figure.columns.images])
    all_colors = np.clip(np.round(40 * touch.splits["test"]["touch"][:, 0, :3] + 128), 0, 255)
    chosen = [int(np.flatnonzero((all_colors == color).all(1))[0]) for color in colors]
    assert len(set(chosen)) == 9 and chosen == sorted(chosen) and 5 not in chosen
    positions = np.searchsorted(np.flatnonzero(keep), chosen)
    np.testing.assert_allclose(figure.cosines, matrix.T[np.ix_(positions, positions)], atol=1e-5)
    shown = [text.replace(" ", "") for text in figure.rows.captions]
    assert shown == [touch.texts[i].replace(" ", "") for i in chosen]
    assert figure.columns.captions is None and figure.rows.images[0].dtype == np.uint8
    same = np.array([[touch.texts[i] == touch.texts[j] for j in chosen] for i in chosen])
    assert (figure.outlined >= same).all() and not figure.outlined.all()
    top1 = (figure.cosines.argmax(axis=0) == np.arange(9)).mean()
    assert_mentions(figure.subtitle, "touch", "image", f"{top1:.0%}", 9, 23, "fake", "test")
    assert_mentions(figure.title, "near", 10, "touch", "image")
    touch.run(directory=tmp_path, near=cfg | dict(seed=1))
    assert not np.array_equal(figures[1].cosines, figure.cosines)


def test_captions_label_the_text_axis_and_similar_captions_are_positives(touch, figures, tmp_path):
    cfg = dict(type="affinity", target="text", path=str(tmp_path), num_examples=6, threshold=0.636)
    touch.run(near=cfg)
    (figure,) = figures
    assert figure.path.parent == tmp_path
    assert figure.rows.images is None and len(figure.rows.captions) == 6
    correct = figure.outlined[figure.cosines.argmax(axis=0), np.arange(6)]
    assert_mentions(figure.subtitle, "touch", "text", f"{correct.mean():.0%}", 0.636)
    touch.run(near=dict(type="affinity", query="text", path=str(tmp_path)))
    np.testing.assert_array_equal(figures[1].outlined, np.eye(10, dtype=bool))  # the default
    assert figures[1].columns.captions and figures[1].rows.captions is None


def test_large_figures_have_no_images(touch, figures, tmp_path):
    del touch.task.predict["inputs"]  # they must not be requested either
    for name in ("touch", "image", "text", "touch_mask", "text_mask"):
        touch.splits["test"][name] = np.tile(
            touch.splits["test"][name], (2, *[1] * (touch.splits["test"][name].ndim - 1))
        )
    touch.run(near=dict(type="affinity", num_examples=40, path=str(tmp_path)))
    assert figures[0].cosines.shape == (40, 40) and figures[0].rows.images is None


def test_without_text_the_diagonal_is_outlined(touch, figures, tmp_path):
    touch.data_cfg["text"] = None
    for name in ("text", "text_mask"):
        del touch.splits["test"][name]
    cfg = dict(type="affinity", num_examples=4, path=str(tmp_path), threshold=0.636)
    touch.run(near=cfg)
    np.testing.assert_array_equal(figures[0].outlined, np.eye(4, dtype=bool))
    assert figures[0].rows.captions is None and "0.636" not in figures[0].subtitle


def test_metrics_do_not_need_a_writable_figure_directory(touch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level("WARNING", logger="absl"):
        results = touch.run(near=dict(type="affinity", path=str(tmp_path / "file")))
    assert_mentions(caplog.text, "near", tmp_path / "file" / "near-00000010.png")
    assert set(results) == {"near/diagonal", "near/off_diagonal"}
    assert results == touch.run(near=dict(type="affinity", path=str(tmp_path)))


@pytest.mark.parametrize("size, sides", [(1, "both"), (13, "both"), (33, "none")])
def test_only_small_figures_show_images_and_outlines(tmp_path, size, sides):
    side = affinity_figure.Axis(
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
    black = (pixels == 0).all(axis=1).sum()  # the images
    assert (black > 5000) == (sides == "both")
    outline = (pixels == (255, 45, 45)).all(axis=1).sum()
    assert (outline > 100) == (sides == "both")


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(query="image"), ("query", "target", "'image'")),
        (dict(num_examples=0), ("num_examples", 0, 1)),
    ],
)
def test_invalid_options_are_refused(touch, options, facts):
    with raises(UserError, "near", *facts):
        touch.make(near=dict(type="affinity", **options))

"""Features of layers: averaged over positions, without padding, and found by the report."""

import numpy as np
import pytest

from mmjax.benchmark import layers
from mmjax.benchmark.report import cached_features, table
from tests.benchmark import synthetic


class FakeTrunk:
    """An encoder with one feature map: the colors of the image."""

    size = 8

    def map_names(self):
        return ("block1",)

    def maps(self, params, extra, images):
        return {"block1": images / 255.0}

    def embedding(self, params, extra, images):
        return images.mean(axis=(2, 3))


class FakeEncoder:
    trunk, params, extra = FakeTrunk(), {}, {}


class FakeData:
    def iterate(self):
        rng = np.random.default_rng(0)
        for size in (3, 4):  # the first batch is padded
            images = rng.integers(0, 256, (4, 2, 8, 8, 3), np.uint8)
            yield {"image": images, "mask": (np.arange(4) < size).astype(np.float32)}


def test_layers_are_averaged_over_positions_and_compared(tmp_path, monkeypatch):
    from mmjax.data.pipeline import loader

    monkeypatch.setattr(layers, "open_encoder", lambda source: FakeEncoder)
    monkeypatch.setattr(loader, "make_eval_data", lambda *args, **kwargs: FakeData())
    path = layers.write(tmp_path, "mine", "RUN", end_task="Pets", examples=5)
    assert path == cached_features.layers_path(tmp_path, "mine")
    first, second = (batch["image"] for batch in FakeData().iterate())
    expected = np.concatenate([first[:3, 0], second[:2, 0]]).mean(axis=(1, 2))
    with np.load(path) as stored:
        np.testing.assert_allclose(stored["embedding"], expected, rtol=1e-5)
        np.testing.assert_allclose(stored["block1"], expected / 255, rtol=1e-5)
    built = table.build([synthetic.make()], end_tasks=synthetic.TASKS)
    found = cached_features.find(tmp_path, built)["cka_layers"]
    assert found.names == ("mine block1", "mine embedding") and found.examples == 5
    assert found.values[0, 1] == pytest.approx(1, abs=1e-4)
    path.write_bytes(b"PK damaged")
    assert cached_features.find(tmp_path, built) == {}

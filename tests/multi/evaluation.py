"""Evaluators on worlds whose examples are sharded over processes, for the workers and the test.

21 clips in batches of 8 leave one process with a batch of padding only.
"""

import jax

from mmjax import evaluate
from mmjax.data.pipeline import loader
from mmjax.errors import UserError
from mmjax.evals import make_evaluators

WORLD = "world:tiny,train=30,test=21"
DATA = dict(
    train=WORLD,
    split="train",
    video=dict(num_frames=4, size=32),
    audio=dict(num_samples=1600),
    label=dict(),
)
VIEWS = dict(video=dict(num_clips=2), audio=dict(num_clips=2))


class Averages:
    """A task whose features are mean colors of image patches and mean levels of audio segments."""

    def __init__(self):
        self.predict = {"features": self.features}

    def features(self, params, extra, batch):
        frames = batch["video"].astype("float32") / 255
        size = frames.shape[:2]
        video = frames.reshape(*size, -1, 4, 8, 4, 8, 3).mean((2, 4, 6)).reshape(*size, -1)
        audio = abs(batch["audio"]).reshape(*size, 20, -1).mean(-1)
        return {
            "video": video * params["scale"],
            "video/audio": video[..., :20] * params["scale"],
            "audio/video": audio,
        }


class Brightness:
    """A task that predicts a class for each pixel from its brightness."""

    def __init__(self):
        self.predict = {"logits": self.logits}

    def logits(self, params, extra, batch):
        gray = batch["image"].astype("float32").mean(-1, keepdims=True) / 255
        return {"logits": -params["scale"] * (gray - jax.numpy.arange(9) / 9) ** 2}


class Broken:
    """Data that fail after the first batch."""

    def __init__(self, data):
        self._data = data

    def __getattr__(self, name):
        return getattr(self._data, name)

    def iterate(self):
        yield next(self._data.iterate())
        raise UserError("The disk has failed.")


def open_data(cfg, *, split, process_index, **options):
    data = loader.make_eval_data(
        cfg, split="test" if split == "broken" else split, process_index=process_index, **options
    )
    return Broken(data) if split == "broken" and process_index == 1 else data


def results(mesh, *, broken=False):
    """Returns the metrics; `broken` adds an evaluator whose data fail on the second process."""
    common = dict(batch_size=8, data=WORLD, views=VIEWS)
    cfg = {
        "retrieval": dict(type="retrieval", query="audio", target="video", **common),
        "neighbors": dict(type="knn", feature=("video",), **common),
    }
    if broken:
        cfg = {"broken": dict(type="knn", split="broken", **common), **cfg}
    evaluators = make_evaluators(
        cfg, task=Averages(), data_cfg=DATA, mesh=mesh, make_eval_data=open_data
    )
    scenes = "world:scenes_tiny,test=21"
    evaluators += make_evaluators(
        {"pixels": dict(type="segmentation", batch_size=8)},
        task=Brightness(),
        data_cfg=dict(train=scenes, segmentation=dict(size=16)),
        mesh=mesh,
    )
    state = {"params": {"scale": jax.numpy.float32(3.0)}, "extra": {}}
    return evaluate.run_all(evaluators, state, 1)

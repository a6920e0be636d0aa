"""Evaluators on a world whose clips are shared out among processes; a worker and the test use it.

The 21 clips are no multiple of the batch of 8, so one process has a whole batch of padding.
"""

import jax

from mmjax import evaluate
from mmjax.data import loader
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
    """A task whose features are colours of parts of the picture and loudness of parts of sound."""

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


class Broken:
    """Data of which one process can read only the first batch."""

    def __init__(self, data):
        self._data = data

    def __getattr__(self, name):
        return getattr(self._data, name)

    def iterate(self):
        yield next(self._data.iterate())
        raise UserError("The disk is gone.")


def open_data(cfg, *, split, process_index, **options):
    made = loader.make_eval_data(
        cfg, split="test" if split == "broken" else split, process_index=process_index, **options
    )
    return Broken(made) if split == "broken" and process_index == 1 else made


def results(mesh, *, broken=False):
    """The metrics; `broken` adds an evaluator whose data fail on the second process."""
    common = dict(batch_size=8, data=WORLD, views=VIEWS)
    cfg = {
        "retrieval": dict(type="retrieval", query="audio", target="video", **common),
        "neighbours": dict(type="knn", feature=("video",), **common),
    }
    if broken:
        cfg = {"broken": dict(type="knn", split="broken", **common), **cfg}
    evaluators = make_evaluators(
        cfg, task=Averages(), data_cfg=DATA, mesh=mesh, make_eval_data=open_data
    )
    state = {"params": {"scale": jax.numpy.float32(3.0)}, "extra": {}}
    return evaluate.run_all(evaluators, state, 1)

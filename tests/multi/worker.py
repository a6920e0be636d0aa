"""One process of a job: trains a fake task on its share of each batch, with save and restore.

    python worker.py DIRECTORY 'JSON of {name: {mesh, preset}}'

Writes its results to DIRECTORY/<name>/process-<i>.json and the metrics of evaluators to
DIRECTORY/evaluation-<i>.json.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from mmjax import distributed, sharding
from mmjax.checkpoints.manager import Checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import fakes  # noqa: E402

from tests.multi import evaluation  # noqa: E402

STEPS, SAVED_AT = 4, 2


def train(directory, options):
    index, count = jax.process_index(), jax.process_count()
    mesh = sharding.make_mesh(**options["mesh"])
    trainer = fakes.Trainer(fakes.Contrast(), mesh, ema_decay=0.9, preset=options["preset"])
    saved = Checkpoints(directory)
    state, losses = trainer.init(), []
    for step in range(STEPS):
        if step == SAVED_AT:
            saved.save(step, state, {"step": step})
            saved.wait()
            state, _, restored = saved.restore_newest(trainer.abstract)
            assert restored == step
        batch = fakes.batch_of(step)
        size = len(batch["label"]) // count
        share = slice(index * size, (index + 1) * size)
        state, metrics = trainer.step(state, {name: value[share] for name, value in batch.items()})
        losses.append(metrics["loss"])
    saved.close()
    report = {
        "losses": losses,
        "processes": count,
        "devices": [jax.local_device_count(), jax.device_count()],
        "primary": distributed.is_primary(),
        "any": [
            distributed.any_process(False),
            distributed.any_process(index == count - 1),
            distributed.any_process(True),
        ],
        "mean": float(np.asarray(state["extra"]["mean"].addressable_data(0)).sum()),
    }
    distributed.barrier("end")
    (directory / f"process-{index}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    distributed.initialize()
    for name, options in json.loads(sys.argv[2]).items():
        train(pathlib.Path(sys.argv[1], name), options)
    results = evaluation.results(sharding.make_mesh(), broken=True)
    path = pathlib.Path(sys.argv[1], f"evaluation-{jax.process_index()}.json")
    path.write_text(json.dumps(results))

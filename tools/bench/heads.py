"""Heads of `--task=probe` on a feature table: all at once, and one after the other.

The features are random, float16 [--examples, --dim]. Also measured, one head after the other:
scikit-learn's SGD, and Adam in PyTorch if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmjax.tools.bench.common import Setup, call_for, medians

if TYPE_CHECKING:  # imports JAX
    import numpy as np

    from mmjax.config import Config

_BATCH_SIZE = 32
_UPDATES = 64  # per step, as `mmjax.benchmark.prepare` chooses


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments of the benchmark."""
    group.add_argument(
        "--heads", type=int, default=16, metavar="N", help="number of heads (default: %(default)s)"
    )


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the time of one update of all heads, batches of 32 examples included.

    The ratios are those of time, and of CPU time of all threads.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    features = rng.normal(size=(args.examples, args.dim)).astype(np.float16)
    labels = rng.integers(0, args.classes, args.examples).astype(np.int32)
    with tempfile.TemporaryDirectory() as directory:
        write_table(directory, features, labels, args.classes)
        calls = {
            "together": (_ours(cfg, directory, args.heads), args.heads * _UPDATES),
            "alone": (_ours(cfg, directory, 1), _UPDATES),
            "scikit_learn": (
                _scikit_learn(features, labels, args.classes),
                len(labels) / _BATCH_SIZE,
            ),
        }
        if importlib.util.find_spec("torch"):
            calls["torch"] = (_torch(features, labels, args.classes), 1)
        for call, _ in calls.values():
            call()  # compiles
        result = medians([_measure(calls, args) for _ in range(args.repeats)])
    for name in list(calls)[1:]:
        for clock in ("seconds", "cpu_seconds"):
            ratio = result[f"{name}_{clock}"] / result[f"together_{clock}"]
            result[f"{name}_over_together_{clock}"] = ratio
    return {"shape": [args.examples, args.dim, args.classes], "heads": args.heads, **result}


def write_table(directory: str, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Writes a feature table with one split, `train`."""
    import numpy as np

    from mmjax.data.pipeline import feature_table, precomputed_features

    os.makedirs(os.path.join(directory, "train"))
    arrays = {feature_table.FEATURES: features[:, None], feature_table.LABEL: labels}
    for name, array in arrays.items():
        np.save(precomputed_features.features_path(directory, "train", name), array)
    precomputed_features.write_description(
        directory, dataset="random", num_examples={"train": len(labels)}, num_classes=classes
    )


def _measure(
    calls: dict[str, tuple[Callable[[], Any], float]], args: argparse.Namespace
) -> dict[str, float]:
    """Returns the seconds of one update of --heads heads, that is, of 32 examples each."""
    result = {}
    for name, (call, updates) in calls.items():
        count, seconds, cpu = call_for(args.seconds, call)
        scale = args.heads / (count * updates)
        result[f"{name}_seconds"], result[f"{name}_cpu_seconds"] = seconds * scale, cpu * scale
    return result


def _ours(cfg: Config, directory: str, count: int) -> Callable[[], Any]:
    """Returns a function that makes one step of `count` heads."""
    import jax

    from mmjax import config, sharding

    groups = {
        f"head{index}": dict(
            pattern=f"^heads/head{index}/",
            name="adam",
            schedule=dict(name="constant", base=1e-4 * (index + 1)),
        )
        for index in range(count)
    }
    task = dict(name="CIFAR-10", seeds=1, examples_per_update=_BATCH_SIZE, drop_last=False)
    section = {"train": f"features:{directory}", "split": "train", "end_task": task}
    setup = Setup(
        config.Config(
            task="probe",
            mesh=cfg.mesh,
            data=section,
            model={"head": {"name": "linear"}, "trunk": None},
            optimizer={"groups": groups},
            batch_size=_BATCH_SIZE * _UPDATES,
            updates_per_step=_UPDATES,
        )
    )
    batches = setup.data.iterate(0)

    def step() -> None:
        with jax.set_mesh(setup.mesh):
            batch = sharding.make_global(next(batches), setup.mesh)
            setup.state, metrics = setup.program.step(setup.state, batch)
        jax.block_until_ready(metrics)

    return step


def _batches(features: np.ndarray, labels: np.ndarray) -> Any:
    """Yields random batches (features float32 [B, D], labels) without end."""
    import numpy as np

    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(labels))
        for start in range(0, len(order) - _BATCH_SIZE + 1, _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            yield features[rows].astype(np.float32), labels[rows]


def _scikit_learn(features: np.ndarray, labels: np.ndarray, classes: int) -> Callable[[], Any]:
    """Returns a function that makes one pass of SGD over all examples."""
    import numpy as np
    from sklearn.linear_model import SGDClassifier

    model = SGDClassifier(loss="log_loss", alpha=0.0, learning_rate="constant", eta0=1e-4)
    x = features.astype(np.float32)
    return lambda: model.partial_fit(x, labels, classes=np.arange(classes))


def _torch(features: np.ndarray, labels: np.ndarray, classes: int) -> Callable[[], Any]:
    """Returns a function that makes one update of Adam."""
    import torch

    model = torch.nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batches = _batches(features, labels)

    def update() -> None:
        x, y = next(batches)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(x)), torch.from_numpy(y).long()
        )
        loss.backward()
        optimizer.step()

    return update

"""Fake task and evaluation data with known outputs, following the contracts of mmjax."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from mmjax import evals, sharding


class FakeEvalData:
    """Yields arrays [N, …] as padded, masked batches, in an order other than that of the ids."""

    def __init__(self, arrays, *, batch_size, info, corrupt=()):
        self.arrays, self.batch_size, self.info = arrays, batch_size, info
        self.corrupt = list(corrupt)
        self.num_examples = len(next(iter(arrays.values())))
        self.tokenizer = None
        self.iterations = 0

    @property
    def spec(self):
        batch = next(self.iterate())
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}

    def iterate(self):
        self.iterations += 1
        order = np.random.default_rng(1).permutation(self.num_examples)
        for start in range(0, self.num_examples, self.batch_size):
            ids = order[start : start + self.batch_size]
            padding = self.batch_size - len(ids)
            batch = {
                name: np.concatenate(
                    [value[ids], np.zeros((padding, *value.shape[1:]), value.dtype)]
                )
                for name, value in self.arrays.items()
            }
            batch["example_id"] = np.pad(ids, (0, padding)).astype(np.int32)
            valid = 1 - np.isin(ids, self.corrupt).astype(np.float32)
            batch["mask"] = np.pad(valid, (0, padding))
            yield batch


class FakeTask:
    """Returns the inputs times `params['scale']`."""

    predict = {
        "features": lambda params, extra, batch: {
            name: batch[name] * params["scale"]
            for name in batch
            if name not in ("mask", "label", "example_id") and not name.endswith("_mask")
        },
        "logits": lambda params, extra, batch: {"logits": batch["video"].mean(1) * params["scale"]},
    }


class EvalHarness:
    """Makes and runs evaluators over `{split: arrays}`.

    Attributes:
      opened: One entry per dataset that the evaluators requested.
      requested: Data config of the last request.
    """

    def __init__(self, splits, *, corrupt=(), policy="fail", **info):
        self.splits, self.opened, self.corrupt = splits, [], corrupt
        self.info = types.SimpleNamespace(
            **{"name": "fake", "num_classes": 0, "class_names": [], **info}
        )
        self.task = FakeTask()
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self.state = {"params": {"scale": np.float32(2.0)}, "extra": {}}
        self.data_cfg = dict(
            corrupt=policy, video=dict(num_frames=4), text=dict(max_tokens=4), label=None
        )
        self.tokenizer = None
        self.task_cfg = {"model": {"name": "fake"}}

    def make_eval_data(
        self, data_cfg, *, data, split, batch_size, max_examples, process_index, process_count
    ):
        self.requested = data_cfg
        arrays = self.splits[split]
        if max_examples:
            arrays = {name: value[:max_examples] for name, value in arrays.items()}
        dataset = FakeEvalData(arrays, batch_size=batch_size, info=self.info, corrupt=self.corrupt)
        dataset.tokenizer = self.tokenizer
        self.opened.append(
            types.SimpleNamespace(cfg=data_cfg, data=data, split=split, dataset=dataset)
        )
        return dataset

    def make(self, mesh=None, directory=".", **cfg):
        return evals.make_evaluators(
            cfg,
            task=self.task,
            data_cfg=self.data_cfg,
            mesh=mesh or self.mesh,
            directory=directory,
            make_eval_data=self.make_eval_data,
            task_cfg=self.task_cfg,
        )

    def run(self, directory=".", **cfg):
        results = {}
        for evaluator in self.make(directory=directory, **cfg):
            results |= evaluator.run(self.state, 10)
        return results


@pytest.fixture
def make_harness():
    """Returns the class of the harness: `make_harness(splits, **options)`."""
    return EvalHarness


@pytest.fixture
def clips():
    """37 clips with 3 windows and 2 captions each."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(37, 1, 8))
    return {
        "video/text": (base + rng.normal(size=(37, 3, 8))).astype(np.float32),
        "text/video": (base + rng.normal(size=(37, 2, 8))).astype(np.float32),
        "text_mask": np.ones((37, 2), np.float32),
    }


@pytest.fixture(scope="session")
def correlated_features():
    """(x, labels) of 500 examples of 5 classes, with correlated features."""
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=500)
    x = rng.normal(size=(500, 12)) + rng.normal(size=(5, 12))[labels]
    return (x * np.geomspace(1, 0.05, 12) @ rng.normal(size=(12, 12))).astype(np.float32), labels

"""Features: outputs of a model for all examples of a split, computed once for all evaluators."""

from __future__ import annotations

import collections
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import distributed, sharding
from mmjax import step as step_lib
from mmjax.checkpoints.checksums import fingerprint
from mmjax.errors import UserError, check_choice, unknown
from mmjax.evals.features import cache as feature_cache
from mmjax.evals.features import views as views_lib
from mmjax.evals.features.arrays import Features, Request

_MASK_SUFFIX = "_mask"


def compile_predict(
    predict: Callable[..., dict[str, jax.Array]],
    mesh: jax.sharding.Mesh,
    names: Sequence[str] | None = None,
) -> Callable[..., tuple[dict, dict]]:
    """Returns the jitted `(params, extra, batch) -> (outputs, fields)`, replicated.

    Args:
      predict: A predict function of a task.
      mesh: Devices that share a batch.
      names: Outputs to compute; None for all.
    """

    def function(params, extra, batch):
        outputs = predict(params, extra, batch)
        fields = {
            name: value
            for name, value in batch.items()
            if name in ("mask", "label", "example_id") or name.endswith(_MASK_SUFFIX)
        }
        chosen = sorted(outputs) if names is None else [n for n in names if n in outputs]
        return {name: outputs[name].astype("float32") for name in chosen}, fields

    return jax.jit(function, out_shardings=sharding.replicated(mesh))


class FeatureStore:
    """Computes features and keeps those of the latest state, so that evaluators share them.

    Args:
      task: Its `predict` functions are compiled once for all evaluators and steps.
      data_cfg: The `data` section of the config.
      mesh: Devices that share a batch.
      make_eval_data: Replaces `mmjax.data.pipeline.loader.make_eval_data`.
      task_cfg: Config sections that the task was made from; required for features on disk.

    Attributes:
      task, data_cfg: The arguments.
    """

    def __init__(
        self,
        *,
        task: Any,
        data_cfg: Mapping[str, Any],
        mesh: jax.sharding.Mesh,
        make_eval_data: Callable[..., Any] | None = None,
        task_cfg: Mapping[str, Any] | None = None,
    ):
        self.task = task
        self.data_cfg = dict(data_cfg)
        self._mesh = mesh
        self._make_eval_data = make_eval_data
        self._task_cfg = task_cfg
        self._on_disk: set[Request] = set()
        self._with_nonfinite: set[Request] = set()
        self._weights: str | None = None  # fingerprint of the state
        self._names: dict[Request, set[str]] = collections.defaultdict(set)
        self._data: dict[Request, Any] = {}
        self._compiled: dict[str, Callable] = {}
        self._applied: dict[tuple[str, str], Callable] = {}
        self._outputs: dict[tuple, set[str]] = {}  # by predict function and batch signature
        self._state: Any = None
        self._features: dict[Request, Features] = {}
        self._train_sources: list[tuple[str, Any]] | None = None

    def request(
        self,
        names: Sequence[str],
        *,
        predict: str = "features",
        data: str = "",
        split: str,
        batch_size: int,
        views: Mapping[str, Any] | None = None,
        limit: int = 0,
        cache: bool = False,
        nonfinite: bool = False,
        section: str = "",
    ) -> Request:
        """Returns a request for `get`. Equal requests are computed together.

        Args:
          names: Outputs of the predict function that are needed.
          predict: Name of the task's predict function.
          data: Dataset, as in `config.data.train`; '' for the (first) training dataset.
          split: Split of the dataset.
          batch_size: Number of examples in a batch, over all devices.
          views: {section of the data config: {key: value}} that differ from training, for example
            `dict(video=dict(num_clips=4), text=None)`; see `mmjax.evals.features.views.merge`.
          limit: Number of leading examples to use; 0 for all.
          cache: Whether to keep the features on disk and look for them there; see
            `mmjax.evals.features.cache`.
          nonfinite: Whether outputs may contain NaN and infinity, instead of raising an error.
          section: Config key of the evaluator's section, for error messages.

        Raises:
          UserError: An argument is invalid.
        """
        prefix = f"config.{section}." if section else ""
        where = f" for config.{section}" if section else ""
        check_choice(f"predict function of this task{where}:", predict, self.task.predict)
        self.check_batch_size(batch_size, key=f"{prefix}batch_size")
        if limit < 0:
            raise UserError(f"{prefix}limit must be at least 0 (0: all examples); got {limit}.")
        if cache and self._task_cfg is None:
            raise UserError(
                f"{prefix}cache=True needs the config that the task was made from: pass task_cfg "
                "to make_evaluators."
            )
        request = Request(
            predict=predict,
            data=data,
            split=split,
            batch_size=batch_size,
            views=views_lib.to_json(self.data_cfg, views or {}, key=f"{prefix}views"),
            limit=limit,
        )
        self._names[request].update(names)
        if cache:
            self._on_disk.add(request)
        if nonfinite:
            self._with_nonfinite.add(request)
        return request

    def check_batch_size(self, batch_size: int, *, key: str) -> None:
        """Raises UserError unless a batch can be split evenly over the devices.

        Args:
          batch_size: Number of examples in a batch.
          key: Full config key of the batch size, for the error message.
        """
        sharding.check_batch(batch_size, self._mesh, key=key)

    def get(self, state: Mapping[str, Any], request: Request) -> Features:
        """Returns the features of a train state, computing each request once per state.

        Raises:
          UserError: The task does not have a requested output, or an output is not finite.
        """
        if state is not self._state:
            self.clear()
            self._state = state
        if request not in self._features:
            features = self._read(state, request) if request in self._on_disk else None
            self._features[request] = features or self._extract(state, request)
        return self._features[request]

    def release(self, requests: Sequence[Request]) -> None:
        """Frees the memory of features and of their data; a later `get` computes them again."""
        for request in requests:
            self._features.pop(request, None)
            self._data.pop(request, None)

    def get_examples(self, state: Mapping[str, Any], request: Request, ids: np.ndarray) -> Features:
        """Returns the features of some examples, ordered by id, without keeping them.

        For outputs that are too large to hold for every example, such as images.

        Args:
          state: A train state.
          request: From `request`.
          ids: Example ids in the data of the request.
        """
        return self._extract(state, request, only=np.unique(ids))

    def apply(
        self, state: Mapping[str, Any], batch: Mapping[str, np.ndarray], name: str, predict: str
    ) -> np.ndarray:
        """Returns an output of a predict function as float32 for a batch made by the caller.

        Args:
          state: A train state.
          batch: Fields as in a dataset's batch, the same on every process. Batches of one size
            share a compilation.
          name: Name of the output.
          predict: Name of the task's predict function.
        """
        if (predict, name) not in self._applied:
            function = self.task.predict[predict]
            self._applied[predict, name] = jax.jit(
                lambda *args: function(*args)[name].astype("float32"),
                out_shardings=sharding.replicated(self._mesh),
            )
        with jax.set_mesh(self._mesh):
            output = self._applied[predict, name](
                step_lib.evaluation_params(state), state["extra"], dict(batch)
            )
        return np.asarray(output)

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices that share a batch."""
        return self._mesh

    def tokenizer(self, request: Request) -> Any:
        """Returns the tokenizer of a request's data; None without text."""
        return self._open(request).tokenizer

    def source(self, request: Request) -> tuple[Any, int]:
        """Returns the source of a request's data and the number of its records that are used.

        The source is None, and the number 0, for a stream.
        """
        data = self._open(request)
        sources = getattr(data, "sources", ())
        return (sources[0], data.num_examples) if sources else (None, 0)

    @property
    def train_split(self) -> str:
        """The split of the training data."""
        return self.data_cfg.get("split", "train")

    def train_sources(self) -> list[tuple[str, Any]]:
        """Returns (specification, source) of the training data that can be opened, except streams.

        An evaluation job need not have the training data.
        """
        if self._train_sources is None:
            from mmjax.data.sources import registry  # imports TensorFlow

            self._train_sources = []
            specs = self.data_cfg.get("train") or ()
            for spec in (specs,) if isinstance(specs, str) else specs:
                with contextlib.suppress(UserError):
                    source = registry.open_source(spec, split=self.train_split)
                    self._train_sources.append((spec, source))
        return self._train_sources

    def check(self, state: Mapping[str, Any], request: Request) -> None:
        """Opens the data of a request and traces its outputs, without computing anything.

        Raises:
          UserError: The dataset, split or output does not exist.
        """
        batch = {
            name: jax.ShapeDtypeStruct((request.batch_size, *field.shape[1:]), field.dtype)
            for name, field in self._open(request).spec.items()
        }
        predict, params = self.task.predict[request.predict], step_lib.evaluation_params(state)
        signature = tuple((k, v.shape, v.dtype) for k, v in sorted(batch.items()))
        if (request.predict, signature) not in self._outputs:
            with jax.set_mesh(self._mesh):
                outputs = jax.eval_shape(predict, params, state["extra"], batch)
            self._outputs[request.predict, signature] = set(outputs)
        names = self._outputs[request.predict, signature]
        for name in sorted(self._names[request]):
            if name not in names:
                raise unknown(f"output in {request}:", name, names)

    def clear(self) -> None:
        """Forgets the features of the latest state."""
        self._state = self._weights = None
        self._features = {}

    def _path(self, state: Mapping[str, Any], request: Request) -> pathlib.Path | None:
        """Returns the cache file of features; None for data that cannot be identified."""
        data_cfg = self._data_cfg_of(request)
        specs = data_cfg.get("train", "")
        spec = request.data or (specs if isinstance(specs, str) else specs[0])
        data = feature_cache.data_identity(self._open(request), spec, data_cfg)
        if data is None:
            logging.warning(
                "cache=True has no effect on %s: %s is a stream, so features on disk could not be "
                "matched to its examples.",
                request,
                spec,
            )
            return None
        if self._weights is None:
            params = step_lib.evaluation_params(state)
            with jax.set_mesh(self._mesh):
                self._weights = fingerprint({"params": params, "extra": state["extra"]})
        key = {
            "weights": self._weights,
            "task_cfg": self._task_cfg,
            "data": data,
            "predict": request.predict,
            "split": request.split,
            "limit": request.limit,
        }
        return feature_cache.path_of(key, f"{data['sources'][0]['info']['name']}-{request.split}")

    def _read(self, state: Mapping[str, Any], request: Request) -> Features | None:
        """Returns the features on disk; None if any process does not have them."""
        start, path = time.monotonic(), self._path(state, request)
        result = path and feature_cache.read(path, self._names[request])
        if distributed.any_process(result is None):
            return None
        logging.info("Read %s from %s.", request, path)
        return self._make_features(request, *result, start)

    def _make_features(
        self, request: Request, outputs: dict, fields: dict, start: float
    ) -> Features:
        fields, data = dict(fields), self._open(request)
        ids, label = fields.pop("example_id"), fields.pop("label", None)
        return Features(
            arrays=outputs,
            masks={name.removesuffix(_MASK_SUFFIX): value for name, value in fields.items()},
            label=label,
            example_id=ids,
            info=data.info,
            split=request.split,
            tokenizer=data.tokenizer,
            seconds=time.monotonic() - start,
        )

    def _data_cfg_of(self, request: Request) -> dict[str, Any]:
        return {**self.data_cfg, **views_lib.from_json(request.views)}

    def _open(self, request: Request) -> Any:
        if request not in self._data:
            make = self._make_eval_data
            if make is None:
                from mmjax.data.pipeline import loader  # imports TensorFlow

                make = loader.make_eval_data
            self._data[request] = make(
                self._data_cfg_of(request),
                data=request.data,
                split=request.split,
                batch_size=request.batch_size,
                max_examples=request.limit,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
        return self._data[request]

    def _function(self, predict_name: str) -> Callable:
        """Returns the function that computes outputs; see `compile_predict`.

        It computes the outputs that any evaluator requests from the predict function, so that
        splits with equal shapes share a compilation, which costs more than an unused output.
        """
        if predict_name not in self._compiled:
            requests = [r for r in self._names if r.predict == predict_name]
            names = sorted(set().union(*(self._names[r] for r in requests)))
            predict = self.task.predict[predict_name]
            self._compiled[predict_name] = compile_predict(predict, self._mesh, names)
        return self._compiled[predict_name]

    def _run(self, state: Mapping[str, Any], request: Request, data: Any) -> Iterator[tuple]:
        """Yields host copies of each batch's results; the device is one batch ahead."""
        function, params = self._function(request.predict), step_lib.evaluation_params(state)
        previous = None
        for batch in _batches(data, request):
            batch = sharding.make_global(batch, self._mesh)
            outputs, fields = function(params, state["extra"], batch)
            if previous is not None:
                yield jax.device_get(previous)
            if not self._names[request] <= outputs.keys():
                self.check(state, request)  # raises the error for the missing output
            previous = {name: outputs[name] for name in self._names[request]}, fields
        if previous is not None:
            yield jax.device_get(previous)

    def _extract(
        self, state: Mapping[str, Any], request: Request, only: np.ndarray | None = None
    ) -> Features:
        """Returns computed features, of all examples or of those with the ids in `only`."""
        start = time.monotonic()
        data = self._open(request)
        outputs, fields, count = self._collect(state, request, data, only)
        total = data.num_examples if only is None else len(only)
        total = self._check_count(request, fields["example_id"], count, total)
        outputs, fields = ({k: v[:total] for k, v in part.items()} for part in (outputs, fields))
        if request not in self._with_nonfinite:
            _check_finite(request, outputs, fields["example_id"])
        order = np.argsort(fields["example_id"], kind="stable")
        outputs, fields = ({k: v[order] for k, v in part.items()} for part in (outputs, fields))
        if request in self._on_disk and only is None:
            path = self._path(state, request)
            if path and distributed.is_primary():
                feature_cache.write(path, outputs, fields)
        features = self._make_features(request, outputs, fields, start)
        logging.info("Computed %s: %d examples in %.1f s.", request, total, features.seconds)
        return features

    def _collect(
        self, state: Mapping[str, Any], request: Request, data: Any, only: np.ndarray | None
    ) -> tuple[dict, dict, int]:
        """Returns `(outputs, fields, number of examples)`, in the order of the data."""
        total = data.num_examples if only is None else len(only)
        count, outputs, fields = 0, {}, {}
        with jax.set_mesh(self._mesh):
            for batch_outputs, batch_fields in self._run(state, request, data):
                valid = batch_fields.pop("mask") > 0
                if only is not None:
                    valid &= np.isin(batch_fields["example_id"], only)
                size = int(valid.sum())
                for target, source in ((outputs, batch_outputs), (fields, batch_fields)):
                    for name, value in source.items():
                        if name not in target:
                            target[name] = np.zeros((total, *value.shape[1:]), value.dtype)
                        target[name][count : count + size] = value[valid]
                count += size
                if count == total and only is not None:
                    break
        return outputs, fields, count

    def _check_count(self, request: Request, ids: np.ndarray, count: int, total: int) -> int:
        """Returns the number of examples: all, or all but the corrupt records."""
        if 0 < count < total and self._data_cfg_of(request).get("corrupt") == "skip":
            logging.warning(
                "%s: %d corrupt records are skipped, %d remain.", request, total - count, count
            )
            total = count
        distinct = len(np.unique(ids[: min(count, total)]))
        if count != total or distinct != total:
            raise RuntimeError(
                f"{request}: the data pipeline returned {count} examples ({distinct} distinct), "
                f"but the dataset has {total}. If records are corrupt, set "
                "views=dict(corrupt='skip') in the evaluator to skip them. Otherwise the dataset "
                "changed while it was read: run `mmjax validate` on it."
            )
        return total


def _check_finite(request: Request, outputs: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
    """Raises UserError for outputs that contain NaN or infinity."""
    for name, value in outputs.items():
        bad = ~np.isfinite(value).reshape(len(ids), -1).all(axis=1)
        if bad.any():
            raise UserError(
                f"{request}: output {name!r} is not finite for {bad.sum()} of {len(ids)} examples "
                f"(first ids: {ids[bad][:5].tolist()}). Check that the checkpoint is from a run "
                "whose loss is finite, or set config.model.dtype='float32' if the compute dtype "
                "overflows."
            )


def _batches(data: Any, request: Request) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of this process; every process yields the same number.

    Computations on a batch involve all processes. After an error of the data, zeros are yielded for
    the remaining batches, and the error is raised at the end on every process.

    Raises:
      UserError: The data of another process failed.
    """
    if jax.process_count() == 1:
        yield from data.iterate()
        return
    failure, count = None, 0
    try:
        for batch in data.iterate():
            yield batch
            count += 1
    except Exception as error:  # noqa: BLE001 - raised below
        failure = error
    for _ in range(count, -(-data.num_examples // request.batch_size)):
        yield {name: np.zeros(field.shape, field.dtype) for name, field in data.spec.items()}
    if distributed.any_process(failure is not None):
        raise failure or UserError(
            f"{request}: reading the data failed on another process. See its log."
        )

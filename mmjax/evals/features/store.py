"""Outputs of a model for every example of a split, computed once and shared by evaluators."""

from __future__ import annotations

import collections
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import distributed, sharding
from mmjax import step as step_lib
from mmjax.checkpoints import manager as checkpoint
from mmjax.errors import UserError, choose, unknown
from mmjax.evals.features import cache as feature_cache
from mmjax.evals.features import views as views_lib
from mmjax.evals.features.arrays import Features, Request

_MASK_SUFFIX = "_mask"


class FeatureStore:
    """Computes features and keeps those of one state, so that evaluators share them.

    Args:
      task: its `predict` functions are compiled here, once for all evaluators and steps.
      data_cfg: the `data` section of the config.
      mesh: the devices that share a batch.
      make_eval_data: replaces `mmjax.data.pipeline.loader.make_eval_data`.
      made_by: what the task was made from (the sections of the config), for features on disk.

    Attributes:
      data_cfg: as given.
    """

    def __init__(
        self,
        *,
        task: Any,
        data_cfg: Mapping[str, Any],
        mesh: jax.sharding.Mesh,
        make_eval_data: Callable[..., Any] | None = None,
        made_by: Mapping[str, Any] | None = None,
    ):
        self._task = task
        self.data_cfg = dict(data_cfg)
        self._mesh = mesh
        self._make_eval_data = make_eval_data
        self._made_by = made_by
        self._on_disk: set[Request] = set()
        self._weights: str | None = None  # fingerprint of the state
        self._names: dict[Request, set[str]] = collections.defaultdict(set)
        self._data: dict[Request, Any] = {}
        self._compiled: dict[str, Callable] = {}
        self._applied: dict[tuple[str, str], Callable] = {}
        self._outputs: dict[tuple, set[str]] = {}  # by predict function and form of the batch
        self._state: Any = None
        self._features: dict[Request, Features] = {}

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
    ) -> Request:
        """Says what will be asked for with `get`; same requests are computed together.

        Args:
          names: outputs of the predict function that are needed.
          predict: name of the task's function.
          data: dataset, as in `config.data.train`; '' is the (first) one of training.
          split: of the dataset.
          batch_size: over all devices.
          views: {section of the data config: {key: value}} that differ from training, e.g.
            `dict(video=dict(num_clips=4), text=None)`; see `mmjax.evals.features.views.merge`.
          limit: only the first so many examples (0: all).
          cache: keep the features on disk, and look for them there; see
            `mmjax.evals.features.cache`.

        Raises:
          UserError: anything in the request that is not possible.
        """
        choose("output of this task", predict, dict(self._task.predict))
        sharding.check_batch(batch_size, self._mesh)
        request = Request(
            predict=predict,
            data=data,
            split=split,
            batch_size=batch_size,
            views=views_lib.to_json(self.data_cfg, views or {}),
            limit=limit,
        )
        self._names[request].update(names)
        if cache and self._made_by is None:
            raise UserError("cache=True needs made_by=…, the config that the task was made from.")
        if cache:
            self._on_disk.add(request)
        return request

    def get(self, state: Mapping[str, Any], request: Request) -> Features:
        """Features of a train state; all requests at the same state share the work.

        Raises:
          UserError: an output that the task does not have, or outputs that are not finite.
        """
        if state is not self._state:
            self.clear()
            self._state = state
        if request not in self._features:
            found = self._read(state, request) if request in self._on_disk else None
            self._features[request] = found or self._extract(state, request)
        return self._features[request]

    def release(self, requests: Sequence[Request]) -> None:
        """Frees the memory of features and of their data; who still asks for them has the data
        opened and the features computed again."""
        for request in requests:
            self._features.pop(request, None)
            self._data.pop(request, None)

    def pick(self, state: Mapping[str, Any], request: Request, ids: np.ndarray) -> Features:
        """`get` of some examples alone, ordered by their ids and not kept for others.

        For outputs that are too large to hold for every example, such as images.

        Args:
          ids: example ids that the request has.
        """
        return self._extract(state, request, only=np.unique(ids))

    def apply(
        self, state: Mapping[str, Any], batch: Mapping[str, np.ndarray], name: str, predict: str
    ) -> np.ndarray:
        """float32 output `name` of a predict function for a batch that is not of a dataset.

        Args:
          state: a train state.
          batch: fields as a dataset has them, the same on every process. Batches of one size
            share a compilation.
          name: of the output.
          predict: name of the task's function.
        """
        if (predict, name) not in self._applied:
            function = self._task.predict[predict]
            self._applied[predict, name] = jax.jit(
                lambda *args: function(*args)[name].astype("float32"),
                out_shardings=sharding.replicated(self._mesh),
            )
        with jax.set_mesh(self._mesh):
            made = self._applied[predict, name](
                step_lib.evaluation_params(state), state["extra"], dict(batch)
            )
        return np.asarray(made)

    def tokenizer(self, request: Request) -> Any:
        """The tokenizer of a request's data; None without text."""
        return self._open(request).tokenizer

    def check(self, state: Mapping[str, Any], request: Request) -> None:
        """Opens the data of a request and traces its outputs, without computing anything.

        Raises:
          UserError: a dataset, split or output that is not there.
        """
        batch = {
            name: jax.ShapeDtypeStruct((request.batch_size, *rows.shape[1:]), rows.dtype)
            for name, rows in self._open(request).spec.items()
        }
        predict, params = self._task.predict[request.predict], step_lib.evaluation_params(state)
        form = request.predict, tuple((k, v.shape, v.dtype) for k, v in sorted(batch.items()))
        if form not in self._outputs:
            with jax.set_mesh(self._mesh):
                made = jax.eval_shape(predict, params, state["extra"], batch)
            self._outputs[form] = set(made)
        outputs = self._outputs[form]
        for name in sorted(self._names[request]):
            if name not in outputs:
                raise unknown(f"output {request}:", name, outputs)

    def clear(self) -> None:
        """Forgets the features of the last state."""
        self._state = self._weights = None
        self._features = {}

    def _path(self, state: Mapping[str, Any], request: Request) -> pathlib.Path | None:
        """Where the features are on disk, or would be; None for data that cannot be known."""
        data_cfg = self._data_cfg_of(request)
        specs = data_cfg.get("train", "")
        spec = request.data or (specs if isinstance(specs, str) else specs[0])
        data = feature_cache.data_identity(self._open(request), spec, data_cfg)
        if data is None:
            logging.warning("%s: features of a stream are not kept on disk.", request)
            return None
        if self._weights is None:
            params = step_lib.evaluation_params(state)
            with jax.set_mesh(self._mesh):
                parts = {"params": params, "extra": state["extra"]}
                self._weights = checkpoint.fingerprint(parts)
        asked = dict(predict=request.predict, split=request.split, limit=request.limit)
        key = {"weights": self._weights, "made_by": self._made_by, "data": data, **asked}
        return feature_cache.path_of(key, f"{data['sources'][0]['info']['name']}-{request.split}")

    def _read(self, state: Mapping[str, Any], request: Request) -> Features | None:
        """The features on disk; None if any process does not have them."""
        began, path = time.monotonic(), self._path(state, request)
        found = path and feature_cache.read(path, self._names[request])
        if distributed.any_process(found is None):
            return None
        logging.info("%s: features from %s.", request, path)
        return self._made(request, *found, began)

    def _made(self, request: Request, outputs: dict, fields: dict, began: float) -> Features:
        fields, data = dict(fields), self._open(request)
        ids, label = fields.pop("example_id"), fields.pop("label", None)
        return Features(
            arrays=outputs,
            masks={name.removesuffix(_MASK_SUFFIX): value for name, value in fields.items()},
            label=label,
            example_id=ids,
            info=data.info,
            tokenizer=data.tokenizer,
            seconds=time.monotonic() - began,
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
        """`(params, extra, batch) -> (outputs, fields)`; replicated, for all processes to read.

        It gives what any evaluator wants of a predict function and the data allow: so that splits
        of one form share a compilation, which costs more than an output too many.
        """
        if predict_name not in self._compiled:
            predict = self._task.predict[predict_name]
            requests = [r for r in self._names if r.predict == predict_name]
            names = sorted(set().union(*(self._names[r] for r in requests)))

            def function(params, extra, batch):
                outputs = predict(params, extra, batch)
                fields = {
                    name: value
                    for name, value in batch.items()
                    if name in ("mask", "label", "example_id") or name.endswith(_MASK_SUFFIX)
                }
                wanted = {n: outputs[n].astype("float32") for n in names if n in outputs}
                return wanted, fields

            replicated = sharding.replicated(self._mesh)
            self._compiled[predict_name] = jax.jit(function, out_shardings=replicated)
        return self._compiled[predict_name]

    def _run(self, state: Mapping[str, Any], request: Request, data: Any) -> Iterator[tuple]:
        """Host copies of each batch's results; the device is one batch ahead of the copies."""
        function, params = self._function(request.predict), step_lib.evaluation_params(state)
        ahead = None
        for batch in _batches(data, request):
            batch = sharding.make_global(batch, self._mesh)
            outputs, fields = function(params, state["extra"], batch)
            if ahead is not None:
                yield jax.device_get(ahead)
            if not self._names[request] <= outputs.keys():
                self.check(state, request)  # says what there is
            ahead = {name: outputs[name] for name in self._names[request]}, fields
        if ahead is not None:
            yield jax.device_get(ahead)

    def _extract(
        self, state: Mapping[str, Any], request: Request, only: np.ndarray | None = None
    ) -> Features:
        began = time.monotonic()
        data = self._open(request)
        total = data.num_examples if only is None else len(only)
        filled, arrays, fields = 0, {}, {}
        with jax.set_mesh(self._mesh):
            for outputs, extras in self._run(state, request, data):
                real = extras.pop("mask") > 0
                if only is not None:
                    real &= np.isin(extras["example_id"], only)
                rows = int(real.sum())
                for target, source in ((arrays, outputs), (fields, extras)):
                    for name, value in source.items():
                        if name not in target:
                            target[name] = np.zeros((total, *value.shape[1:]), value.dtype)
                        target[name][filled : filled + rows] = value[real]
                filled += rows
                if filled == total and only is not None:
                    break
        total = self._check_count(request, fields["example_id"], filled, total)
        arrays, fields = ({k: v[:total] for k, v in group.items()} for group in (arrays, fields))
        ids = fields["example_id"]
        order = np.argsort(ids, kind="stable")
        for name, value in arrays.items():
            bad = ~np.isfinite(value).reshape(total, -1).all(axis=1)
            if bad.any():
                raise UserError(
                    f"{request}: {name!r} is not finite for {bad.sum()} of {total} examples "
                    f"(first: {ids[bad][:5].tolist()}). The parameters are broken or the compute "
                    "dtype overflows."
                )
        arrays, fields = ({k: v[order] for k, v in group.items()} for group in (arrays, fields))
        if request in self._on_disk and only is None:
            path = self._path(state, request)
            if path and distributed.is_primary():
                feature_cache.write(path, arrays, fields)
        found = self._made(request, arrays, fields, began)
        logging.info("%s: %d examples in %.1f s.", request, total, found.seconds)
        return found

    def _check_count(self, request: Request, ids: np.ndarray, filled: int, total: int) -> int:
        """How many examples there are to judge: all of them, or all but the corrupt records."""
        if 0 < filled < total and self._data_cfg_of(request).get("corrupt") == "skip":
            logging.warning(
                "%s: %d corrupt records are left out, %d remain.", request, total - filled, filled
            )
            total = filled
        if filled != total or len(np.unique(ids[:total])) != total:
            different = len(np.unique(ids[:filled]))
            raise RuntimeError(
                f"{request}: {filled} examples came, {different} different ones, of {total}."
            )
        return total


def _batches(data: Any, request: Request) -> Iterator[dict[str, np.ndarray]]:
    """The batches of this process, on which the others wait, whatever happens.

    Raises:
      UserError: the data of another process failed. This and an error of the own data come after
        the last batch, where no process waits for another: all go on with the same next thing.
    """
    if jax.process_count() == 1:
        yield from data.iterate()
        return
    failure, made = None, 0
    try:
        for batch in data.iterate():
            yield batch
            made += 1
    except Exception as error:  # noqa: BLE001 - raised below
        failure = error
    for _ in range(made, -(-data.num_examples // request.batch_size)):
        yield {name: np.zeros(rows.shape, rows.dtype) for name, rows in data.spec.items()}
    if distributed.any_process(failure is not None):
        raise failure or UserError(f"{request}: the data of another process failed, see its log.")

"""Outputs of a model for every example of a split, computed once and shared by evaluators."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import distributed, sharding
from mmjax import step as step_lib
from mmjax.errors import UserError, choose, unknown
from mmjax.evals import views as views_lib

_MASK_SUFFIX = "_mask"


@dataclasses.dataclass(frozen=True)
class Request:
    """Which examples go through which function of the task, and how they are cut. Made by the
    store.

    Attributes:
      predict: name of the task's function.
      data, split: the dataset ('' is the one of training) and its split.
      batch_size: examples of a batch over all devices.
      views: JSON of what replaces keys in sections of the data config.
      limit: only the first so many examples (0: all).
    """

    predict: str
    data: str
    split: str
    batch_size: int
    views: str
    limit: int

    def __str__(self) -> str:
        first = f" (the first {self.limit})" if self.limit else ""
        return f"{self.predict!r} of {self.data or 'the training dataset'}, {self.split}{first}"


@dataclasses.dataclass(frozen=True)
class Features:
    """Host arrays of N examples, ordered by `example_id`, each example once.

    Attributes:
      arrays: {name: float32 [N, …]}; pooled features and embeddings are [N, views, D].
      masks: {modality: float32 [N] or [N, captions]}, 1 where it is present.
      label: int32 [N], -1 for none, or float32 [N, C] for multi-label data; None without labels.
      example_id: int32 [N].
      info: the dataset's `DatasetInfo`.
      tokenizer: from captions to the numbers in `text`; None without text.
      seconds: what the computation took.
    """

    arrays: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    label: np.ndarray | None
    example_id: np.ndarray
    info: Any
    tokenizer: Any
    seconds: float

    def __len__(self) -> int:
        return len(self.example_id)

    def present(self, modality: str) -> np.ndarray:
        """bool [N, captions] for text, [N, 1] for others: what is there."""
        mask = self.masks.get(modality, np.ones(len(self)))
        return mask.reshape(len(self), -1) > 0

    def having(self, *modalities: str, who: str) -> np.ndarray:
        """bool [N]: the examples that have all these modalities; the log says how many do not.

        Args:
          modalities: their names.
          who: the evaluator that asks, for messages.

        Raises:
          UserError: no example has them.
        """
        there = np.all([self.present(m).any(axis=1) for m in modalities], axis=0)
        if not there.any():
            raise UserError(
                f"Evaluator {who}: no example of {self.info.name} has {' and '.join(modalities)}."
            )
        if not there.all():
            logging.info(
                "%s: %d of %d examples lack %s and are left out.",
                who,
                (~there).sum(),
                len(there),
                " or ".join(modalities),
            )
        return there

    def labelled(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """`(array, labels)` of the examples that have a label and the modality of this name.

        Raises:
          UserError: no example has one.
        """
        if self.label is None:
            raise UserError(f"{self.info.name} has no labels to evaluate {name!r} with.")
        has_label = self.label >= 0 if self.label.ndim == 1 else np.ones(len(self), bool)
        keep = has_label & self.present(name.split("/")[0]).any(axis=1)
        if not keep.any():
            raise UserError(f"No example of {self.info.name} has both a label and {name!r}.")
        if not keep.all():
            logging.info(
                "%d of %d examples of %s have no label or no %s and are left out.",
                (~keep).sum(),
                len(keep),
                self.info.name,
                name,
            )
        return self.arrays[name][keep], self.label[keep]


class FeatureStore:
    """Computes features and keeps those of one state, so that evaluators share them.

    Args:
      task: its `predict` functions are compiled here, once for all evaluators and steps.
      data_cfg: the `data` section of the config.
      mesh: the devices that share a batch.
      make_eval_data: replaces `mmjax.data.loader.make_eval_data`.

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
    ):
        self._task = task
        self.data_cfg = dict(data_cfg)
        self._mesh = mesh
        self._make_eval_data = make_eval_data
        self._names: dict[Request, set[str]] = collections.defaultdict(set)
        self._data: dict[Request, Any] = {}
        self._compiled: dict[str, Callable] = {}
        self._applied: dict[tuple[str, str], Callable] = {}
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
    ) -> Request:
        """Says what will be asked for with `get`; same requests are computed together.

        Args:
          names: outputs of the predict function that are needed.
          predict: name of the task's function.
          data: dataset, as in `config.data.train`; '' is the (first) one of training.
          split: of the dataset.
          batch_size: over all devices.
          views: {section of the data config: {key: value}} that differ from training, e.g.
            `dict(video=dict(num_clips=4), text=None)`; see `mmjax.evals.views.merge`.
          limit: only the first so many examples (0: all).

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
            self._features[request] = self._extract(state, request)
        return self._features[request]

    def pick(self, state: Mapping[str, Any], request: Request, ids: np.ndarray) -> Features:
        """`get` of some examples alone, ordered by their ids and not kept for others.

        For outputs that are too large to hold for every example, such as pictures.

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
        with jax.set_mesh(self._mesh):
            outputs = jax.eval_shape(predict, params, state["extra"], batch)
        for name in sorted(self._names[request]):
            if name not in outputs:
                raise unknown(f"output {request}:", name, outputs)

    def clear(self) -> None:
        """Forgets the features of the last state."""
        self._state = None
        self._features = {}

    def _open(self, request: Request) -> Any:
        if request not in self._data:
            make = self._make_eval_data
            if make is None:
                from mmjax.data import loader  # imports TensorFlow

                make = loader.make_eval_data
            self._data[request] = make(
                self.data_cfg | views_lib.from_json(request.views),
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
        ids = fields.pop("example_id")
        order = np.argsort(ids, kind="stable")
        for name, value in arrays.items():
            bad = ~np.isfinite(value).reshape(total, -1).all(axis=1)
            if bad.any():
                raise UserError(
                    f"{request}: {name!r} is not finite for {bad.sum()} of {total} examples "
                    f"(first: {ids[bad][:5].tolist()}). The parameters are broken or the compute "
                    "dtype overflows."
                )
        label = fields.pop("label", None)
        masks = {name.removesuffix(_MASK_SUFFIX): value[order] for name, value in fields.items()}
        seconds = time.monotonic() - began
        logging.info("%s: %d examples in %.1f s.", request, total, seconds)
        return Features(
            arrays={name: value[order] for name, value in arrays.items()},
            masks=masks,
            label=None if label is None else label[order],
            example_id=ids[order],
            info=data.info,
            tokenizer=data.tokenizer,
            seconds=seconds,
        )

    def _check_count(self, request: Request, ids: np.ndarray, filled: int, total: int) -> int:
        """How many examples there are to judge: all of them, or all but the corrupt records."""
        if 0 < filled < total and self.data_cfg.get("corrupt") == "skip":
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

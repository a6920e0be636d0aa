"""Refuses to score examples that a classifier was fitted on, which is meaningless.

Two checks find them. Before anything is computed, the records of two splits are compared, whatever
the names of the splits and datasets are. Afterwards, their features are compared, which also finds
copies of files, and streams that return the same examples for every split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from mmjax.errors import UserError
from mmjax.evals.features.arrays import Features, Request

if TYPE_CHECKING:
    from mmjax.evals.features.store import FeatureStore

_ADVICE = (
    "Select splits without common examples. If the dataset has only one split, take slices of it, "
    "for example 'train[:80%:stratified]' to fit and 'train[80%::stratified]' to score."
)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A classifier that is fitted to some splits and scored on another.

    Attributes:
      fitted: Requests of the examples that it is fitted to.
      scored: Request of the examples that it is scored on.
    """

    fitted: tuple[Request, ...]
    scored: Request


def check_records(store: FeatureStore, fit: Fit, *, where: str) -> None:
    """Raises UserError if an example is both fitted to and scored.

    Args:
      store: Opens the data of the requests.
      fit: The requests.
      where: Config key, for the message.
    """
    from mmjax.data.sources import identity  # imports TensorFlow

    source, size = store.source(fit.scored)
    for request in fit.fitted:
        fitted, fitted_size = store.source(request)
        if source is None or fitted is None:  # a stream
            if (request.data, request.split) == (fit.scored.data, fit.scored.split):
                raise _error(where, "the", _name(fit.scored), _name(request))
        elif common := identity.count_common(fitted, source, (fitted_size, size)):
            raise _error(where, f"{common} of {size}", _name(fit.scored), _name(request))


def check_training_split(store: FeatureStore, scored: Request, *, where: str) -> None:
    """Raises UserError if another split name selects the examples of the training split.

    That happens if a dataset without splits accepts every name. To evaluate on the training
    examples on purpose, name their split. A smaller overlap is only logged: models are often
    pretrained without labels on all splits.

    Args:
      store: Opens the data of the request.
      scored: Request of the examples that are scored.
      where: Config key, for the message.
    """
    from mmjax.data.sources import identity  # imports TensorFlow

    source, size = store.source(scored)
    if scored.split == store.train_split or source is None:
        return
    for name, training in store.train_sources():
        count = training.num_examples
        common = identity.count_common(training, source, (count, size))
        if common == size == count:
            raise UserError(
                f"config.{where}: {_name(scored)} has the same {size} examples as the training "
                f"data, split {store.train_split!r} of {name}. To evaluate on the "
                f"training examples, set split={store.train_split!r}. Otherwise train on a slice "
                f"of them, for example config.data.split='{store.train_split}[:80%:stratified]', "
                f"and evaluate on '{store.train_split}[80%::stratified]'."
            )
        if common:
            logging.warning(
                "config.%s: %d of %d examples of split %r are also in the training data, split %r "
                "of %s.",
                where,
                common,
                size,
                scored.split,
                store.train_split,
                name,
            )


def check_features(
    fitted: Sequence[Features], scored: Features, names: Sequence[str], *, where: str
) -> None:
    """Raises UserError if all scored examples have the features of fitted examples.

    Some equal features are logged, because published datasets contain a few duplicates. A model
    that maps most examples to the same features proves nothing.

    Args:
      fitted: Features of the examples that a classifier is fitted to.
      scored: Features of the examples that it is scored on.
      names: Names of the arrays.
      where: Config key, for the message.
    """
    for name in names:
        rows = _row_hashes(scored.arrays[name])
        if len(set(rows)) < max(2, len(rows) / 2):
            continue
        for features in fitted:
            known = set(_row_hashes(features.arrays[name]))
            common = sum(row in known for row in rows)
            if common == len(rows):
                raise _error(where, f"all {common}", scored.source, features.source)
            if common:
                logging.warning(
                    "config.%s: %d of %d examples of %s have the same features %r as an example "
                    "of %s. They may be duplicates.",
                    where,
                    common,
                    len(rows),
                    scored.source,
                    name,
                    features.source,
                )


def _row_hashes(array: np.ndarray) -> list[int]:
    return [hash(row.tobytes()) for row in array]


def _name(request: Request) -> str:
    return f"split {request.split!r} of {request.data or 'config.data.train'}"


def _error(where: str, examples: str, scored: str, fitted: str) -> UserError:
    return UserError(
        f"config.{where}: {examples} examples of {scored}, on which results are measured, are also "
        f"in {fitted}, to which the classifier is fitted. {_ADVICE}"
    )

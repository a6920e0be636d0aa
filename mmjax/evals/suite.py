"""Linear probe, few-shot episodes and nearest neighbors over many datasets, with one table."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from mmjax import config, distributed
from mmjax.errors import UserError, check_choice, choose, unknown
from mmjax.evals import suite_table
from mmjax.evals.base import CHANCE, CONFIDENCE, DEVIATION, Evaluator
from mmjax.evals.few_shot import FewShot
from mmjax.evals.knn import NearestNeighbors
from mmjax.evals.linear_probe import LinearProbe, takes_valid_split

_DEFAULTS = types.MappingProxyType({})  # all options as they are
_KINDS = {"probe": LinearProbe, "few_shot": FewShot, "knn": NearestNeighbors}
_METRICS = {"top1": "top1", "mean_per_class": "mean_class_top1"}  # and their names in a probe
# What the suite decides for its parts.
_OWN = ("data", "train_split", "valid_split", "split", "feature", "batch_size")
_OWN += ("views", "train_views", "name", "store", "schedule", "folder", "cache")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset of a suite.

    Attributes:
      data: as in `config.data.train`.
      train, valid, test: its splits; without `valid`, a part of each class of `train` is used.
      metric: what a probe reports and chooses C by, 'top1' or 'mean_per_class'.
      few_shot: whether few-shot episodes are drawn from it.
      corrupt: 'fail' or 'skip', as `config.data.corrupt`; '' is as the config says.
    """

    data: str
    train: str = "train"
    valid: str = ""
    test: str = "test"
    metric: str = "top1"
    few_shot: bool = True
    corrupt: str = ""


class Suite(Evaluator):
    """The same evaluations on many datasets of images, and their averages.

    Metrics are called `<dataset>/linear` (with the chosen `linear_C`), `<dataset>/few_shot`, with
    its interval and deviation, `<dataset>/knn`, and `average/…`. The table is logged and left in
    the run directory as `<name>.txt`, `.csv` and `.tex`, after each dataset. A dataset that fails
    is logged and counted as `<dataset>/failed`; the others go on.

    Args:
      datasets: names in `mmjax.data.sources.benchmarks`, or 'all', those over which LGSSL averages.
      root: the folder where they are; '' is TFDS's own alone.
      extra: datasets of your own, {name: dict(data=…)}, see `Dataset`.
      missing: what to do about a dataset that is not there, 'fail' or 'skip' it.
      feature: output of the task.
      probe: options of `linear_probe`, whose classifier is 'sweep' here; None is no probe.
      few_shot: options of `few_shot`; None is none.
      knn: options of `knn`; default None, none.
      batch_size: over all devices.
      views: what differs from the training's data config.

    Raises:
      UserError: options or datasets that are not there.
    """

    def __init__(
        self,
        *,
        datasets: str | Sequence[str] = "all",
        root: str = "",
        extra: Mapping[str, Mapping[str, Any]] = _DEFAULTS,
        missing: str = "fail",
        feature: str = "image",
        probe: Mapping[str, Any] | None = _DEFAULTS,
        few_shot: Mapping[str, Any] | None = _DEFAULTS,
        knn: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        cache: bool = False,
        **common: Any,
    ):
        super().__init__(cache=cache, **common)
        check_choice(f"value of config.evals.{self.name}.missing:", missing, ("fail", "skip"))
        self._feature = feature
        self._options = {
            kind: self._checked(kind, options)
            for kind, options in (("probe", probe), ("few_shot", few_shot), ("knn", knn))
            if options is not None
        }
        self._shared = dict(
            feature=feature, batch_size=batch_size, views=views, store=self.store, cache=cache
        )
        self._metrics: dict[str, str] = {}  # by dataset, of those in the table
        self._parts: dict[str, dict[str, Evaluator]] = {}
        for name, dataset in self._find(datasets, root, extra, missing).items():
            self._metrics[name] = dataset.metric if dataset else ""
            if dataset:
                self._parts[name] = self._make(name, dataset)
                for part in self._parts[name].values():
                    self.requests += part.requests
        if not self._parts:
            raise UserError(
                f"Evaluator {self.name}: none of its datasets is there (root={root!r})."
            )

    def _checked(self, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        where = f"evals.{self.name}.{kind}"
        options = config.convert(dict[str, Any], options, where)
        return config.keywords(_KINDS[kind], options, where, provided=_OWN)

    def _find(
        self, datasets: str | Sequence[str], root: str, extra: Mapping, missing: str
    ) -> dict[str, Dataset | None]:
        """The datasets by name; None for those that are not there."""
        from mmjax.data.sources import benchmarks

        names = (datasets,) if isinstance(datasets, str) else tuple(datasets)
        names = benchmarks.LGSSL_BENCHMARKS if names == ("all",) else names
        found: dict[str, Dataset | None] = {}
        for name in names:
            entry = choose(f"dataset of evals.{self.name}", name, benchmarks.BENCHMARKS)
            if not entry.train:
                raise UserError(
                    f"Evaluator {self.name}: {name} is there to test on only; the parts of a "
                    "suite need a training split."
                )
            try:
                spec = benchmarks.find_benchmark(name, root)
            except UserError as error:
                if missing == "fail":
                    raise UserError(
                        f"Evaluator {self.name}: {error} missing='skip' goes on without it."
                    ) from error
                found[name] = None
                continue
            splits = dict(
                zip(("train", "valid", "test"), benchmarks.benchmark_splits(name, spec), strict=True)
            )
            same = {key: getattr(entry, key) for key in ("metric", "few_shot", "corrupt")}
            found[name] = Dataset(data=spec, **same, **splits)
        if left_out := [name for name, dataset in found.items() if dataset is None]:
            logging.warning(
                "%s: left out, as they are neither below root=%r nor in TFDS's folder "
                "(docs/image_sets.md has the layouts): %s.",
                self.name,
                root,
                ", ".join(left_out),
            )
        keys = [field.name for field in dataclasses.fields(Dataset)]
        for name, section in extra.items():
            where = f"config key evals.{self.name}.extra.{name}"
            if name in found or name == "average":
                raise UserError(f"{where}: the name is taken.")
            for key in section:
                if key not in keys:
                    raise unknown(f"{where}.{key}: no such key", key, keys)
            if not section.get("data"):
                raise UserError(f"{where} needs data=…, a dataset as in config.data.train.")
            found[name] = Dataset(**section)
            choose(f"{where}.metric", found[name].metric, _METRICS)
            check_choice(f"{where}.corrupt", found[name].corrupt or "fail", ("fail", "skip"))
        return found

    def _make(self, name: str, dataset: Dataset) -> dict[str, Evaluator]:
        """The evaluators of a dataset."""
        shared = dict(data=dataset.data, train_split=dataset.train, split=dataset.test)
        shared |= self._shared
        if dataset.corrupt:
            shared["views"] = {**(shared["views"] or {}), "corrupt": dataset.corrupt}
        made: dict[str, Evaluator] = {}
        for kind, options in self._options.items():
            own = {**shared, **options, "name": f"{self.name}/{name}/{kind}"}
            if kind == "few_shot":
                if not dataset.few_shot:
                    continue
                if own.get("support") == "train+valid" and not dataset.valid:
                    own["support"] = "train"  # that is all there is
                own["valid_split"] = dataset.valid
            if kind == "probe":
                own = {"classifier": "sweep", "train_views": own["views"], **own}
                if own["classifier"] == "sweep":
                    own.setdefault("metric", dataset.metric)
                if dataset.valid and takes_valid_split(own["classifier"]):
                    own["valid_split"] = dataset.valid
            made[kind] = _KINDS[kind](**own)
        return made

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        results: dict[str, float] = {}
        shown = dict(self._metrics)  # the column `metric` of the table
        for name, parts in self._parts.items():
            try:
                for kind, part in parts.items():
                    found = part.evaluate(state)
                    results |= self._picked(name, kind, found)
            except (UserError, FloatingPointError) as error:
                logging.error("%s: %s failed: %s", self.name, name, error)
                results[f"{name}/failed"] = 1.0
                shown[name] = "failed"
            for part in parts.values():
                self.store.release(part.requests)
            averages = suite_table.averages(results, list(self._parts))
            self._leave(results | averages, shown)
        logging.info("%s", suite_table.as_text(results | averages, shown, title=self.name))
        return results | averages

    def _picked(self, name: str, kind: str, found: Mapping[str, float]) -> dict[str, float]:
        """What the suite reports of the metrics of a part."""
        column = {"probe": "linear"}.get(kind, kind)
        metric = _METRICS[self._metrics[name]] if kind == "probe" else "top1"
        value = f"{self._feature}/{metric}"
        wanted = {value + end: column + end for end in ("", CHANCE, CONFIDENCE, DEVIATION)}
        wanted[f"{self._feature}/C"] = f"{column}_C"
        return {f"{name}/{new}": found[old] for old, new in wanted.items() if old in found}

    def _leave(self, results: Mapping[str, float], shown: Mapping[str, str]) -> None:
        """Writes the table as it is by now; `shown` is the metric of each dataset."""
        if not distributed.is_primary():
            return
        title = f"{self.name} at step {self.step}, per cent"
        tables = {
            "txt": suite_table.as_text(results, shown, title=title) + "\n",
            "csv": suite_table.as_csv(results, shown),
            "tex": suite_table.as_tex(results, shown),
        }
        try:
            for ending, text in tables.items():
                (self.directory / f"{self.name}.{ending}").write_text(text)
        except OSError as error:
            logging.warning("The table cannot be written to %s: %s", self.directory, error)

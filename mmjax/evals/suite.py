"""Linear probe, few-shot episodes and nearest neighbors on many datasets, with one result table."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from absl import logging

from mmjax import config, distributed, files
from mmjax.errors import UserError, unknown
from mmjax.evals import suite_table
from mmjax.evals.base import CHANCE, CONFIDENCE, DEVIATION, PROVIDED, Evaluator, names_tuple
from mmjax.evals.features.views import merge
from mmjax.evals.few_shot import FewShot
from mmjax.evals.knn import NearestNeighbors
from mmjax.evals.linear_probe import LinearProbe, takes_valid_split

_NO_OPTIONS: Mapping[str, Any] = types.MappingProxyType({})
_PARTS = {"probe": LinearProbe, "few_shot": FewShot, "knn": NearestNeighbors}
_COLUMNS = {"probe": "linear", "few_shot": "few_shot", "knn": "knn"}
_PROBE_METRICS = {"top1": "top1", "mean_per_class": "mean_class_top1"}
# Options of the parts that the suite sets for each dataset, and where to set them in the suite.
_SET_BY_SUITE = {
    "data": "extra.NAME.data",
    "train_split": "extra.NAME.train",
    "valid_split": "extra.NAME.valid",
    "split": "extra.NAME.test",
    "feature": "feature",
    "batch_size": "batch_size",
    "views": "views",
    "train_views": "views",
    "cache": "cache",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset of a suite.

    Attributes:
      data: The dataset, as in `config.data.train`.
      train, valid, test: Its splits. Without `valid`, the probe selects C on a part of each class.
      metric: Metric that the probe reports and selects C by.
      few_shot: Whether to evaluate few-shot episodes.
      corrupt: Policy for corrupt records, as `config.data.corrupt`, which '' selects.
    """

    data: str
    train: str = "train"
    valid: str = ""
    test: str = "test"
    metric: Literal["top1", "mean_per_class"] = "top1"
    few_shot: bool = True
    corrupt: Literal["", "fail", "skip"] = ""


class Suite(Evaluator):
    """The same evaluations on many image datasets, and their averages.

    Metrics are called `<dataset>/linear` (with the selected `linear_C`), `<dataset>/few_shot` (with
    confidence interval and standard deviation), `<dataset>/knn`, and `average/…`. The table is
    logged, and written to the run directory as `<name>.txt`, `.csv` and `.tex` after each dataset.
    If a dataset fails, the error is logged and `<dataset>/failed` is 1; the others are evaluated.

    Args:
      datasets: Names in `mmjax.data.sources.benchmarks`; 'all' is the 15 datasets of LGSSL.
      root: Directory of the datasets; '' searches only the directory of TFDS.
      extra: Further datasets as {name: dict(data=…)}; see `Dataset`.
      missing: 'fail' raises an error for a dataset that does not exist, 'skip' logs it.
      feature: Output of the task.
      probe: Options of `linear_probe`; its default classifier is 'sweep' here. None disables it.
      few_shot: Options of `few_shot`; None disables it.
      knn: Options of `knn`; None disables it.
      batch_size: Number of examples in a batch, over all devices.
      views: Changes of the data config.

    Raises:
      UserError: An unknown option or dataset.
    """

    def __init__(
        self,
        *,
        datasets: str | Sequence[str] = "all",
        root: str = "",
        extra: Mapping[str, Mapping[str, Any]] = _NO_OPTIONS,
        missing: Literal["fail", "skip"] = "fail",
        feature: str = "image",
        probe: Mapping[str, Any] | None = _NO_OPTIONS,
        few_shot: Mapping[str, Any] | None = _NO_OPTIONS,
        knn: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        cache: bool = False,
        **common: Any,
    ):
        super().__init__(cache=cache, **common)
        self._feature, self._root = feature, root
        # The parts would report these with the keys of their own sections.
        self.store.check_batch_size(batch_size, key=self.key("batch_size"))
        merge(self.store.data_cfg, views or {}, key=self.key("views"))
        self._options = {
            part: self._part_options(part, options)
            for part, options in (("probe", probe), ("few_shot", few_shot), ("knn", knn))
            if options is not None
        }
        self._shared = dict(
            feature=feature, batch_size=batch_size, views=views, store=self.store, cache=cache
        )
        available = self._find(names_tuple(datasets), missing)
        available |= self._extra(extra, available)
        self._metrics = {name: entry.metric if entry else "" for name, entry in available.items()}
        self._parts: dict[str, dict[str, Evaluator]] = {}
        for name, dataset in available.items():
            if dataset:
                self._parts[name] = self._make_parts(name, dataset)
                for part in self._parts[name].values():
                    self.requests += part.requests
                    self.fits += part.fits
        if not self._parts:
            raise UserError(
                f"config.{self.section}: no dataset to evaluate. {self.key('datasets')}="
                f"{datasets!r}, {self.key('root')}={root!r}. Set root to the directory of the "
                f"datasets (docs/image_sets.md describes the layouts), or add your own with "
                f"{self.key('extra')}."
            )

    def _part_options(self, part: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the checked options of a part."""
        where = f"{self.section}.{part}"
        options = config.convert(Mapping[str, Any], options, where)
        for key in options:
            if key in _SET_BY_SUITE:
                raise UserError(
                    f"config.{where}.{key} cannot be set, because the suite sets it for each "
                    f"dataset. Set {self.key(_SET_BY_SUITE[key])} instead."
                )
        return config.keywords(
            _PARTS[part], options, where, provided=(*PROVIDED, *_SET_BY_SUITE), owner=part
        )

    def _find(self, names: Sequence[str], missing: str) -> dict[str, Dataset | None]:
        """Returns the datasets of the catalog by name; None for those that do not exist."""
        from mmjax.data.sources import benchmarks

        names = benchmarks.LGSSL_BENCHMARKS if names == ("all",) else names
        result: dict[str, Dataset | None] = {}
        for name in names:
            if name not in benchmarks.BENCHMARKS:
                raise unknown(f"dataset in {self.key('datasets')}:", name, benchmarks.BENCHMARKS)
            entry = benchmarks.BENCHMARKS[name]
            if not entry.train:
                raise UserError(
                    f"{self.key('datasets')}: {name!r} has only a test split, but the suite trains "
                    "a classifier on each dataset. Remove it from the suite, and evaluate it with "
                    "zero_shot or classification."
                )
            try:
                spec = benchmarks.find_benchmark(name, self._root)
            except UserError as error:
                if missing == "fail":
                    raise UserError(
                        f"config.{self.section}: {error} To skip datasets that do not exist, set "
                        f"{self.key('missing')}='skip' (missing='skip' in the recipe)."
                    ) from error
                result[name] = None
                continue
            splits = dict(
                zip(
                    ("train", "valid", "test"), benchmarks.benchmark_splits(name, spec), strict=True
                )
            )
            options = {key: getattr(entry, key) for key in ("metric", "few_shot", "corrupt")}
            result[name] = Dataset(data=spec, **options, **splits)
        if skipped := [name for name, dataset in result.items() if dataset is None]:
            logging.warning(
                "%s: skipping datasets that are neither in root=%r nor in the directory of TFDS: "
                "%s. docs/image_sets.md describes the layouts.",
                self.name,
                self._root,
                ", ".join(skipped),
            )
        return result

    def _extra(
        self, extra: Mapping[str, Mapping[str, Any]], taken: Mapping[str, Any]
    ) -> dict[str, Dataset]:
        """Returns the datasets of the option `extra` by name."""
        result = {}
        for name, section in extra.items():
            where = f"{self.section}.extra.{name}"
            section = config.convert(Mapping[str, Any], section, where)
            if name in taken:
                raise UserError(
                    f"config.{where}: the name {name!r} is already a dataset in "
                    f"{self.key('datasets')}. Choose another name for your dataset."
                )
            if name == "average":
                raise UserError(
                    f"config.{where}: the name 'average' is reserved for the averages. Choose "
                    "another name for your dataset."
                )
            if not section.get("data"):
                raise UserError(
                    f"config.{where}.data is missing. Set it to a dataset, as in config.data.train."
                )
            result[name] = Dataset(**config.keywords(Dataset, section, where))
        return result

    def _make_parts(self, name: str, dataset: Dataset) -> dict[str, Evaluator]:
        """Returns the evaluators of a dataset."""
        shared = dict(data=dataset.data, train_split=dataset.train, split=dataset.test)
        shared |= self._shared
        if dataset.corrupt:
            shared["views"] = {**(shared["views"] or {}), "corrupt": dataset.corrupt}
        parts: dict[str, Evaluator] = {}
        for part, options in self._options.items():
            options = {**shared, **options, "name": f"{self.name}/{name}/{part}"}
            options["section"] = f"{self.section}.{part}"
            if part == "few_shot":
                if not dataset.few_shot:
                    continue
                if options.get("support") == "train+valid" and not dataset.valid:
                    options["support"] = "train"  # the dataset has no validation split
                options["valid_split"] = dataset.valid
            if part == "probe":
                options = {"classifier": "sweep", "train_views": options["views"], **options}
                if options["classifier"] == "sweep":
                    options.setdefault("metric", dataset.metric)
                if dataset.valid and takes_valid_split(options["classifier"]):
                    options["valid_split"] = dataset.valid
            parts[part] = _PARTS[part](**options)
        return parts

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of all datasets, and writes the table after each of them."""
        results: dict[str, float] = {}
        shown = dict(self._metrics)  # the column `metric` of the table
        for name, parts in self._parts.items():
            try:
                for part, evaluator in parts.items():
                    results |= self._select_metrics(name, part, evaluator.evaluate(state))
            except (UserError, FloatingPointError) as error:
                logging.error("%s: dataset %s failed: %s", self.name, name, error)
                results[f"{name}/failed"] = 1.0
                shown[name] = "failed"
            for evaluator in parts.values():
                self.store.release(evaluator.requests)
            averages = suite_table.averages(results, list(self._parts))
            self._write_tables(results | averages, shown)
        logging.info("%s", suite_table.as_text(results | averages, shown, title=self.name))
        return results | averages

    def _select_metrics(
        self, name: str, part: str, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Returns the metrics of a part that the suite reports, under their names in the suite."""
        column = _COLUMNS[part]
        metric = _PROBE_METRICS[self._metrics[name]] if part == "probe" else "top1"
        source = f"{self._feature}/{metric}"
        names = {source + end: column + end for end in ("", CHANCE, CONFIDENCE, DEVIATION)}
        names[f"{self._feature}/C"] = f"{column}_C"
        return {f"{name}/{new}": values[old] for old, new in names.items() if old in values}

    def _write_tables(self, results: Mapping[str, float], shown: Mapping[str, str]) -> None:
        """Writes the table; `shown` is the metric of each dataset."""
        if not distributed.is_primary():
            return
        title = f"{self.name} at step {self.step}, percent"
        tables = {
            "txt": suite_table.as_text(results, shown, title=title) + "\n",
            "csv": suite_table.as_csv(results, shown),
            "tex": suite_table.as_tex(results, shown),
        }
        try:
            for suffix, text in tables.items():
                files.write_text(self.directory / f"{self.name}.{suffix}", text)
        except OSError as error:
            logging.warning("Cannot write the table to %s: %s", self.directory, error)

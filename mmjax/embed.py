"""Features of a dataset, computed once by the towers of a trained model: the command `mmjax embed`.

Training can read the features of frozen towers instead of running the towers at every step, and
`mmjax neighbors` searches them. The file format is `mmjax.data.pipeline.precomputed_features`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from mmjax import config, files, init_from, sharding
from mmjax.checkpoints.checksums import fingerprint
from mmjax.config import Config
from mmjax.convert.load import load_sources
from mmjax.errors import UserError, check_choice
from mmjax.modalities import INPUTS
from mmjax.tasks.base import Task
from mmjax.tasks.predict import make_predict_task

Batch = dict[str, np.ndarray]


def embed_dataset(
    modalities: Sequence[str],
    *,
    out: str,
    task: str = "touch",
    recipe: str = "tvl",
    run: str = "",
    weights: Sequence[str] = (),
    target: str = "",
    overrides: Sequence[str] = (),
    variants: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> str:
    """Writes features of the training data of a recipe or a run, as `mmjax embed` does.

    Args:
      modalities: Modalities to compute features of.
      out: Directory of features to write.
      task: Task of the recipe; ignored with `run`.
      recipe: Name or .py file of a recipe; ignored with `run`.
      run: A run. Its config is used and, without `weights`, also its weights.
      weights: Sources of the weights, as in `config.init_from`.
      target: See `embed`.
      overrides: `--config.key=value` arguments.
      variants: See `embed`.
      batch_size: See `embed`.
      progress: See `embed`.

    Returns:
      A description of the result, with the command to run next.

    Raises:
      UserError: Neither `weights` nor `run` is given, or the errors of `embed`.
    """
    from mmjax.checkpoints import find
    from mmjax.checkpoints.run_dir import RunDir

    if not (weights or run):
        raise UserError("Pass --run RUN to use the config and weights of a run, or --weights.")
    if run:
        cfg = RunDir(find.find(run)[0], create=False).read_config()
        config.apply(cfg, overrides)
    else:
        cfg = config.load(task, recipe, overrides)
    embed(
        cfg,
        modalities,
        weights=weights or [run],
        out=out,
        target=target,
        variants=variants,
        batch_size=batch_size,
        progress=progress,
    )
    return _describe(config.resolve(cfg), modalities, out=out, target=target)


def _describe(cfg: Config, modalities: Sequence[str], *, out: str, target: str) -> str:
    from mmjax.data.pipeline import precomputed_features
    from mmjax.neighbors.search_dataset import neighbors_command

    if cfg.task == "touch" and not target:
        options = [f"  --config.data.{modality}.features={out}" for modality in modalities]
        return "\n".join([f"{out}: to train with these features, add", *options])
    split = cfg.data.get("split", "train")
    lines = []
    for modality in modalities:
        path = precomputed_features.features_path(out, split, modality)
        command = neighbors_command(out, data=cfg.data["train"], split=split, modality=modality)
        lines += [f"{path}: features of {modality}.", f"Next: {command}"]
    return "\n".join(lines)


def embed(
    cfg: Config | Mapping[str, Any],
    modalities: Sequence[str],
    *,
    weights: Sequence[str],
    out: str,
    target: str = "",
    variants: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Writes the features of the training split of a config, one vector per example.

    Args:
      cfg: A config with one training dataset.
      modalities: Modalities to compute features of. For the touch task their towers must be frozen,
        unless there is a `target`.
      weights: Sources of the towers' weights, as in `config.init_from`.
      out: Directory of features. Features of other splits and modalities in it are kept.
      target: Modality to compare with: computes embeddings of length 1 in the shared space, instead
        of the pooled outputs of the towers. '' for none.
      variants: For the touch task, the number of random augmentations of each example; 0 uses the
        example as evaluation does.
      batch_size: Number of examples in a batch, over all devices.
      progress: Whether to show a progress bar.

    Raises:
      UserError: A tower is trained or lacks weights, an argument is invalid, or the data cannot be
        read.
    """
    from mmjax.data.pipeline import precomputed_features

    cfg = _single_view(config.resolve(cfg))
    leaves, where = load_sources(weights)
    built = make_predict_task(cfg, leaves)
    _check(built.task, built.cfg, modalities, target=target, variants=variants)
    mesh = sharding.make_mesh(
        **config.keywords(sharding.make_mesh, cfg.mesh, "mesh", provided=["devices"])
    )
    sharding.check_batch(batch_size, mesh, key="--batch-size")
    params, extra = _load(built.task, modalities, leaves, where, with_heads=bool(target))
    others = {name: None for name in INPUTS if name not in modalities}
    section = {**built.cfg.data, **others, "label": None, "limit": 0}
    split = section.get("split", "train")
    run = _Run(
        task=built.task,
        state=jax.device_put((params, extra), sharding.replicated(mesh)),
        mesh=mesh,
        outputs={m: f"{m}/{target}" if target else m for m in modalities},
        section=section,
        split=split,
        variants=variants,
        batch_size=batch_size,
        progress=progress,
    )
    paths = {m: precomputed_features.features_path(out, split, m) for m in modalities}
    info, count = run.write(paths)
    _write_description(
        out,
        dataset=info.name,
        num_examples={split: count},
        # Training checks the fingerprints: embeddings for a target do not replace a tower.
        towers={m: "" if target or m not in params else fingerprint(params[m]) for m in modalities},
        inputs={m: section[m] for m in modalities},
        made={"of": list(weights), "variants": variants} | ({"target": target} if target else {}),
    )


def _write_description(
    out: str, *, dataset: str, made: Mapping[str, Any], **entries: Mapping[str, Any]
) -> None:
    """Writes `features.json`; each of `entries` is added to that of the earlier description."""
    from mmjax.data.pipeline import precomputed_features

    before = precomputed_features.read_description(out) or {}
    merged = {name: {**before.get(name, {}), **entry} for name, entry in entries.items()}
    precomputed_features.write_description(out, dataset=dataset, made=made, **merged)


def _single_view(cfg: Config) -> Config:
    """Returns a config with one view of each image and one caption per example.

    Raises:
      UserError: The config has several training datasets.
    """
    data = dict(cfg.data)
    if not isinstance(data["train"], str):
        raise UserError(
            f"mmjax embed reads one dataset; config.data.train is {data['train']}. Select one with "
            "--config.data.train=…, and write each to a directory of its own."
        )
    if data.get("image"):
        data["image"] = {k: v for k, v in data["image"].items() if k != "crops"}
    if data.get("text"):
        data["text"] = {**data["text"], "candidates": 1}
    return dataclasses.replace(cfg, data=data)


def _check(
    task: Task, cfg: Config, modalities: Sequence[str], *, target: str, variants: int
) -> None:
    """Checks the arguments of `embed`."""
    if variants < 0:
        raise UserError(f"--variants must be at least 0; got {variants}.")
    frozen = getattr(task, "frozen", None)
    if variants and (frozen is None or target):
        found = f"--target={target}" if target else f"--task={cfg.task}"
        raise UserError(f"--variants is only for towers of --task=touch; got {found}. Remove it.")
    available = [name for name in INPUTS if cfg.data.get(name)]
    for modality in modalities:
        check_choice("MODALITY", modality, available)
        if frozen is not None and not target and modality not in frozen:
            raise UserError(
                f"The {modality} tower of this config is trained, so that its features change at "
                f"every step. Frozen towers: {', '.join(frozen) or 'none'}. Freeze it with "
                f"--config.optimizer.frozen=('^{modality}/',), or pass --target for embeddings."
            )


def _load(
    task: Task,
    modalities: Sequence[str],
    leaves: Mapping[str, np.ndarray],
    where: str,
    *,
    with_heads: bool,
) -> tuple[dict, dict]:
    """Returns `(params, extra)` with the towers of some modalities; other arrays may be zeros.

    Args:
      task: The task.
      modalities: Modalities with a required tower.
      leaves: {path: array} of the weights.
      where: Description of the weights.
      with_heads: Whether everything besides towers is needed too.

    Raises:
      UserError: The weights lack an array that is needed.
    """
    params, extra = jax.eval_shape(task.init, jax.random.key(0))
    parts = {"params": params, "extra": extra}
    target = init_from.target_of(parts)
    values, report = init_from.match(target, leaves)

    def needed(path: str) -> bool:
        part = path.removeprefix("extra/").split("/")[0]
        return part in (*modalities, "encoder") or (with_heads and part not in INPUTS)

    missing = [path for path in target if path not in values and needed(path)]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise UserError(
            f"{where} does not contain the towers of {', '.join(modalities)} of this config. "
            f"Missing: {', '.join(missing[:8])}{more}.\n{report}\nPass other --weights, or the "
            "config that they were trained with."
        )

    def put(path: str, leaf: Any) -> np.ndarray:
        return np.asarray(values.get(path, np.zeros(leaf.shape, leaf.dtype)), leaf.dtype)

    filled = init_from.replaced(parts, put)
    return filled["params"], filled["extra"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """Computes features of all examples of a split.

    Attributes:
      task: The task.
      state: Its `(params, extra)`, replicated on the mesh.
      mesh: The devices.
      outputs: {modality: output of the predict function 'features'}.
      section: The section `data` with only these modalities.
      split: The split.
      variants: Number of random augmentations of each example; 0 for none.
      batch_size: Number of examples in a batch.
      progress: Whether to show a progress bar.
    """

    task: Task
    state: tuple[dict, dict]
    mesh: jax.sharding.Mesh
    outputs: Mapping[str, str]
    section: Mapping[str, Any]
    split: str
    variants: int
    batch_size: int
    progress: bool

    def write(self, paths: Mapping[str, str]) -> tuple[Any, int]:
        """Writes the file of each modality when all are complete.

        Args:
          paths: {modality: file}.

        Returns:
          The description of the dataset, and the number of examples.

        Raises:
          UserError: An example cannot be used.
        """
        from mmjax.data.pipeline import precomputed_features

        arrays: dict[str, np.memmap] = {}
        function = self._function()
        with contextlib.ExitStack() as stack:
            partial = {m: stack.enter_context(files.atomic_path(path)) for m, path in paths.items()}
            for variant in range(max(self.variants, 1)):
                data = self._open(variant)
                written = np.zeros(data.num_examples, bool)
                for index, batch in enumerate(self._batches(data, variant)):
                    key = jax.random.fold_in(jax.random.key(variant), index)
                    with jax.set_mesh(self.mesh):
                        batch_on_mesh = sharding.make_global(batch, self.mesh)
                        outputs = jax.device_get(function(self.state, batch_on_mesh, key))
                    ids, valid = batch["example_id"], _valid(batch)
                    for modality, values in outputs.items():
                        if modality not in arrays:
                            shape = (self.variants,) if self.variants else ()
                            arrays[modality] = precomputed_features.create_array(
                                partial[modality], (len(written), *shape, values.shape[-1])
                            )
                        at = (ids[valid], variant) if self.variants else ids[valid]
                        arrays[modality][at] = values[valid]
                    written[ids[valid]] = True
                self._check_complete(written)
            for array in arrays.values():
                array.flush()
        return data.info, data.num_examples

    def _open(self, variant: int) -> Any:
        """Returns the data of a variant, in which each example occurs once per pass."""
        from mmjax.data.pipeline import loader

        if self.variants:
            return loader.make_train_data(self.section, batch_size=self.batch_size, seed=variant)
        return loader.make_eval_data(self.section, split=self.split, batch_size=self.batch_size)

    def _batches(self, data: Any, variant: int) -> Iterator[Batch]:
        """Yields the batches of one pass, with a progress bar."""
        count = math.ceil(data.num_examples / self.batch_size)
        title = self.split
        if self.variants:
            title += f", variant {variant + 1} of {self.variants}"
        missing = dict.fromkeys(self.outputs, 0)
        batches = itertools.islice(data.iterate(), count)
        for batch in tqdm(batches, title, count, disable=not self.progress):
            for modality in missing:
                mask = batch.get(f"{modality}_mask")
                if mask is not None and not self.variants:
                    absent = mask.reshape(len(mask), -1).max(axis=1) == 0
                    missing[modality] += int((absent & _valid(batch)).sum())
            yield batch
        for modality, number in missing.items():
            if number:
                logging.warning(
                    "%d of %d examples have no %s. Their features are those of an empty input.",
                    number,
                    data.num_examples,
                    modality,
                )

    def _function(self) -> Callable:
        """Returns the compiled function (state, batch, key) -> {modality: [B, D]}."""
        if self.variants:
            return jax.jit(
                lambda state, batch, key: {
                    modality: values.reshape(len(values), -1)
                    for modality, values in self.task.encode(*state, batch, key)[0].items()
                    if modality in self.outputs
                }
            )

        def features(state, batch, key):
            del key
            outputs = self.task.predict["features"](*state, batch)
            for modality, name in self.outputs.items():
                targets = [n.partition("/")[2] for n in outputs if n.startswith(f"{modality}/")]
                if "/" in name:
                    check_choice(f"--target for {modality}:", name.partition("/")[2], targets)
            return {m: _example_vectors(outputs[name], name) for m, name in self.outputs.items()}

        return jax.jit(features)

    def _check_complete(self, written: np.ndarray) -> None:
        """Raises UserError unless each example was read."""
        missing = np.flatnonzero(~written)
        if len(missing):
            raise UserError(
                f"{len(missing)} records of {self.section['train']}/{self.split} cannot be used; "
                f"the first is record {missing[0]}. `mmjax validate` reports the reasons. Build "
                "the dataset again without them."
            )


def _example_vectors(values: jax.Array, name: str) -> jax.Array:
    """Returns [B, D] from an output [B, V, D]: the mean of the views, of length 1 in a space."""
    vectors = values.astype("float32").mean(axis=1)
    if "/" not in name:
        return vectors
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norm, 1e-12)


def _valid(batch: Batch) -> np.ndarray:
    """Returns which examples of a batch are not padding or corrupt, bool [B]."""
    mask = batch.get("mask")
    return np.ones(len(batch["example_id"]), bool) if mask is None else mask > 0

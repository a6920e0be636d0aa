"""Features of towers, computed once: of frozen ones instead of at every step, or to find neighbors
by."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mmjax import init_from
from mmjax.convert.load import load_sources
from mmjax.errors import UserError
from mmjax.modalities import INPUTS


def embed_dataset(
    modalities: Sequence[str],
    *,
    out: str,
    recipe: str = "tvl",
    run: str = "",
    weights: Sequence[str] = (),
    overrides: Sequence[str] = (),
    variants: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> str:
    """Writes features for a recipe of --task=touch, or for a run, as `mmjax embed` does.

    Args:
      modalities: Modalities to compute features of.
      out: Directory of features to write.
      recipe: Name or .py file of a recipe; ignored with `run`.
      run: A run whose recipe, and by default whose weights, to use.
      weights: Sources of the weights, as in `config.init_from`.
      overrides: `--config.key=value` arguments.
      variants, batch_size, progress: See `embed`.

    Returns:
      A description of the result, with what to run next, for the user.

    Raises:
      UserError: Neither `weights` nor `run` is given, or `embed` fails.
    """
    from mmjax import config
    from mmjax.checkpoints import find
    from mmjax.checkpoints.run_dir import RunDir
    from mmjax.neighbors import search_dataset

    if not (weights or run):
        raise UserError(
            "Pass --weights SOURCE, or --run RUN to use the recipe and weights of a run."
        )
    if run:
        cfg = RunDir(find.find(run)[0], create=False).read_config()
        config.apply(cfg, overrides)
    else:
        cfg = config.load("touch", recipe, overrides)
    embed(
        cfg,
        modalities,
        weights=weights or [run],
        out=out,
        variants=variants,
        batch_size=batch_size,
        progress=progress,
    )
    if cfg.task == "touch":
        lines = [f"  --config.data.{modality}.features={out}" for modality in modalities]
        return "\n".join([f"{out}: to train with these features, add", *lines])
    lines = []
    for modality in modalities:
        command = search_dataset.neighbors_command(
            out, data=cfg.data.train, split=cfg.data.get("split", "train"), modality=modality
        )
        lines += [f"{out}: features of {modality}.", f"Next: {command}"]
    return "\n".join(lines)


def embed(
    cfg: Any,
    modalities: Sequence[str],
    *,
    weights: Sequence[str],
    out: str,
    variants: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Writes the features of the training split of a recipe.

    Args:
      cfg: a recipe with one source of data, of the touch or the guided task.
      modalities: whose features; those of the touch task must be frozen.
      weights: of the towers, as `config.init_from`.
      out: the folder; features of other splits and modalities in it stay.
      variants: see the command.
      batch_size: over all devices.
      progress: show a bar.

    Raises:
      UserError: a tower that is trained, weights that are not all there, or data that cannot be
        read.
    """
    from mmjax import config, sharding
    from mmjax.checkpoints.manager import fingerprint
    from mmjax.data.pipeline import precomputed_features
    from mmjax.data.pipeline.config import parse_config
    from mmjax.data.pipeline.tokenizer import open_tokenizer
    from mmjax.data_spec import DataSpec
    from mmjax.tasks import make_task

    cfg = config.resolve(cfg)
    data = copy.deepcopy(cfg.data)
    if not isinstance(data["train"], str):
        raise UserError(
            f"mmjax embed takes one dataset at a time, not {data['train']}: set "
            "--config.data.train=… and give each its own --out."
        )
    if variants < 0:
        raise UserError(f"--variants {variants} must be at least 0.")
    for name in INPUTS:
        (data.get(name) or {}).pop("features", None)  # they are made here
    if data.get("image"):  # of whole images, not of views
        data["image"].pop("crops", None)
    data.pop("pairs", None)
    text = open_tokenizer(parse_config(data)) if data.get("text") else None
    cfg = dataclasses.replace(cfg, data=data)
    if cfg.task == "guided":
        cfg = dataclasses.replace(cfg, loss={})  # compares views
    data_spec = DataSpec.of_config(cfg)
    task = make_task(cfg, dataclasses.replace(data_spec, vocab_size=text and text.vocab_size))
    frozen = getattr(task, "frozen", None)
    if frozen is None and variants:
        raise UserError(f"--variants are for --task=touch, not {cfg.task}: leave them out.")
    for modality in modalities:
        if frozen is not None and modality not in frozen:
            raise UserError(
                f"The tower of {modality} is not frozen in this recipe: its features change with "
                f"every step. Frozen: {', '.join(frozen) or 'none'} "
                f"(config.optimizer.frozen=('^{modality}/',) freezes it)."
            )
    sizes = config.keywords(sharding.make_mesh, cfg.mesh, "mesh", provided=["devices"])
    mesh = sharding.make_mesh(**sizes)
    sharding.check_batch(batch_size, mesh)
    params, extra = _load(task, modalities, weights)
    state = jax.device_put((params, extra), sharding.replicated(mesh))
    others = {name: None for name in INPUTS if name not in modalities}
    section = data | others | {"label": None, "limit": 0}
    split = data.get("split", "train")
    os.makedirs(os.path.join(out, split), exist_ok=True)
    paths = {m: precomputed_features.features_path(out, split, m) for m in modalities}
    arrays: dict[str, np.memmap] = {}
    function = _make_function(task, augmented=variants > 0)
    for variant in range(max(variants, 1)):
        opened = _make_data(section, split, variant if variants else None, batch_size)
        count, seen = opened.num_examples, np.zeros(opened.num_examples, bool)
        batches = tqdm(
            itertools.islice(opened.iterate(), math.ceil(count / batch_size)),
            f"{split}, variant {variant + 1} of {variants}" if variants else split,
            math.ceil(count / batch_size),
            disable=not progress,
        )
        for number, batch in enumerate(batches):
            rows = batch["example_id"]
            real = batch.get("mask", np.ones(len(rows))) > 0
            key = jax.random.fold_in(jax.random.key(variant), number)
            with jax.set_mesh(mesh):
                outputs = jax.device_get(function(state, sharding.make_global(batch, mesh), key))
            for modality in modalities:
                values = outputs[modality].reshape(len(rows), -1)
                if modality not in arrays:
                    shape = (
                        (count, variants, values.shape[1]) if variants else (count, values.shape[1])
                    )
                    arrays[modality] = precomputed_features.create_array(
                        f"{paths[modality]}.partial", shape
                    )
                at = (rows[real], variant) if variants else rows[real]
                arrays[modality][at] = values[real]
            seen[rows[real]] = True
        if not seen.all():
            raise UserError(
                f"Record {np.flatnonzero(~seen)[0]} of {data['train']}/{split} cannot be used "
                f"({(~seen).sum()} in all; `mmjax validate` says why): build the dataset again "
                "without them."
            )
    for modality, array in arrays.items():
        array.flush()
        os.replace(f"{paths[modality]}.partial", paths[modality])
    before = precomputed_features.read_description(out) or {}
    precomputed_features.write_description(
        out,
        dataset=opened.info.name,
        num_examples=before.get("num_examples", {}) | {split: count},
        towers=before.get("towers", {})
        | {modality: fingerprint(params[modality]) for modality in modalities},
        inputs=before.get("inputs", {}) | {modality: section[modality] for modality in modalities},
        made={"of": list(weights), "variants": variants},
    )


def _make_data(section: Mapping[str, Any], split: str, variant: int | None, batch_size: int) -> Any:
    """Data that hold every example once: drawn as for training if there is the number of a variant,
    else as in evaluation."""
    from mmjax.data.pipeline import loader

    if variant is None:
        return loader.make_eval_data(section, split=split, batch_size=batch_size)
    return loader.make_train_data(section, batch_size=batch_size, seed=variant)


def _make_function(task: Any, *, augmented: bool) -> Callable:
    """(state, batch, key) → {modality: features}, compiled."""
    if not augmented:
        predict = task.predict["features"]
        return jax.jit(lambda state, batch, key: predict(*state, batch))
    return jax.jit(lambda state, batch, key: task.encode(*state, batch, key)[0])


def _load(task: Any, modalities: Sequence[str], weights: Sequence[str]) -> tuple[dict, dict]:
    """`(params, extra)` in which the towers of these modalities are those of the weights.

    Raises:
      UserError: they do not hold all of a tower.
    """
    leaves, where = load_sources(weights)
    params, extra = jax.eval_shape(task.init, jax.random.key(0))
    parts = {"params": params, "extra": extra}
    target = init_from.target_of(parts)
    values, report = init_from.match(target, leaves)
    lacking = [
        path
        for path in target
        if path not in values and path.removeprefix("extra/").split("/")[0] in modalities
    ]
    if lacking:
        raise UserError(
            f"{where} does not hold the towers of {', '.join(modalities)} of this recipe: "
            f"{', '.join(lacking[:8])} …\n{report}"
        )

    def put(path: str, leaf: Any) -> np.ndarray:
        return np.asarray(values.get(path, np.zeros(leaf.shape, leaf.dtype)), leaf.dtype)

    made = init_from.replaced(parts, put)
    return made["params"], made["extra"]

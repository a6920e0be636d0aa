"""`--task=probe`: heads for an end task, trained on the features of a frozen image encoder.

Several heads are trained at once on the same features: one per training configuration
(`config.optimizer.groups`) and seed. They do not affect each other. docs/probe.md is the guide.

Source: Kotar et al. 2021, Contrasting Contrastive Self-Supervised Representation Learning
Pipelines, arXiv 2103.14005 (pyVTAB).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.config import Config
from mmjax.data_spec import DataSpec
from mmjax.end_tasks.registry import find
from mmjax.errors import UserError
from mmjax.losses import end_task as losses
from mmjax.models.decoders.base import EMBEDDING
from mmjax.models.decoders.registry import build_head
from mmjax.preprocess.color import jitter_frames
from mmjax.preprocess.example_random import example_keys
from mmjax.state import ModelDef
from mmjax.tasks.trunk import Trunk

TRUNK, HEADS = "trunk", "heads"  # parts of the parameters
DEFAULT_GROUP = "default"  # the only configuration of a config without optimizer.groups


class Probe:
    """Heads on the features of an encoder.

    The features are read from a feature table (`config.data.train=features:…`), or computed in each
    step by the encoder `config.model.trunk`.

    Config sections: `data.end_task` (`name`; `seeds`: number of heads per configuration);
    `model`: `trunk` (from `mmjax.tasks.trunk.trunk_section`; None with a feature table) and `head`
    (`name` and options of `mmjax.models.decoders`; by default that of the end task); `loss` (see
    `mmjax.losses.end_task`; by default that of the end task).

    Parameters: `heads/CONFIGURATION/…`, with a leading axis of seeds, and `trunk/…`.

    Attributes:
      end_task: The declaration of the end task.
      groups: Names of the training configurations.
      num_seeds: Number of heads per configuration.

    Raises:
      UserError: The encoder lacks what the head needs, or the data lack labels.
    """

    dtype = "float32"
    init_prefix = TRUNK

    def __init__(self, cfg: Config, data_spec: DataSpec):
        section, model = cfg.data.get("end_task") or {}, dict(cfg.model)
        if "name" not in section:
            raise UserError("--task=probe needs an end task. Set config.data.end_task.name.")
        self.end_task = find(section["name"])
        self.num_seeds = section.get("seeds", 1)
        self.groups = tuple(cfg.optimizer.get("groups") or (DEFAULT_GROUP,))
        self._loss = dict(cfg.loss) or dict(self.end_task.loss)
        trunk, head = model.pop(TRUNK, None), dict(model.pop("head", None) or {})
        if model:
            raise UserError(
                f"config.model.{next(iter(model))} is not an option of --task=probe. Options: "
                f"{TRUNK}, head."
            )
        self._trunk = Trunk(trunk) if trunk else None
        self._shapes = self._feature_shapes(data_spec)
        num_outputs = self.end_task.num_outputs or data_spec.num_classes
        if not num_outputs:
            raise UserError(
                f"The number of classes of {self.end_task.name} is unknown: the data have no "
                "labels. Set config.data.label."
            )
        self.num_outputs = num_outputs
        name = head.pop("name", "") or self.end_task.head
        self.model = ModelDef(
            lambda rngs: build_head(
                name,
                num_outputs=num_outputs,
                embedding_dim=self._shapes.get(EMBEDDING, (0, 0))[-1],
                num_images=self.end_task.num_images,
                channels={k: shape[-1] for k, shape in self._shapes.items() if k != EMBEDDING},
                rngs=rngs,
                where="model.head",
                **head,
            )
        )
        self._needs = set(self.model.module.needs)
        self.predict = {"statistics": self._statistics, "outputs": self._outputs}

    def _feature_shapes(self, data_spec: DataSpec) -> dict[str, tuple[int, ...]]:
        """Returns {key: shape of the features of one example}."""
        count = self.end_task.num_images
        if self._trunk is None:
            if EMBEDDING not in data_spec.batch:
                raise UserError(
                    "--task=probe needs an encoder. Set --override_checkpoint, or train on a "
                    "feature table (config.data.train=features:DIRECTORY)."
                )
            return {EMBEDDING: (count, data_spec.batch[EMBEDDING].shape[-1] // count)}
        images = data_spec.batch["image"]
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
        names = self._trunk.features() if self.end_task.pixelwise else (EMBEDDING,)
        shapes = jax.eval_shape(
            lambda params, extra, x: self._encoded(params, extra, x, names),
            *self._trunk.abstract(),
            one,
        )
        return {key: leaf.shape[1:] for key, leaf in shapes.items()}

    def init(self, key: jax.Array) -> tuple[dict, dict]:
        """Returns randomly initialized `(params, extra)`. A seed is the same in all groups."""
        keys = jax.random.split(jax.random.fold_in(key, 1), self.num_seeds)
        params, extra = jax.vmap(self.model.init)(keys)
        parts = [{HEADS: dict.fromkeys(self.groups, tree)} for tree in (params, extra)]
        parts = jax.tree.map(jnp.copy, parts)
        if self._trunk is not None:
            for part, tree in zip(parts, self._trunk.task.init(key), strict=True):
                part[TRUNK] = tree
        return tuple(parts)

    def finish_init(self, params, extra):
        """Returns `(params, extra)` with the parts of heads that start as copies of the encoder."""
        finish = getattr(self.model.module, "init_from_encoder", None)
        if finish is None or self._trunk is None:
            return params, extra
        tower = [self._trunk.tower(tree.get(TRUNK, {})) for tree in (params, extra)]
        heads = {
            group: finish(params[HEADS][group], extra[HEADS][group], *tower)
            for group in self.groups
        }
        return tuple(
            {**part, HEADS: {group: pair[index] for group, pair in heads.items()}}
            for index, part in enumerate((params, extra))
        )

    def encode(self, params, extra, batch, key):
        """Returns {configuration: predictions [S · B, …]}; see `TableTrainData` for the order."""
        features, new = self._features(params, extra, batch, key), {}
        size = self._output_size(batch)
        by_seed = jax.tree.map(lambda x: x.reshape(self.num_seeds, -1, *x.shape[1:]), features)

        def apply(params, extra, features):
            module = self.model.bind(_quarantined(params), extra)
            return module(features, size=size, train=True), self.model.extra_of(module)

        outputs = {}
        for group in self.groups:
            statistics = extra[HEADS][group]
            outputs[group], new[group] = jax.vmap(apply)(params[HEADS][group], statistics, by_seed)
        outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        return outputs, {**extra, HEADS: new}

    def objective(self, params, extra, features, batch, key):
        """Returns the sum of the losses of all heads that are finite.

        Metrics: `loss/CONFIGURATION`, the mean over its seeds, and `diverged`, the number of heads
        with a loss that is not finite. Their gradient is 0.
        """
        del params, key
        target = batch["label" if "target" not in batch else "target"]
        target = target.reshape(self.num_seeds, -1, *target.shape[1:])
        total, diverged, metrics = jnp.float32(0), jnp.float32(0), {}
        for group in self.groups:
            outputs = features[group]
            outputs = outputs.reshape(*target.shape[:2], *outputs.shape[1:])
            values = jax.vmap(lambda o, t: losses.loss(o, t, **self._loss))(outputs, target)
            finite = jnp.isfinite(values)
            total += jnp.where(finite, values, 0.0).sum()
            diverged += (~finite).sum()
            metrics[f"loss/{group}"] = (jnp.where(finite, values, 0.0).sum(), finite.sum())
        metrics["diverged"] = (diverged, jnp.float32(1))
        return total, (extra, metrics)

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Returns the operations of one training step."""
        if self._trunk is None:
            count, size, encoder = batch[EMBEDDING].shape[0], None, 0.0
        else:
            count, size = batch["image"].shape[0], self._output_size(batch)
            encoder = self._trunk.flops(batch["image"].shape)
        head = self.model.module.flops(self._shapes, size=size)
        return encoder + 3 * count * len(self.groups) * head

    def _output_size(self, batch: Mapping[str, Any]) -> tuple[int, int] | None:
        return tuple(batch["image"].shape[2:4]) if self.end_task.pixelwise else None

    def _features(self, params, extra, batch, key) -> dict[str, jax.Array]:
        """Returns the features of a batch; `key` is None in evaluation."""
        if self._trunk is None:
            table = batch[EMBEDDING].astype(jnp.float32)
            return {EMBEDDING: table.reshape(len(table), *self._shapes[EMBEDDING])}
        images = batch["image"]
        if key is not None and self.end_task.color_jitter:
            images = jitter_frames(example_keys(key, batch, len(images)), images)
        return self._encoded(params[TRUNK], extra[TRUNK], images, self._needs)

    def _encoded(self, params, extra, images, names) -> dict[str, jax.Array]:
        """Returns the features with these names of images uint8 [B, T, H, W, 3]."""
        result = {}
        if EMBEDDING in names:
            result[EMBEDDING] = self._trunk.embedding(params, extra, images)
        if set(names) - {EMBEDDING}:
            result |= self._trunk.maps(params, extra, images)
        return result

    def _each_head(
        self, params, extra, batch, function: Callable[[jax.Array], Any]
    ) -> dict[str, Any]:
        """Returns {configuration: results of a function of predictions [B, …]}.

        The results have the shape [B, S, …].
        """
        features = self._features(params, extra, batch, None)
        size = self._output_size(batch)

        def apply(params, extra):
            module = self.model.bind(params, extra)
            return function(module(features, size=size, train=False))

        return {
            group: jax.vmap(apply, out_axes=1)(params[HEADS][group], extra[HEADS][group])
            for group in self.groups
        }

    def _outputs(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns {configuration: predictions [B, S, …]}."""
        return self._each_head(params, extra, batch, lambda outputs: outputs)

    def _statistics(self, params, extra, batch) -> dict[str, jax.Array]:
        """Returns {configuration/statistic: [B, S, …]}; see `mmjax.losses.end_task`."""
        target = batch["label" if "target" not in batch else "target"]

        def statistics(outputs):
            return losses.statistics(
                outputs,
                target,
                target_type=self.end_task.target,
                loss=self._loss,
                depth=self.end_task.depth or (1.0, 0.0),
            )

        results = self._each_head(params, extra, batch, statistics)
        return {
            f"{group}/{name}": value
            for group, values in results.items()
            for name, value in values.items()
        }


@jax.custom_vjp
def _quarantined(params: Any) -> Any:
    """Returns the parameters of a head, with a gradient of 0 if that has no finite norm.

    A head that diverges then does not stop the others, although all share one loss and one norm.
    """
    return params


def _finite_or_zero(_: None, grads: Any) -> tuple[Any]:
    limit = jnp.finfo(jnp.float32).max / 2**20  # of squares, so that their sum over heads is finite
    keep = optax.global_norm(grads) ** 2 < limit
    return (jax.tree.map(lambda g: jnp.where(keep, g, 0.0), grads),)


_quarantined.defvjp(lambda params: (params, None), _finite_or_zero)


def num_parameters(task: Probe) -> int:
    """Returns the number of parameters of one head."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(task.model.params))

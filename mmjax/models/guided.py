"""The model of `--task=guided`: an image backbone, heads, and the state of losses with memory.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248 (LGSSL), and its published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax import config
from mmjax.errors import UserError
from mmjax.losses.similarity import normalize, products
from mmjax.models.blocks.heads import ProjectionMLP
from mmjax.models.blocks.initializers import fan_in_uniform
from mmjax.models.blocks.memory import Bank, Queues
from mmjax.models.multi_tower import MultiTower
from mmjax.models.towers.registry import Spec

# Names of heads with a special input; all others project image features.
TEXT, PREDICTOR, PROJECTION = "text", "predictor", "projection"
# Arguments of heads that configs do not set.
_PROVIDED = ("in_features", "param_dtype", "rngs")


class Prototypes(nnx.Module):
    """Learned directions to which embeddings are assigned (SwAV).

    Only their directions matter: vectors are initialized with length 1 and normalized when used.
    LGSSL's published code normalizes the parameters before each step instead, which keeps the
    effective learning rate constant. Here it decreases as the vectors grow.

    Args:
      in_features: Width of the embeddings.
      count: Number of prototypes.
      rngs: Random number generators for initialization.
    """

    def __init__(self, *, in_features: int, count: int, rngs: nnx.Rngs):
        kernel = fan_in_uniform(in_features)(rngs.params(), (in_features, count))
        self.kernel = nnx.Param(normalize(kernel.T).T)

    def __call__(self, x: jax.Array, *, learned: jax.Array | bool = True) -> jax.Array:
        """Returns the cosine similarities with the prototypes, [B, K].

        Args:
          x: Embeddings, [B, D].
          learned: Whether the prototypes get a gradient.
        """
        kernel = self.kernel[...]
        kernel = jnp.where(learned, kernel, jax.lax.stop_gradient(kernel))
        return products(normalize(x), normalize(kernel.T))


class Guided(MultiTower):
    """An image tower, optionally a text tower, and heads by name.

    Args:
      towers: {'image': spec of `build_tower`}, and optionally 'text'.
      heads: {name: options of `ProjectionMLP`}. 'text' projects text features, 'predictor' projects
        the output of 'projection', and all other heads project image features.
      text_features: Width of precomputed text features, if there is no text tower.
      prototypes: Number of prototypes in the space of the head 'projection'; 0 for none.
      logit_scale: Initial value of the parameter of this name, the logarithm of the factor of
        image-text similarities. It exists if there is a head 'text'.
      banks: {name: (size, head)}: memory banks of outputs of a head. The name is that of
        a loss term; its `bank_size` sets the size.
      queues: Options of `Queues` except for its width; None for none.
      rngs: Random number generators for initialization.
      **shared: Options that apply to all towers (dtype, remat, …).

    Raises:
      UserError: The errors of `MultiTower`, or the input of a head is missing.
    """

    OPTIONS = ("image", "text", "heads", "text_features", "prototypes", "logit_scale")

    def __init__(
        self,
        *,
        towers: Mapping[str, Spec],
        heads: Mapping[str, Mapping[str, Any]] | None = None,
        text_features: int = 0,
        prototypes: int = 0,
        logit_scale: float = math.log(1 / 0.07),
        banks: Mapping[str, tuple[int, str]] | None = None,
        queues: Mapping[str, Any] | None = None,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        super().__init__(towers=towers, rngs=rngs, **shared)
        if text_features and "text" in towers:
            raise UserError(
                f"config.model.text_features={text_features} is the width of precomputed text "
                "features, but the model has a text tower (config.model.text). Remove one of them."
            )
        widths = {"image": self.image.out_features, "text": text_features}
        if "text" in self.modalities:
            widths["text"] = self.text.out_features
        self.heads = nnx.Dict()
        # The predictor needs the width of the projection.
        for name in sorted(heads or {}, key=lambda name: name == PREDICTOR):
            self.heads[name] = ProjectionMLP(
                in_features=self._input_width(name, widths), rngs=rngs, **heads[name]
            )
        if prototypes < 0:
            raise UserError(f"config.model.prototypes must be at least 0; got {prototypes}.")
        if prototypes:
            width = self.width_of(PROJECTION, "config.model.prototypes")
            self.prototypes = Prototypes(in_features=width, count=prototypes, rngs=rngs)
        if TEXT in self.heads:
            self.logit_scale = nnx.Param(jnp.float32(logit_scale))
        if banks:
            self.banks = nnx.Dict(
                {
                    name: Bank(
                        size=size,
                        features=self.width_of(head, f"config.loss.{name}"),
                        size_key=f"config.loss.{name}.bank_size",
                        rngs=rngs,
                    )
                    for name, (size, head) in banks.items()
                }
            )
        if queues:
            self.queues = Queues(
                features=self.width_of(PROJECTION, "config.loss.swav"),
                size_key="config.loss.swav.queue_length",
                **queues,
            )

    def _input_width(self, name: str, widths: Mapping[str, int]) -> int:
        """Returns the width of a head's input."""
        if name == PREDICTOR:
            return self.width_of(PROJECTION, f"config.model.heads.{PREDICTOR}")
        width = widths["text" if name == TEXT else "image"]
        if not width:
            raise UserError(
                f"config.model.heads.{name} needs text features. Set a text tower "
                "(config.model.text), or precomputed features (config.data.text.features) and "
                "their width (config.model.text_features)."
            )
        return width

    def width_of(self, head: str, user: str) -> int:
        """Returns the width of a head's output.

        Args:
          head: Name of the head.
          user: Config key that needs the head, for error messages.

        Raises:
          UserError: The head does not exist.
        """
        if head not in self.heads:
            heads = ", ".join(self.heads) or "none"
            raise UserError(
                f"{user} needs the head {head!r}. config.model.heads has: {heads}. Add "
                f"config.model.heads.{head}."
            )
        return self.heads[head].out_features

    def encode(
        self, inputs: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Returns pooled features, {modality: float32 [N_m, D_m]}, of each modality in `inputs`.

        Args:
          inputs: {modality: array}: image float [N, H, W, 3], normalized; text int [N, W].
          key: Random key in training, in which BatchNorm uses the batch; None in evaluation.
        """
        return self.run(inputs, key)[0]

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Returns the floating-point operations of towers and heads for one example.

        Args:
          shapes: {modality: shape of its input without batch}; further axes in front (views,
            captions) multiply.
          train: Whether to count forward and backward (3 times forward).
        """
        total = 0.0
        for modality, shape in shapes.items():
            count = 1
            if modality in self.modalities:
                operations, count = self.tower_flops(modality, shape, train=train)
                total += operations
            for name, head in self.heads.items():
                if (name == TEXT) == (modality == "text"):
                    total += count * head.flops()
        return total * (3 if train else 1)


def make_model(
    *,
    image: Spec = "resnet50",
    text: Spec | None = None,
    heads: Mapping[str, Mapping[str, Any] | None] | None = None,
    prototypes: int = 0,
    **options: Any,
) -> Callable[[nnx.Rngs], Guided]:
    """Returns a constructor of `Guided` for `mmjax.state.ModelDef`.

    Args:
      image: Spec of the image tower: a name, or a dict of `name` and options.
      text: Spec of the text tower; None omits it.
      heads: See `Guided`; a head that is None is omitted.
      prototypes: See `Guided`.
      **options: Other arguments of `Guided`, and options that apply to all towers (dtype, remat,
        …).

    Raises:
      UserError: An unknown or missing option of a head.
    """
    towers = {"image": image} | ({} if text is None else {"text": text})
    heads = {
        name: _head_options(name, head) for name, head in (heads or {}).items() if head is not None
    }
    return lambda rngs: Guided(
        towers=towers, heads=heads, prototypes=prototypes, rngs=rngs, **options
    )


def _head_options(name: str, head: Mapping[str, Any]) -> dict[str, Any]:
    where = f"model.heads.{name}"
    if "dims" not in head:
        raise UserError(
            f"config.{where}.dims is missing. Set it to the width of each layer, for example "
            "(2048, 128)."
        )
    return config.keywords(ProjectionMLP, head, where, provided=_PROVIDED)

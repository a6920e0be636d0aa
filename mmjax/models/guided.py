"""The model of self-supervised images: a backbone, heads, and what the losses remember.

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
from mmjax.models.towers.registry import Spec, Towers

# Heads that take texts' features; `predictor` takes what `projection` gives, others images'.
_OF_TEXT = "text"
_GIVEN = ("in_features", "param_dtype", "rngs")  # arguments of heads that configs do not set
PREDICTOR, PROJECTION = "predictor", "projection"


class Prototypes(nnx.Module):
    """Directions that embeddings are assigned to (SwAV).

    Their lengths, 1 at the start, are of no importance: they are divided out. LGSSL's published
    code sets the parameters themselves to length 1 before each step, so that prototypes keep
    turning as fast as at the start; here they turn the slower the longer they grow.
    """

    def __init__(self, *, in_features: int, count: int, rngs: nnx.Rngs):
        kernel = fan_in_uniform(in_features)(rngs.params(), (in_features, count))
        self.kernel = nnx.Param(normalize(kernel.T).T)

    def __call__(self, x: jax.Array, *, learned: jax.Array | bool = True) -> jax.Array:
        """[B, D] → cosines [B, K]; where not `learned`, the prototypes get no gradient."""
        kernel = self.kernel[...]
        kernel = jnp.where(learned, kernel, jax.lax.stop_gradient(kernel))
        return products(normalize(x), normalize(kernel.T))


class Guided(Towers):
    """Towers of images and perhaps texts, with heads by name.

    Args:
      towers: {'image': spec, 'text': spec}; text may be left out.
      heads: {name: options of `ProjectionMLP`}: 'text' takes the features of texts, 'predictor'
        what 'projection' gives, any other name the features of images.
      text_features: width of the texts' features if there is no tower for them.
      prototypes: how many there are in the space of 'projection'; 0: none.
      logit_scale: start of the parameter of this name, the logarithm of what cosines of images
        and texts are multiplied by; it exists if there is a head 'text'.
      banks: {name: (rows, head)}: a memory bank of what this head gives.
      queues: options of `Queues`, but its width; None: none.
      rngs: for initialization.
      **shared: options for all towers (dtype, remat, …).

    Raises:
      UserError: what `Towers` raises, or a head without its input.
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
                f"config.model.text_features={text_features} is for texts that come as features: "
                "leave it or the tower (config.model.text) out."
            )
        widths = {"image": self.image.out_features, "text": text_features}
        if "text" in self.modalities:
            widths["text"] = self.text.out_features
        self.heads = nnx.Dict()
        # The predictor stands on the projection, whatever the order in the config.
        for name in sorted(heads or {}, key=lambda name: name == PREDICTOR):
            self.heads[name] = ProjectionMLP(
                in_features=self._input_of(name, widths), rngs=rngs, **heads[name]
            )
        if prototypes < 0:
            raise UserError(f"config.model.prototypes={prototypes} must be at least 0 (none).")
        if prototypes:
            width = self.width_of(PROJECTION, "config.model.prototypes")
            self.prototypes = Prototypes(in_features=width, count=prototypes, rngs=rngs)
        if _OF_TEXT in self.heads:
            self.logit_scale = nnx.Param(jnp.float32(logit_scale))
        if banks:
            self.banks = nnx.Dict(
                {
                    name: Bank(size=size, features=self.width_of(head, f"{name}'s bank"), rngs=rngs)
                    for name, (size, head) in banks.items()
                }
            )
        if queues:
            self.queues = Queues(features=self.width_of(PROJECTION, "SwAV's queue"), **queues)

    def _input_of(self, name: str, widths: Mapping[str, int]) -> int:
        if name == PREDICTOR:
            return self.width_of(PROJECTION, f"config.model.heads.{PREDICTOR}")
        width = widths["text" if name == _OF_TEXT else "image"]
        if not width:
            raise UserError(
                f"config.model.heads.{name} takes the features of texts, and there are none: set a "
                "tower (config.model.text), or a folder of features (config.data.text.features) "
                "and their width (config.model.text_features)."
            )
        return width

    def width_of(self, head: str, who: str) -> int:
        """Width of what a head gives.

        Args:
          head: its name.
          who: what needs it, for messages.
        """
        if head not in self.heads:
            have = ", ".join(self.heads) or "none"
            raise UserError(f"{who} needs the head {head!r}; config.model.heads has: {have}.")
        return self.heads[head].out_features

    def encode(
        self, inputs: Mapping[str, jax.Array], *, key: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Pooled features {modality: float32 [N_m, D_m]} of each modality given.

        Args:
          inputs: image float [N, H, W, 3], normalized, text int [N, W].
          key: randomness, and the sign of training for BatchNorm; None for evaluation.
        """
        return self.run(inputs, key)[0]

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Operations for one example: of the towers and heads, three times forward in training.

        Args:
          shapes: {modality: shape of its input without batch}; axes in front (views, captions)
            multiply.
        """
        total = 0.0
        for modality, shape in shapes.items():
            count = 1
            if modality in self.modalities:
                operations, count = self.tower_flops(modality, shape, train=train)
                total += operations
            of_text = modality == "text"
            for name, head in self.heads.items():
                total += count * head.flops() if (name == _OF_TEXT) == of_text else 0.0
        return total * (3 if train else 1)


def make_model(
    *,
    image: Spec = "resnet50",
    text: Spec | None = None,
    heads: Mapping[str, Mapping[str, Any] | None] | None = None,
    prototypes: int = 0,
    **options: Any,
) -> Callable[[nnx.Rngs], Guided]:
    """A constructor of `Guided`, for `mmjax.state.ModelDef`.

    Args:
      image, text: a tower's name, or a dict of `name` and options; None leaves text out.
      heads: see `Guided`; None for one that is left out.
      prototypes: see `Guided`.
      **options: of `Guided` and of all towers, e.g. dtype, remat.
    """
    towers = {"image": image} | ({} if text is None else {"text": text})
    heads = {name: _checked(name, head) for name, head in (heads or {}).items() if head is not None}
    return lambda rngs: Guided(
        towers=towers, heads=heads, prototypes=prototypes, rngs=rngs, **options
    )


def _checked(name: str, head: Mapping[str, Any]) -> dict[str, Any]:
    where = f"model.heads.{name}"
    if "dims" not in head:
        raise UserError(f"config.{where}.dims is missing: the width of each layer, (2048, 128).")
    return config.keywords(ProjectionMLP.__init__, head, where, provided=_GIVEN)

"""TVL's model: towers of touch, images and text whose features meet in one space.

Source: TVL, Fu et al. 2024, "A Touch, Vision, and Language Dataset for Multimodal Alignment",
arXiv 2402.13232, and its published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError, unknown
from mmjax.models.towers.registry import Spec, Towers, as_dict

MODALITIES = ("touch", "image", "text")
# Lengths below this count as 0 in the normalization.
_LEAST_LENGTH = 1e-12


class TVL(Towers):
    """Towers, the scale of their similarities, and optionally a linear head for each.

    Args:
      towers: {modality: spec}; of touch, image and text.
      common_dim: width of a space in which all modalities get a linear map without bias, `heads`;
        the touch tower then has no projection of its own. 0 compares the towers' features.
      logit_scale: start of the parameter of this name, the logarithm of what similarities are
        multiplied by.
      logit_bias: start of the parameter that is added to them; None has none.
      rngs: for initialization.
      **shared: options for all towers (dtype, remat, …).

    Raises:
      UserError: what `Towers` raises, fewer than two towers, or widths that differ.
    """

    OPTIONS = (*MODALITIES, "common_dim", "logit_scale", "logit_bias")

    def __init__(
        self,
        *,
        towers: Mapping[str, Spec],
        common_dim: int = 0,
        logit_scale: float = math.log(1 / 0.07),
        logit_bias: float | None = None,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        if common_dim < 0:
            raise UserError(f"common_dim must be 0 (none) or a width, not {common_dim}.")
        if common_dim and "touch" in towers:
            towers = {**towers, "touch": dict(as_dict(towers["touch"]), projection=0)}
        super().__init__(towers=towers, rngs=rngs, **shared)
        widths = {modality: getattr(self, modality).out_features for modality in self.modalities}
        if common_dim:
            self.heads = nnx.Dict(
                {
                    modality: nnx.Linear(
                        width,
                        common_dim,
                        use_bias=False,
                        kernel_init=nnx.initializers.normal(width**-0.5),
                        rngs=rngs,
                    )
                    for modality, width in widths.items()
                }
            )
        elif len(set(widths.values())) > 1:
            raise UserError(
                "Features of different widths cannot be compared: "
                f"{', '.join(f'{m} {width}' for m, width in widths.items())}. Set the projection "
                "of a tower (config.model.touch.projection), or common_dim (config.model)."
            )
        self.logit_scale = nnx.Param(jnp.float32(logit_scale))
        if logit_bias is not None:
            self.logit_bias = nnx.Param(jnp.float32(logit_bias))

    def encode(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        frozen: Collection[str] = (),
    ) -> dict[str, jax.Array]:
        """Pooled features {modality: float32 [N_m, D_m]} of each modality given.

        Args:
          inputs: {modality: array [N_m, …]}: touch and image float [N, H, W, 3], normalized, text
            int [N, W]. Batch sizes may differ.
          key: randomness of dropout and stochastic depth, and the sign of training for BatchNorm;
            None for evaluation.
          frozen: modalities whose towers always run as in evaluation, and get no gradient.
        """
        self._known(frozen)
        pooled, _ = self.run(inputs, key, frozen=frozen)
        return {m: jax.lax.stop_gradient(x) if m in frozen else x for m, x in pooled.items()}

    def project(self, pooled: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Points on the unit sphere {modality: float32 [N_m, d]} that are compared by products."""
        out = {}
        for modality, x in pooled.items():
            x = x.astype(jnp.float32)
            x = self.heads[modality](x) if hasattr(self, "heads") else x
            square = jnp.sum(x * x, axis=-1, keepdims=True)
            out[modality] = x * jax.lax.rsqrt(jnp.maximum(square, _LEAST_LENGTH**2))
        return out

    def flops(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        train: bool = False,
        frozen: Collection[str] = (),
    ) -> float:
        """Operations for one example.

        Args:
          shapes: {modality: shape of its input without batch}; axes in front (captions [L, W])
            multiply.
          train: count forward and backward, three times forward, for all but the `frozen` towers.
          frozen: as in `encode`.
        """
        self._known(frozen)
        total = 0.0
        for modality, shape in shapes.items():
            operations, count = self.tower_flops(modality, shape, train=train)
            total += operations * (3 if train and modality not in frozen else 1)
            if hasattr(self, "heads"):
                head = self.heads[modality]
                total += count * 2.0 * head.in_features * head.out_features * (3 if train else 1)
        return total

    def _known(self, frozen: Collection[str]) -> None:
        for modality in frozen:
            if modality not in self.modalities:
                raise unknown("frozen modality", modality, self.modalities)


def make_model(
    *,
    touch: Spec | None = None,
    image: Spec | None = None,
    text: Spec | None = None,
    common_dim: int = 0,
    logit_scale: float = math.log(1 / 0.07),
    logit_bias: float | None = None,
    **shared: Any,
) -> Callable[[nnx.Rngs], TVL]:
    """A constructor of `TVL`, for `mmjax.state.ModelDef`.

    Args:
      touch, image, text: a tower's name, a dict of `name` and options, None to leave it out.
      common_dim, logit_scale, logit_bias: of `TVL`.
      **shared: options for all towers, e.g. dtype, remat, scan_unroll.
    """
    given = dict(zip(MODALITIES, (touch, image, text), strict=True))
    towers = {modality: spec for modality, spec in given.items() if spec is not None}
    options = dict(common_dim=common_dim, logit_scale=logit_scale, logit_bias=logit_bias)
    return lambda rngs: TVL(towers=towers, rngs=rngs, **options, **shared)

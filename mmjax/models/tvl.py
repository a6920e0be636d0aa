"""TVL's model: touch, image and text towers with a shared embedding space.

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

from mmjax.errors import UserError, check_choice
from mmjax.models.multi_tower import MultiTower
from mmjax.models.towers.registry import Spec, as_dict

MODALITIES = ("touch", "image", "text")
# Smallest norm by which features are divided.
_MIN_NORM = 1e-12


class TVL(MultiTower):
    """Touch, image and text towers, a learned scale of similarities, and optional linear heads.

    Args:
      towers: {modality: spec of `build_tower`} for some of touch, image and text.
      common_dim: Width of a space into which each modality is projected by a linear map without
        bias, `heads`; the touch tower then has no projection of its own. 0 compares the features of
        the towers.
      logit_scale: Initial value of the parameter of this name, the logarithm of the factor of
        similarities.
      logit_bias: Initial value of the parameter that is added to scaled similarities. None omits
        it.
      rngs: Random number generators for initialization.
      **shared: Options that apply to all towers (dtype, remat, …).

    Raises:
      UserError: The errors of `MultiTower`, or feature widths that differ.
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
            raise UserError(
                f"config.model.common_dim must be a width, or 0 for none; got {common_dim}."
            )
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
                "The towers have features of different widths, which cannot be compared: "
                f"{', '.join(f'{m} {width}' for m, width in widths.items())}. Set the "
                "projection of a tower (config.model.touch.projection) or config.model.common_dim."
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
        """Returns pooled features, {modality: float32 [N_m, D_m]}, of each modality in `inputs`.

        Args:
          inputs: {modality: array [N_m, …]}: touch and image float [N, H, W, 3], normalized; text
            int [N, W]. Batch sizes may differ.
          key: Random key of dropout and stochastic depth in training; None in evaluation.
          frozen: Modalities whose towers run in evaluation mode and get no gradient.

        Raises:
          UserError: A modality without a tower.
        """
        self._check_frozen(frozen)
        pooled, _ = self.run(inputs, key, frozen=frozen)
        return {m: jax.lax.stop_gradient(x) if m in frozen else x for m, x in pooled.items()}

    def project(self, pooled: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the unit vectors to compare, {modality: float32 [N_m, d]}.

        Zero features stay zero.
        """
        out = {}
        for modality, x in pooled.items():
            x = x.astype(jnp.float32)
            x = self.heads[modality](x) if hasattr(self, "heads") else x
            square = jnp.sum(x * x, axis=-1, keepdims=True)
            out[modality] = x * jax.lax.rsqrt(jnp.maximum(square, _MIN_NORM**2))
        return out

    def flops(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        train: bool = False,
        frozen: Collection[str] = (),
    ) -> float:
        """Returns the floating-point operations for one example.

        Args:
          shapes: {modality: shape of its input without batch}; further axes in front, such as
            captions [L, W], multiply.
          train: Whether to count forward and backward (3 times forward) of towers that are not
            `frozen`.
          frozen: Modalities whose towers have no backward pass.
        """
        self._check_frozen(frozen)
        total = 0.0
        for modality, shape in shapes.items():
            operations, count = self.tower_flops(modality, shape, train=train)
            total += operations * (3 if train and modality not in frozen else 1)
            if hasattr(self, "heads"):
                head = self.heads[modality]
                total += count * 2.0 * head.in_features * head.out_features * (3 if train else 1)
        return total

    def _check_frozen(self, frozen: Collection[str]) -> None:
        for modality in frozen:
            check_choice("frozen modality", modality, self.modalities)


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
    """Returns a constructor of `TVL` for `mmjax.state.ModelDef`.

    Args:
      touch: Spec of the touch tower: a name, or a dict of `name` and options. None omits it.
      image: Spec of the image tower, or None.
      text: Spec of the text tower, or None.
      common_dim: See `TVL`.
      logit_scale: See `TVL`.
      logit_bias: See `TVL`.
      **shared: Options that apply to all towers, for example dtype, remat and scan_unroll.
    """
    specs = dict(zip(MODALITIES, (touch, image, text), strict=True))
    towers = {modality: spec for modality, spec in specs.items() if spec is not None}
    options = dict(common_dim=common_dim, logit_scale=logit_scale, logit_bias=logit_bias)
    return lambda rngs: TVL(towers=towers, rngs=rngs, **options, **shared)

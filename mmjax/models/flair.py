"""FLAIR's model: image and text encoders, and attention pooling of image tokens by a text.

A text pools the patch tokens of an image into the part of the image that it describes. The
similarity of an image with a text is the cosine of that with the text's own embedding.
`mmjax.models.flair_maps` shows where in the image a text finds what it describes.

Source: Xiao et al. 2024, "FLAIR: VLM with Fine-grained Language-informed Image Representations",
arXiv 2412.03561, and its published code. The adapters are those of "Training Vision Tasks Using
Diagnostic Text Description Loss" (TTDL).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError, check_choice
from mmjax.losses.similarity import normalize
from mmjax.models.blocks.attention_pooling import TextConditionedPooling
from mmjax.models.multi_tower import MultiTower
from mmjax.models.towers.registry import Spec, as_dict, find_tower, tower_options

MODALITIES = ("image", "text")
# {optional linear layer: number of inputs that it concatenates}.
ADAPTERS = {"vision_adapter": 1, "text_adapter": 1, "concat_adapter": 2}
IMAGE_TOWER, TEXT_TOWER = "clip_vit_b16", "clip_text_b"


class Encoded(NamedTuple):
    """Embeddings of images or texts in the common space.

    Attributes:
      pooled: float32 [..., D]: of the class token of an image, or of the last token of a text.
      tokens: [..., N, D]: of the patches in row-major order, or of all ids, also of padding.
    """

    pooled: jax.Array
    tokens: jax.Array


class Flair(MultiTower):
    """Image and text towers, projections, attention pooling and optional adapters.

    Args:
      towers: {'image': spec of `build_tower`, 'text': the same}. Their own projections are removed.
      width: Width of the common space.
      num_heads: Attention heads of the pooling.
      adapters: Some of `ADAPTERS`, linear layers without bias after the projections: of images, of
        texts, and of two concatenated images (see `fuse`).
      logit_scale: Initial value of the parameter of this name, the logarithm of the factor of
        similarities.
      logit_bias: Initial value of the parameter that is added to scaled similarities.
      rngs: Random number generators for initialization.
      **shared: Options that apply to both towers (dtype, remat, …). `dtype` and `param_dtype` also
        apply to the pooling.

    Raises:
      UserError: The errors of `MultiTower`, an unknown adapter, or an invalid width.
    """

    OPTIONS = (*MODALITIES, "width", "num_heads", "adapters", "logit_scale", "logit_bias")

    def __init__(
        self,
        *,
        towers: Mapping[str, Spec],
        width: int = 512,
        num_heads: int = 8,
        adapters: Sequence[str] = (),
        logit_scale: float = math.log(1 / 0.07),
        logit_bias: float = -10.0,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        for name in adapters:
            check_choice("adapter of config.model.adapters:", name, ADAPTERS)
        towers = {name: _without_projection(spec, name) for name, spec in towers.items()}
        super().__init__(towers=towers, rngs=rngs, **shared)
        self.width, self.adapters = width, tuple(adapters)
        dtypes = {name: shared[name] for name in ("dtype", "param_dtype") if name in shared}
        param_dtype = dtypes.get("param_dtype", "float32")

        def linear(fan_in: int, init: Callable[..., jax.Array]) -> nnx.Linear:
            return nnx.Linear(
                *(fan_in, width),
                use_bias=False,
                kernel_init=init,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        for modality in MODALITIES:
            features = getattr(self, modality).out_features
            init = nnx.initializers.normal(features**-0.5)
            setattr(self, f"{modality}_projection", linear(features, init))
        self.pooling = TextConditionedPooling(width=width, num_heads=num_heads, rngs=rngs, **dtypes)
        for name in ADAPTERS:
            if name in adapters:
                init = nnx.initializers.glorot_uniform()
                setattr(self, name, linear(ADAPTERS[name] * width, init))
        self.logit_scale = nnx.Param(jnp.float32(logit_scale))
        self.logit_bias = nnx.Param(jnp.float32(logit_bias))

    def encode_images(self, images: jax.Array, *, key: jax.Array | None = None) -> Encoded:
        """Returns the embeddings of images.

        Args:
          images: float [N, H, W, 3], normalized with CLIP's mean and std; see
            `mmjax.preprocess.clip_images`.
          key: Random key of dropout in training; None in evaluation.
        """
        return self._encode("image", images, key)

    def encode_texts(self, ids: jax.Array, *, key: jax.Array | None = None) -> Encoded:
        """Returns the embeddings of texts.

        Args:
          ids: int [N, W]: start token, text, end token, then zeros.
          key: Random key of dropout in training; None in evaluation.
        """
        return self._encode("text", ids, key)

    def _encode(self, modality: str, x: jax.Array, key: jax.Array | None) -> Encoded:
        pooled, tokens = self.run({modality: x}, key)
        return Encoded(*(self.project(modality, y[modality]) for y in (pooled, tokens)))

    def project(self, modality: str, x: jax.Array) -> jax.Array:
        """Returns outputs of a tower, pooled or tokens, in the common space.

        Args:
          modality: 'image' or 'text'.
          x: [..., F].
        """
        x = _apply(getattr(self, f"{modality}_projection"), x)
        adapter = "vision_adapter" if modality == "image" else "text_adapter"
        return _apply(getattr(self, adapter), x) if adapter in self.adapters else x

    def fuse(self, first: Any, second: Any) -> Any:
        """Returns the `concat_adapter` of two images, pooled and token by token.

        TTDL fuses overlays of the true and of the predicted mask, in this order.

        Args:
          first: `Encoded`, or one array [..., D].
          second: The same of the other images.

        Raises:
          UserError: The model has no `concat_adapter`.
        """
        if "concat_adapter" not in self.adapters:
            raise UserError(
                "Two images are compared with a text through concat_adapter, which this model does "
                "not have. Add it to config.model.adapters."
            )
        return jax.tree.map(
            lambda *both: _apply(self.concat_adapter, jnp.concatenate(both, axis=-1)), first, second
        )

    def pool(self, tokens: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pools image tokens once for each query.

        Args:
          tokens: [..., N, D] of images.
          queries: [..., Q, D], embeddings of texts, not normalized. Axes in front broadcast.

        Returns:
          float32 [..., Q, D], and attention weights, float32 [..., heads, Q, N + 1]. The last
          column is the weight of no token.
        """
        pooled, weights = self.pooling(queries, tokens)
        return pooled.astype(jnp.float32), weights

    def similarity(
        self, tokens: jax.Array, texts: jax.Array, *, broadcast: bool = False
    ) -> jax.Array:
        """Returns the cosines of images, pooled as a text asks, with that text.

        Args:
          tokens: [P, N, D] of images.
          texts: [P, D], one for each image; [T, D] with `broadcast`.
          broadcast: Whether to compare all images with all texts.

        Returns:
          float32 [P]; [P, T] with `broadcast`.
        """
        queries = texts if broadcast else texts[:, None]
        cosine = (normalize(self.pool(tokens, queries)[0]) * normalize(queries)).sum(axis=-1)
        return cosine if broadcast else cosine[:, 0]

    def flops(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        train: bool = False,
        frozen: Collection[str] = (),
        num_queries: int = 0,
        fused: bool = False,
    ) -> float:
        """Returns the floating-point operations for one example.

        Args:
          shapes: {modality: shape of its input without batch}; further axes in front, such as
            captions [L, W], multiply.
          train: Whether to count forward and backward (3 times forward) of what is not frozen.
          frozen: Modalities whose towers have no backward pass.
          num_queries: Number of texts for which the image tokens are pooled.
          fused: Whether two images are fused.
        """
        total = 0.0
        for modality, shape in shapes.items():
            operations, count = self.tower_flops(modality, shape, train=train)
            num_tokens = self._num_tokens(modality, shape)
            features = getattr(self, modality).out_features
            factor = 3 if train else 1
            total += operations * (factor if modality not in frozen else 1)
            total += factor * count * 2.0 * (1 + num_tokens) * features * self.width
            if modality == "image" and num_queries:
                projections = 2.0 * (2 * num_tokens + 2 * num_queries) * self.width**2
                attention = 4.0 * num_queries * num_tokens * self.width
                total += factor * (projections + attention)
            if modality == "image" and fused:
                total += factor * 4.0 * (1 + num_tokens) * self.width**2
        return total

    def _num_tokens(self, modality: str, shape: Sequence[int]) -> int:
        """Returns the number of tokens of one input of this shape."""
        tower = getattr(self, modality)
        dtype = jnp.int32 if modality == "text" else jnp.float32
        x = jax.ShapeDtypeStruct((1, *shape[len(shape) - tower.input_ndim :]), dtype)
        return jax.eval_shape(lambda tower, x: tower(x)[1], tower, x).shape[1]


def _without_projection(spec: Spec, modality: str) -> dict[str, Any]:
    """Returns the spec of a tower whose pooled features and tokens have the same width."""
    if spec is None:
        raise UserError(
            f"config.model.{modality} is None, but FLAIR has towers of images and text. Set it to "
            f"a tower. To use a model without {modality}, set only config.data.{modality}=None."
        )
    spec = as_dict(spec)
    tower = find_tower(spec.get("name"), Flair.tower_key(modality), modality)
    return {**spec, "projection": 0} if "projection" in tower_options(tower.cls) else spec


def _apply(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """Returns a layer without bias in the dtype of its input."""
    return x @ layer.kernel[...].astype(x.dtype)


def make_model(
    *,
    image: Spec = IMAGE_TOWER,
    text: Spec = TEXT_TOWER,
    width: int = 512,
    num_heads: int = 8,
    adapters: tuple[str, ...] = (),
    logit_scale: float = math.log(1 / 0.07),
    logit_bias: float = -10.0,
    **shared: Any,
) -> Callable[[nnx.Rngs], Flair]:
    """Returns a constructor of `Flair` for `mmjax.state.ModelDef`; by default, of FLAIR ViT-B/16.

    Args:
      image: Spec of the image tower: a name, or a dict of `name` and options.
      text: Spec of the text tower.
      width: See `Flair`.
      num_heads: See `Flair`.
      adapters: See `Flair`.
      logit_scale: See `Flair`.
      logit_bias: See `Flair`.
      **shared: Options that apply to both towers, for example dtype, remat and scan_unroll.
    """
    options = dict(
        towers={"image": image, "text": text},
        width=width,
        num_heads=num_heads,
        adapters=adapters,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    return lambda rngs: Flair(rngs=rngs, **options, **shared)

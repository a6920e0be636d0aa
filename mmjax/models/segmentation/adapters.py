"""Bottleneck adapters: feature maps of a segmentation model in the space of text embeddings.

They are those of TTDL (Training Vision Tasks Using Diagnostic Text Description Loss), with its
names. TTDL compares their outputs with FLAIR's embeddings of texts, of width 512.

A config selects an adapter by a name in `ADAPTERS`, or by `package.module:Name` for a subclass of
`Adapter` outside this package. It is a string, or a dict of `name` and options:

    --config.model.adaptation=GAP_linear
    --config.model.adaptation.name=conv_attn_pool --config.model.adaptation.num_heads=4
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax import config, registry
from mmjax.errors import UserError
from mmjax.models.blocks.attention_pooling import TextConditionedPooling
from mmjax.models.blocks.initializers import glorot_uniform
from mmjax.models.blocks.inputs import InputError

# Of layers that ReLU follows.
_kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "uniform")


class Adapter(nnx.Module):
    """An adapter: a bottleneck → a vector for each image, or for each pair of image and text.

    The constructor of a subclass takes the following arguments, `rngs`, and its own options.

    Args:
      bottleneck_width: Channels of the bottleneck.
      width: Width of the text embeddings.
      dtype: Dtype of layers on feature maps. BatchNorm, and layers after global average pooling,
        compute in float32.
      param_dtype: Dtype of parameters.

    Attributes:
      needs_query: Whether the output depends on a text.
      out_features: Width of the output.

    Raises:
      UserError: A width is less than 1.
    """

    needs_query: bool = False

    def __init__(
        self,
        *,
        bottleneck_width: int,
        width: int = 512,
        dtype: Any = "float32",
        param_dtype: Any = "float32",
    ):
        for name, size in (("bottleneck_width", bottleneck_width), ("width", width)):
            if size < 1:
                raise UserError(f"{name} of an adapter must be at least 1; got {size}.")
        self.bottleneck_width, self.width, self.out_features = bottleneck_width, width, width
        self.dtype, self.param_dtype = dtype, param_dtype

    def __call__(
        self,
        bottleneck: jax.Array,
        queries: jax.Array | None = None,
        image_index: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Returns the vectors of images or pairs.

        Args:
          bottleneck: [B, h, w, bottleneck_width].
          queries: Text embeddings of P pairs, [P, width]; only used if `needs_query`.
          image_index: int [P], the image of each pair. None returns one vector per image; text i
            belongs to image i then.
          train: Whether BatchNorm uses the batch and updates its running averages.

        Returns:
          float32 [P, out_features], or [B, out_features] if `image_index` is None.

        Raises:
          UserError: Queries are missing.
        """
        del queries
        vectors = self.pool(bottleneck, train=train).astype(jnp.float32)
        return vectors if image_index is None else vectors[image_index]

    def pool(self, bottleneck: jax.Array, *, train: bool) -> jax.Array:
        """Returns the vectors of images, [B, out_features]."""
        raise NotImplementedError

    def texts(self, embeddings: jax.Array) -> jax.Array:
        """Returns text embeddings [..., width] in the space of the output, [..., out_features]."""
        return embeddings

    def linear_layer(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool,
        init: Callable[..., jax.Array] = glorot_uniform,
        rngs: nnx.Rngs,
    ) -> nnx.Linear:
        """Returns a dense layer that computes in float32."""
        return nnx.Linear(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=init,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def convolution(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool,
        init: Callable[..., jax.Array] = glorot_uniform,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ) -> nnx.Conv:
        """Returns a 1×1 convolution; `dtype` None is that of the adapter."""
        return nnx.Conv(
            in_features,
            out_features,
            (1, 1),
            use_bias=use_bias,
            kernel_init=init,
            dtype=self.dtype if dtype is None else dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def batch_norm(self, features: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
        """Returns a BatchNorm with PyTorch's defaults."""
        return nnx.BatchNorm(
            features,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype=jnp.float32,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )


def _mean(bottleneck: jax.Array) -> jax.Array:
    """Returns the global average, float32 [B, C]."""
    return bottleneck.mean((1, 2), dtype=jnp.float32)


class TextProjection(Adapter):
    """Global average pooling; `linear`, without bias, projects the texts instead.

    Args:
      rngs: Random number generators for initialization.
      **options: Arguments of `Adapter`.
    """

    def __init__(self, *, rngs: nnx.Rngs, **options: Any):
        super().__init__(**options)
        self.out_features = self.bottleneck_width
        self.linear = self.linear_layer(self.width, self.out_features, use_bias=False, rngs=rngs)

    def pool(self, bottleneck: jax.Array, *, train: bool) -> jax.Array:
        """Returns the averages, [B, bottleneck_width]."""
        del train
        return _mean(bottleneck)

    def texts(self, embeddings: jax.Array) -> jax.Array:
        """Returns the projected embeddings, float32 [..., bottleneck_width]."""
        return self.linear(embeddings)


class PooledLinear(Adapter):
    """Global average pooling → `linear`.

    Args:
      use_bias: Whether the layer has a bias.
      rngs: Random number generators for initialization.
      **options: Arguments of `Adapter`.
    """

    def __init__(self, *, use_bias: bool = True, rngs: nnx.Rngs, **options: Any):
        super().__init__(**options)
        self.linear = self.linear_layer(
            self.bottleneck_width, self.width, use_bias=use_bias, rngs=rngs
        )

    def pool(self, bottleneck: jax.Array, *, train: bool) -> jax.Array:
        """Returns the projected averages, [B, width]."""
        del train
        return self.linear(_mean(bottleneck))


class PooledMLP(Adapter):
    """Global average pooling → `first` → BatchNorm (optional) → ReLU → `second`.

    Args:
      batch_norm: Whether there is a BatchNorm. Without it, the first layer has a bias.
      rngs: Random number generators for initialization.
      **options: Arguments of `Adapter`.
    """

    def __init__(self, *, batch_norm: bool = True, rngs: nnx.Rngs, **options: Any):
        super().__init__(**options)
        self.first = self.linear_layer(
            self.bottleneck_width, self.width, use_bias=not batch_norm, init=_kaiming, rngs=rngs
        )
        if batch_norm:
            self.norm = self.batch_norm(self.width, rngs=rngs)
        self.second = self.linear_layer(self.width, self.width, use_bias=True, rngs=rngs)

    def pool(self, bottleneck: jax.Array, *, train: bool) -> jax.Array:
        """Returns [B, width].

        Raises:
          InputError: BatchNorm in training, and a batch of one image.
        """
        x = self.first(_mean(bottleneck))
        if hasattr(self, "norm"):
            if train and len(x) == 1:
                raise InputError(
                    "The adapter 'GAP_linear2_BN' cannot be trained on a batch of one image: "
                    "BatchNorm would have one value per feature. Use at least two images per batch "
                    "and microbatch, or the adapter 'GAP_linear2_noBN'."
                )
            x = self.norm(x, use_running_average=not train)
        return self.second(jax.nn.relu(x))


class PooledConvolutions(Adapter):
    """1×1 convolution `first` → BatchNorm → ReLU → global average pooling → 1×1 `second`.

    TTDL pools after the second convolution, which gives the same result.

    Args:
      rngs: Random number generators for initialization.
      **options: Arguments of `Adapter`.
    """

    def __init__(self, *, rngs: nnx.Rngs, **options: Any):
        super().__init__(**options)
        self.first = self.convolution(
            self.bottleneck_width, self.width, use_bias=False, init=_kaiming, rngs=rngs
        )
        self.norm = self.batch_norm(self.width, rngs=rngs)
        self.second = self.convolution(
            self.width, self.width, use_bias=True, dtype=jnp.float32, rngs=rngs
        )

    def pool(self, bottleneck: jax.Array, *, train: bool) -> jax.Array:
        """Returns [B, width]."""
        x = self.norm(self.first(bottleneck), use_running_average=not train)
        return self.second(jax.nn.relu(x).mean((1, 2), keepdims=True))[:, 0, 0]


class AttentionPooling(Adapter):
    """1×1 convolution `tokens` → attention pooling of all pixels with a learned or a text query.

    Tokens, keys and values are computed once per image, and shared by the pairs of an image.

    Args:
      by_text: Whether the query is the text of the pair instead of the parameter `query`.
      num_heads: Number of attention heads.
      rngs: Random number generators for initialization.
      **options: Arguments of `Adapter`.
    """

    def __init__(self, *, by_text: bool = True, num_heads: int = 8, rngs: nnx.Rngs, **options: Any):
        super().__init__(**options)
        self.needs_query = by_text
        self.tokens = self.convolution(self.bottleneck_width, self.width, use_bias=False, rngs=rngs)
        self.pooling = TextConditionedPooling(
            width=self.width,
            num_heads=num_heads,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )
        if not by_text:
            init = nnx.initializers.normal(0.02)
            self.query = nnx.Param(init(rngs.params(), (self.width,), self.param_dtype))

    def __call__(
        self,
        bottleneck: jax.Array,
        queries: jax.Array | None = None,
        image_index: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Returns the vectors of images or pairs; see `Adapter`."""
        if not self.needs_query:
            return super().__call__(bottleneck, None, image_index, train=train)
        if queries is None:
            raise UserError(
                "The adapter 'conv_attn_pool_by_text' needs a text embedding for each pair "
                "(queries). Use 'conv_attn_pool' for images without texts."
            )
        return self._attend(bottleneck, queries, image_index).astype(jnp.float32)

    def pool(self, bottleneck: jax.Array, *, train: bool) -> jax.Array:
        """Returns the tokens pooled by the learned query, [B, width]."""
        del train
        return self._attend(bottleneck, self.query[...][None], None)

    def _attend(
        self, bottleneck: jax.Array, queries: jax.Array, image_index: jax.Array | None
    ) -> jax.Array:
        tokens = self.tokens(bottleneck)
        keys, values = self.pooling.keys_values(tokens.reshape(len(tokens), -1, self.width))
        if image_index is not None:
            keys, values = keys[image_index], values[image_index]
        pooled, _ = self.pooling.attend(queries[:, None], keys, values)
        return pooled[:, 0]


ADAPTERS: dict[str, tuple[type[Adapter], dict[str, Any]]] = {
    "contrastive_global": (TextProjection, {}),
    "contrastive_diff": (PooledLinear, dict(use_bias=False)),
    "contrastive_global_bside_1": (PooledLinear, dict(use_bias=False)),
    "GAP_linear": (PooledLinear, {}),
    "GAP_linear2_BN": (PooledMLP, {}),
    "GAP_linear2_noBN": (PooledMLP, dict(batch_norm=False)),
    "conv2_BN_GAP": (PooledConvolutions, {}),
    "conv_attn_pool": (AttentionPooling, dict(by_text=False)),
    "conv_attn_pool_by_text": (AttentionPooling, {}),
}


def build_adapter(
    spec: str | Mapping[str, Any],
    *,
    bottleneck_width: int,
    rngs: nnx.Rngs,
    where: str = "model.adaptation",
    **shared: Any,
) -> Adapter:
    """Returns a bottleneck adapter.

    Args:
      spec: A name in `ADAPTERS` or `package.module:Name`, or a dict of `name` and options.
      bottleneck_width: Channels of the bottleneck.
      rngs: Random number generators for initialization.
      where: Config key of the adapter, for error messages.
      **shared: Options of the model, `dtype` and `param_dtype`; `spec` overrides them.

    Raises:
      UserError: An unknown adapter, or an unknown or invalid option.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", "")
    entry = registry.resolve(f"config.{where}", name, ADAPTERS)
    cls, defaults = entry if isinstance(entry, tuple) else (entry, {})
    if not isinstance(cls, type) or not issubclass(cls, Adapter):
        raise UserError(
            f"config.{where}={name} must be a subclass of "
            f"mmjax.models.segmentation.adapters.Adapter; got {cls!r}."
        )
    provided = ("bottleneck_width", "rngs")
    options = config.keywords(cls, options, where, provided=provided, owner=name)
    try:
        return cls(
            bottleneck_width=bottleneck_width, rngs=rngs, **{**shared, **defaults, **options}
        )
    except UserError as error:
        raise UserError(f"config.{where} ({name!r}): {error}") from None

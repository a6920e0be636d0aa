"""Heads: projections of pooled features into the spaces in which they are compared.

Sources: the fine-and-coarse space of MMV (Alayrac et al. 2020), as in VATT's published code; the
projection MLP of SimCLR (Chen et al. 2020), as in LGSSL's (El Banani et al. 2023).

A head of `mmjax.models.vatt` is an entry of `HEADS`, or `package.module:Name` in the config. Its
constructor takes `widths` ({modality: width of its pooled features}), `rngs` and options. It
defines `__call__(pooled, *, train)`, which returns {'a/b': features of a to compare with b}, and
`flops(modality)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.initializers import fan_in_uniform


def _dense(
    fan_in: int, fan_out: int, *, use_bias: bool, param_dtype: Any, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(
        fan_in,
        fan_out,
        use_bias=use_bias,
        kernel_init=nnx.initializers.glorot_uniform(),
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _batch_norm(features: int, *, param_dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Returns a BatchNorm over the global batch (arrays are global under `jit`)."""
    return nnx.BatchNorm(
        features,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        param_dtype=param_dtype,
        rngs=rngs,
    )


class FACHead(nnx.Module):
    """Fine-and-coarse: video and audio share a fine space, video and text a coarse one.

    The head computes in float32. A modality that is not in `widths` has no projection.

    Args:
      widths: {modality: width of its pooled features}: video (required), audio and text.
      fine: Width of the space of video and audio.
      coarse: Width of the space of video and text.
      param_dtype: Dtype of parameters.
      rngs: Random number generators for initialization.

    Raises:
      UserError: `widths` has no video, or another modality.
    """

    def __init__(
        self,
        *,
        widths: Mapping[str, int],
        fine: int = 512,
        coarse: int = 256,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        extra = set(widths) - {"video", "audio", "text"}
        if "video" not in widths or extra:
            raise UserError(
                "The head 'fac' needs video, and optionally audio and text; the model has towers "
                f"for {sorted(widths)}. Set config.model.head='joint', which accepts any "
                "modalities."
            )
        self.modalities = tuple(widths)
        kwargs = dict(param_dtype=param_dtype, rngs=rngs)
        self.video_hidden = _dense(widths["video"], fine, use_bias=False, **kwargs)
        self.video_hidden_norm = _batch_norm(fine, **kwargs)
        self.video_fine = _dense(fine, fine, use_bias=False, **kwargs)
        self.video_fine_norm = _batch_norm(fine, **kwargs)
        if "audio" in widths:
            self.audio_fine = _dense(widths["audio"], fine, use_bias=True, **kwargs)
        if "text" in widths:
            self.video_coarse = _dense(fine, coarse, use_bias=False, **kwargs)
            self.video_coarse_norm = _batch_norm(coarse, **kwargs)
            self.text_coarse = _dense(widths["text"], coarse, use_bias=True, **kwargs)

    def __call__(self, pooled: Mapping[str, jax.Array], *, train: bool) -> dict[str, jax.Array]:
        """Projects pooled features, without normalization.

        Args:
          pooled: {modality: [N, D]}.
          train: Whether BatchNorm uses the batch and updates its running averages.

        Returns:
          {'video/audio': [N, fine], 'audio/video', 'video/text': [N, coarse], 'text/video'}, where
          'a/b' is a projected for comparison with b, for the modalities in `pooled`.
        """
        out = {}
        if "video" in pooled:
            average = not train
            hidden = self.video_hidden(pooled["video"])
            hidden = self.video_hidden_norm(hidden, use_running_average=average)
            fine = self.video_fine(jax.nn.relu(hidden))
            fine = self.video_fine_norm(fine, use_running_average=average)
            if "audio" in self.modalities:
                out["video/audio"] = fine
            if "text" in self.modalities:
                coarse = self.video_coarse(jax.nn.relu(fine))
                out["video/text"] = self.video_coarse_norm(coarse, use_running_average=average)
        if "audio" in pooled:
            out["audio/video"] = self.audio_fine(pooled["audio"])
        if "text" in pooled:
            out["text/video"] = self.text_coarse(pooled["text"])
        return out

    def flops(self, modality: str) -> float:
        """Returns the forward operations for one example of a modality."""
        layers = [getattr(self, n, None) for n in vars(self) if n.startswith(f"{modality}_")]
        linear = [layer for layer in layers if isinstance(layer, nnx.Linear)]
        return sum(2.0 * layer.in_features * layer.out_features for layer in linear)


class JointHead(nnx.Module):
    """One space for all modalities: ReLU → dense → BatchNorm, for each modality.

    Args:
      widths: {modality: width of its pooled features}.
      joint: Width of the space.
      param_dtype: Dtype of parameters.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        widths: Mapping[str, int],
        joint: int = 512,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        self.modalities = tuple(widths)
        for modality, width in widths.items():
            dense = _dense(width, joint, use_bias=False, param_dtype=param_dtype, rngs=rngs)
            setattr(self, modality, dense)
            norm = _batch_norm(joint, param_dtype=param_dtype, rngs=rngs)
            setattr(self, f"{modality}_norm", norm)

    def __call__(self, pooled: Mapping[str, jax.Array], *, train: bool) -> dict[str, jax.Array]:
        """Projects pooled features, without normalization.

        Args:
          pooled: {modality: [N, D]}.
          train: Whether BatchNorm uses the batch and updates its running averages.

        Returns:
          {'a/b': [N, joint]} for every a in `pooled` and every other b; equal for all b.
        """
        out = {}
        for modality, features in pooled.items():
            y = getattr(self, modality)(jax.nn.relu(features))
            y = getattr(self, f"{modality}_norm")(y, use_running_average=not train)
            for a, b in itertools.permutations(self.modalities, 2):
                if a == modality:
                    out[f"{a}/{b}"] = y
        return out

    def flops(self, modality: str) -> float:
        """Returns the forward operations for one example of a modality."""
        layer = getattr(self, modality)
        return 2.0 * layer.in_features * layer.out_features


class ProjectionMLP(nnx.Module):
    """Dense layers without bias, with BatchNorm and ReLU after all but the last, in float32.

    Args:
      in_features: Width of the input.
      dims: Width of each layer; a single one makes a linear map.
      final_norm: Whether to add BatchNorm after the last layer too.
      param_dtype: Dtype of parameters.
      rngs: Random number generators for initialization, which is PyTorch's default.

    Raises:
      UserError: Invalid `dims`.
    """

    def __init__(
        self,
        *,
        in_features: int,
        dims: Sequence[int],
        final_norm: bool = False,
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        if not dims or min(dims) < 1:
            raise UserError(
                f"dims of a head must be one or more positive widths; got {tuple(dims)}."
            )
        self.linear, self.norm = nnx.Dict(), nnx.Dict()  # by index
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise((in_features, *dims))):
            layer = nnx.Linear(
                fan_in,
                fan_out,
                use_bias=False,
                kernel_init=fan_in_uniform(fan_in),
                param_dtype=param_dtype,
                rngs=rngs,
            )
            self.linear[str(index)] = layer
            if index < len(dims) - 1 or final_norm:
                norm = _batch_norm(fan_out, param_dtype=param_dtype, rngs=rngs)
                self.norm[str(index)] = norm
        self.in_features, self.out_features = in_features, dims[-1]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns float32 [B, dims[-1]].

        Args:
          x: [B, in_features].
          train: Whether BatchNorm uses the batch and updates its running averages.
        """
        x = x.astype(jnp.float32)
        last = len(self.linear) - 1
        for index in range(last + 1):  # NNX sorts keys as text: '10' before '2'
            key = str(index)
            x = self.linear[key](x)
            if key in self.norm:
                x = self.norm[key](x, use_running_average=not train)
            if index < last:
                x = jax.nn.relu(x)
        return x

    def flops(self) -> float:
        """Returns the forward operations for one example."""
        return sum(2.0 * layer.in_features * layer.out_features for layer in self.linear.values())


HEADS = {"fac": FACHead, "joint": JointHead}

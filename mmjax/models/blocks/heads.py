"""Projections of pooled features into the spaces where they are compared.

Sources: the fine-and-coarse space of MMV (Alayrac et al. 2020), as in VATT's published code; the
projection MLP of SimCLR (Chen et al. 2020), as in LGSSL's (El Banani et al. 2023).
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


def _dense(fan_in: int, fan_out: int, *, use_bias: bool, param_dtype: Any, rngs: nnx.Rngs):
    return nnx.Linear(
        fan_in,
        fan_out,
        use_bias=use_bias,
        kernel_init=nnx.initializers.glorot_uniform(),
        param_dtype=param_dtype,
        rngs=rngs,
    )


def _batch_norm(features: int, *, param_dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Statistics are of the global batch: arrays are global under `jit`, no axis name is needed."""
    return nnx.BatchNorm(
        features,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        param_dtype=param_dtype,
        rngs=rngs,
    )


class FACHead(nnx.Module):
    """Fine-and-coarse: video and audio meet in a fine space, video and text in a coarse one.

    The head computes in float32. A modality that `widths` lacks has no projection.

    Args:
      widths: {modality: width of its pooled features}; of video (needed), audio and text.
      fine: width of the space of video and audio.
      coarse: width of the space of video and text.
      param_dtype: of parameters.
      rngs: for initialization.
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
                f"The head 'fac' projects video with audio and text, not {sorted(widths)}; "
                "the head 'joint' takes any modalities."
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
        """{'video/audio': [N, fine], 'audio/video', 'video/text': [N, coarse], 'text/video'}.

        'a/b' is a embedded for comparison with b, not normalized. Outputs of modalities that are
        not given are left out. `train` normalizes by the batch and updates the statistics.
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
        """Forward operations for one example of a modality."""
        layers = [getattr(self, n, None) for n in vars(self) if n.startswith(f"{modality}_")]
        linear = [layer for layer in layers if isinstance(layer, nnx.Linear)]
        return sum(2.0 * layer.in_features * layer.out_features for layer in linear)


class JointHead(nnx.Module):
    """All modalities meet in one space: ReLU → dense → BatchNorm, for each modality.

    Args:
      widths: {modality: width of its pooled features}.
      joint: width of the space.
      param_dtype: of parameters.
      rngs: for initialization.
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
        """{'a/b': [N, joint]} for every given a and every other b; one vector whatever b is."""
        out = {}
        for modality, features in pooled.items():
            y = getattr(self, modality)(jax.nn.relu(features))
            y = getattr(self, f"{modality}_norm")(y, use_running_average=not train)
            for a, b in itertools.permutations(self.modalities, 2):
                if a == modality:
                    out[f"{a}/{b}"] = y
        return out

    def flops(self, modality: str) -> float:
        """Forward operations for one example of a modality."""
        layer = getattr(self, modality)
        return 2.0 * layer.in_features * layer.out_features


class ProjectionMLP(nnx.Module):
    """Dense layers without bias, BatchNorm and ReLU after all but the last; in float32.

    Args:
      in_features: width of the input.
      dims: width of each layer; one is a linear map.
      final_norm: BatchNorm after the last layer too.
      param_dtype: of parameters.
      rngs: for initialization, PyTorch's default of dense layers.
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
            raise UserError(f"dims={tuple(dims)} of a head must be at least one width above 0.")
        self.linear, self.norm = nnx.Dict(), nnx.Dict()  # by number, as paths have it
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise((in_features, *dims))):
            layer = nnx.Linear(
                fan_in,
                fan_out,
                use_bias=False,
                kernel_init=fan_in_uniform(fan_in),
                param_dtype=param_dtype,
                rngs=rngs,
            )
            self.linear[str(number)] = layer
            if number < len(dims) - 1 or final_norm:
                norm = _batch_norm(fan_out, param_dtype=param_dtype, rngs=rngs)
                self.norm[str(number)] = norm
        self.in_features, self.out_features = in_features, dims[-1]

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, in_features] → float32 [B, dims[-1]]; `train` normalizes by the batch and updates the
        statistics."""
        x = x.astype(jnp.float32)
        last = len(self.linear) - 1
        for number in range(last + 1):  # not as NNX has its keys, by text: '10' before '2'
            key = str(number)
            x = self.linear[key](x)
            if key in self.norm:
                x = self.norm[key](x, use_running_average=not train)
            if number < last:
                x = jax.nn.relu(x)
        return x

    def flops(self) -> float:
        """Forward operations for one row."""
        return sum(2.0 * layer.in_features * layer.out_features for layer in self.linear.values())


HEADS = {"fac": FACHead, "joint": JointHead}

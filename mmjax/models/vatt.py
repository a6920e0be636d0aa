"""VATT's models: towers with a head for pretraining, and a tower with a classifier for fine-tuning.

Source: Akbari et al. 2021, "VATT: Transformers for Multimodal Self-Supervised Learning from Raw
Video, Audio and Text", and its published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mmjax import config, registry
from mmjax.errors import UserError, check_choice, choose, unknown
from mmjax.modalities import INPUTS
from mmjax.models.blocks.heads import HEADS
from mmjax.models.blocks.noise import dropout
from mmjax.models.blocks.patches import SIZES as ENCODERS
from mmjax.models.multi_tower import MultiTower
from mmjax.models.towers.registry import (
    ENCODER_OPTIONS,
    TOWERS,
    Spec,
    as_dict,
    find_tower,
)

# Published sizes of tx_fac; the letters are the sizes of the video, audio and text tower.
TX_SIZES: dict[str, dict[str, str]] = {
    "tiny": dict(video="vit_tiny", audio="wat_tiny", text="t5_tiny"),
    "bbs": dict(video="vit_base", audio="wat_base", text="t5_small"),
    "mbs": dict(video="vit_medium", audio="wat_base", text="t5_small"),
    "lbs": dict(video="vit_large", audio="wat_base", text="t5_small"),
}
# mmv_fac by its video tower: I3D as in VATT's code, TSM ResNets as in the MMV paper.
MMV_SIZES: dict[str, dict[str, str]] = {
    "tiny": dict(video="tsm_tiny", audio="resnet2d_tiny", text="linear"),
    "i3d": dict(video="i3d", audio="resnet2d_50", text="linear"),
    "tsm": dict(video="tsm_50", audio="resnet2d_50", text="linear"),
    "tsm_x2": dict(video="tsm_50x2", audio="resnet2d_50", text="linear"),
}
UT_SIZES = ("tiny", "base", "medium", "large")
# Backbones of `Classifier`: all towers except for text, and one modality of a unified model.
BACKBONES = (
    *(name for name, entry in TOWERS.items() if entry.modality != "text"),
    *(f"ut_{size}" for size in UT_SIZES),
)


class Multimodal(MultiTower):
    """Towers, and a head that projects their pooled features, for pretraining.

    Args:
      head: A name in `HEADS` ('fac' or 'joint') or `package.module:Name`, or a dict of `name` and
        options.
      rngs: Random number generators for initialization.
      **towers: Arguments of `MultiTower`.

    Raises:
      UserError: The errors of `MultiTower`, or an unknown head or option of it.
    """

    OPTIONS = ("size", *INPUTS, "head")

    def __init__(self, *, head: Spec = "fac", rngs: nnx.Rngs, **towers: Any):
        super().__init__(rngs=rngs, **towers)
        options = as_dict(head)
        name = options.pop("name", "fac")
        cls = registry.resolve("config.model.head", name, HEADS)
        options = config.keywords(
            cls, options, "model.head", provided=("widths", "rngs"), owner=name
        )
        widths = {modality: getattr(self, modality).out_features for modality in self.modalities}
        self.head = cls(widths=widths, rngs=rngs, **options)

    def encode(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        tokens: bool = False,
    ) -> Any:
        """Returns the pooled features of each modality in `inputs`.

        Args:
          inputs: {modality: array [N_m, …]}: video float [N, T, H, W, 3] in [-1, 1]; audio float
            [N, S], or [N, frames, bins] for `spt_*` and `resnet2d_*`; image and touch float
            [N, H, W, 3]; text int [N, W], where 0 is padding. Batch sizes may differ.
          key: Random key of dropout and DropToken; required if `train`.
          train: Whether to run in training mode.
          tokens: Whether to return all tokens too.

        Returns:
          {modality: float32 [N_m, D_m]}. With `tokens`, a pair of it and {modality: [N_m, tokens,
          D_m]}.
        """
        if train and key is None:
            raise TypeError("encode(train=True) needs a key.")
        pooled, rest = self.run(inputs, key if train else None)
        return (pooled, rest) if tokens else pooled

    def project(
        self, pooled: Mapping[str, jax.Array], *, train: bool = False
    ) -> dict[str, jax.Array]:
        """Returns {'a/b': [N, d]}: features of a, projected for comparison with b by the head."""
        return self.head(pooled, train=train)

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Returns the floating-point operations for one example.

        Args:
          shapes: {modality: shape of its input without batch}; further axes in front (views [V, …],
            captions [L, W]) multiply.
          train: Whether to count forward and backward (3 times forward) with DropToken.
        """
        total = 0.0
        for modality, shape in shapes.items():
            operations, count = self.tower_flops(modality, shape, train=train)
            total += operations + count * self.head.flops(modality)
        return 3 * total if train else total


class Classifier(MultiTower):
    """A tower, dropout and a dense layer, for fine-tuning.

    The parameters of the tower have the same paths as in `Multimodal` (`video/…`, and `encoder/…`
    for `ut_*`), so that a pretrained tower is loaded by name.

    Args:
      backbone: Spec of `build_tower`. Or 'ut_base', 'ut_medium' or 'ut_large': one modality of a
        unified model; as a dict, with `modality` ('video' by default) and options of the encoder
        and of that modality's tower.
      num_classes: Number of outputs.
      dropout_rate: Rate of dropout before the dense layer. None uses VATT's values: 0.5 for video,
        0 for other modalities, 0.2 for `ut_*`.
      rare_bias: Whether to initialize the bias to -ln(num_classes - 1), so that each sigmoid starts
        at 1 / num_classes, for many labels with few positives. None does so only for audio, as in
        VATT.
      rngs: Random number generators for initialization.
      **shared: Options of the tower (dtype, remat, …).

    Raises:
      UserError: The errors of `MultiTower`, or invalid options.
    """

    OPTIONS = ("backbone", "num_classes", "rare_bias")

    @staticmethod
    def tower_key(modality: str) -> str:
        """Returns the config key of the backbone without 'config.'."""
        return "model.backbone"

    def __init__(
        self,
        *,
        backbone: Spec,
        num_classes: int,
        dropout_rate: float | None = None,
        rare_bias: bool | None = None,
        rngs: nnx.Rngs,
        **shared: Any,
    ):
        if num_classes < 2:
            raise UserError(f"num_classes must be at least 2; got {num_classes}.")
        spec = as_dict(backbone)
        name = spec.get("name")
        if name not in BACKBONES and not registry.is_reference(name):
            raise unknown("config.model.backbone", name, [*BACKBONES, "package.module:Name"])
        unified = name.startswith("ut_")
        if unified:
            modality = spec.pop("modality", "video")
            size = spec.pop("name").removeprefix("ut_")
            options = {key: spec.pop(key) for key in ENCODER_OPTIONS if key in spec}
            towers = _unified(size, (modality,), **{**shared, **options, modality: spec})
            super().__init__(rngs=rngs, **towers)
        else:
            entry = find_tower(name, "model.backbone")
            super().__init__(towers={entry.modality: spec}, rngs=rngs, **shared)
        (self.modality,) = self.modalities
        tower = getattr(self, self.modality)
        is_video, is_audio = self.modality == "video", self.modality == "audio"
        published_rate = 0.2 if unified else 0.5 if is_video else 0.0
        self.dropout_rate = published_rate if dropout_rate is None else dropout_rate
        rare_bias = is_audio if rare_bias is None else rare_bias
        bias = -math.log(num_classes - 1) if rare_bias else 0.0
        init = nnx.initializers.glorot_normal() if is_video else nnx.initializers.glorot_uniform()
        self.classifier = nnx.Linear(
            tower.out_features,
            num_classes,
            kernel_init=init,
            bias_init=nnx.initializers.constant(bias),
            rngs=rngs,
        )

    def encode(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns the pooled features, float32 [N, D], of the model's modality.

        Args:
          inputs: {modality: array}; other modalities are ignored.
          key: Random key of dropout and DropToken; required if `train`.
          train: Whether to run in training mode.

        Raises:
          UserError: `inputs` lacks the modality.
        """
        if train and key is None:
            raise TypeError("encode(train=True) needs a key.")
        if self.modality not in inputs:
            raise UserError(
                f"config.model.backbone encodes {self.modality}, but the batch has only "
                f"{', '.join(sorted(inputs))}. Add config.data.{self.modality}."
            )
        pooled, _ = self.run({self.modality: inputs[self.modality]}, key if train else None)
        return pooled[self.modality]

    def classify(
        self, pooled: jax.Array, *, key: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Returns logits, float32 [N, num_classes], for pooled features [N, D]."""
        return self.classifier(dropout(pooled, self.dropout_rate, key if train else None))

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Returns the operations for one example; see `Multimodal.flops`."""
        total, count = self.tower_flops(self.modality, shapes[self.modality], train=train)
        total += count * 2.0 * self.classifier.in_features * self.classifier.out_features
        return 3 * total if train else total


def _changed(
    towers: Mapping[str, Spec], options: dict[str, Any]
) -> tuple[dict[str, Spec], dict[str, Any]]:
    """Returns `(towers, remaining options)` after applying the options of modalities to `towers`.

    The option of a modality is the name of another tower, a dict of options to change, None to
    remove the tower, or '' for no change. A modality that is not in `towers` needs a name.

    Raises:
      UserError: A modality without the name of a tower.
    """
    changes = {modality: options[modality] for modality in INPUTS if modality in options}
    rest = {key: value for key, value in options.items() if key not in changes}
    result: dict[str, Spec] = dict(towers)
    for modality, change in changes.items():
        own = as_dict(towers[modality]) if modality in towers else {}
        if change is None:
            result.pop(modality, None)
        elif change:
            result[modality] = own | as_dict(change)
            if "name" not in result[modality]:
                raise UserError(
                    f"config.model.{modality}.name is missing: this model has no {modality} tower "
                    "by default. Set it to the name of a tower."
                )
    return result, rest


def _separate(
    towers: Mapping[str, Spec], *, head: Spec = "fac", **options: Any
) -> Callable[[nnx.Rngs], Multimodal]:
    """Returns a constructor of `Multimodal` in which each tower has its own encoder.

    Args:
      towers: {modality: spec of `build_tower`}.
      head: See `Multimodal`.
      **options: For each modality (video, audio, text, image, touch): the name of another tower, a
        dict of options to change (`name` selects another tower), None to omit it, or '' for no
        change. All other options apply to all towers, for example dtype, remat, dropout_rate and
        scan_unroll.
    """
    towers, shared = _changed(towers, options)
    return lambda rngs: Multimodal(towers=towers, head=head, rngs=rngs, **shared)


def tx_fac(*, size: str = "mbs", **options: Any) -> Callable[[nnx.Rngs], Multimodal]:
    """Returns a constructor of VATT's modality-specific model.

    Args:
      size: A key of `TX_SIZES`.
      **options: Arguments of `_separate`.
    """
    return _separate(choose("config.model.size of tx_fac:", size, TX_SIZES), **options)


def mmv_fac(*, size: str = "i3d", **options: Any) -> Callable[[nnx.Rngs], Multimodal]:
    """Returns a constructor of MMV: convolutional video and spectrogram towers, and linear text.

    Args:
      size: A key of `MMV_SIZES`.
      **options: Arguments of `_separate`.
    """
    return _separate(choose("config.model.size of mmv_fac:", size, MMV_SIZES), **options)


def _unified(
    size: str,
    modalities: Sequence[str],
    *,
    post_projection: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Returns arguments of `MultiTower` for towers around one encoder.

    Args:
      size: Size of the encoder.
      modalities: Modalities of the model.
      post_projection: Width of the pooled features; None uses 1024 (128 for 'tiny').
      **options: Options of modalities as in `_changed`, and options of the encoder.
    """
    check_choice("size of a unified model:", size, UT_SIZES)
    patches = "tiny" if size == "tiny" else "base"  # patches and tables; the encoder has `size`
    width = post_projection or (128 if size == "tiny" else 1024)
    towers: dict[str, Spec] = {
        "video": dict(name=f"vit_{patches}", pre_projection=True),
        "audio": dict(name=f"wat_{patches}", pre_projection=True),
        "text": dict(name=f"bert_{patches}", projection_bias=True),
    }
    for modality in modalities:
        check_choice("modality of a unified model:", modality, towers)
    towers = {m: dict(towers[m], post_projection=width) for m in modalities}
    towers, encoder = _changed(towers, options)
    for modality in towers:
        if modality not in modalities:
            raise UserError(
                f"config.model.{modality}: the shared encoder of this model encodes "
                f"{', '.join(modalities)}. Remove the key, or use a model with separate towers "
                "(config.model.name='tx_fac')."
            )
    valid = [*ENCODER_OPTIONS, *Multimodal.OPTIONS, "post_projection"]
    config.check_keys(encoder, valid, "model")
    return dict(towers=towers, encoder={**ENCODERS[size], **encoder})


def ut_fac(
    *, size: str = "medium", head: Spec = "fac", **options: Any
) -> Callable[[nnx.Rngs], Multimodal]:
    """Returns a constructor of VATT's modality-agnostic model: one encoder for all modalities.

    Args:
      size: 'base', 'medium' or 'large'; 'tiny' is ours.
      head: See `Multimodal`.
      **options: For `video`, `audio` and `text`: options of the patches, positions and DropToken of
        the modality (`name` selects another tower, such as spt_base for spectrograms), or None to
        omit it. All other options are those of the encoder, and `post_projection`, the width of the
        pooled features (1024).
    """
    towers = _unified(size, ("video", "audio", "text"), **options)
    return lambda rngs: Multimodal(head=head, rngs=rngs, **towers)


def classifier(
    *,
    backbone: Spec,
    num_classes: int,
    dropout_rate: float | None = None,
    rare_bias: bool | None = None,
    **shared: Any,
) -> Callable[[nnx.Rngs], Classifier]:
    """Returns a constructor of `Classifier`.

    `dropout_rate` is the rate before its dense layer, not that of the tower.
    """
    return lambda rngs: Classifier(
        backbone=backbone,
        num_classes=num_classes,
        dropout_rate=dropout_rate,
        rare_bias=rare_bias,
        rngs=rngs,
        **shared,
    )


MODELS = {"tx_fac": tx_fac, "ut_fac": ut_fac, "mmv_fac": mmv_fac, "classifier": classifier}


def make_model(name: str = "tx_fac", **options: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    """Returns a constructor of the named model for `mmjax.state.ModelDef`.

    Args:
      name: A name in `MODELS`, or `package.module:Name` for a function that takes the other keys of
        `config.model` and returns such a constructor.
      **options: Arguments of that function.

    Raises:
      UserError: An unknown model or option.
    """
    return registry.resolve("config.model.name", name, MODELS)(**options)

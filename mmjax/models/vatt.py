"""VATT's models: towers and a projection head for pretraining; a tower and a classifier after it.

Source: Akbari et al. 2021, "VATT: Transformers for Multimodal Self-Supervised Learning from Raw
Video, Audio and Text", and its published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.errors import UserError, choose, unknown
from mmjax.modalities import INPUTS
from mmjax.models.blocks.heads import HEADS
from mmjax.models.blocks.noise import dropout
from mmjax.models.blocks.patches import SIZES as ENCODERS
from mmjax.models.towers.registry import (
    ENCODER_OPTIONS,
    TOWERS,
    Spec,
    Towers,
    as_dict,
    keyword_options,
)

# Published sizes of tx_fac: the first letter is the video tower's, then audio's, then text's.
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
# What `Classifier` takes: all towers but those for text, and one modality of a unified model.
BACKBONES = (
    *(name for name, (modality, *_) in TOWERS.items() if modality != "text"),
    *(f"ut_{size}" for size in UT_SIZES),
)


class Multimodal(Towers):
    """Towers, and a head that projects their pooled features: what is pretrained.

    Args:
      head: 'fac', 'joint', or a dict of `name` and options.
      rngs: for initialization.
      **towers: arguments of `Towers`.
    """

    OPTIONS = ("size", *INPUTS, "head")

    def __init__(self, *, head: Spec = "fac", rngs: nnx.Rngs, **towers: Any):
        super().__init__(rngs=rngs, **towers)
        options = as_dict(head)
        name = options.pop("name", "fac")
        cls = choose("head", name, HEADS)
        valid = sorted(keyword_options(cls.__init__) - {"widths"})
        for key in options:
            if key not in valid:
                raise unknown(f"option of the head {name}:", key, valid)
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
        """Pooled features of each modality given.

        Args:
          inputs: {modality: array [N_m, …]}: video float [N, T, H, W, 3] in [-1, 1], audio float
            [N, S] or, for `spt_*`, [N, frames, bins], image and touch float [N, H, W, 3], text int
            [N, W] (0 is padding). Batch sizes may differ.
          key: randomness of dropout and DropToken; needed when `train`.
          train: use them.
          tokens: also return every token.

        Returns:
          {modality: float32 [N_m, D_m]}; with `tokens`, a pair of that and {modality: [N_m, tokens,
          D_m]}.
        """
        if train and key is None:
            raise TypeError("encode(train=True) needs a key.")
        pooled, rest = self.run(inputs, key if train else None)
        return (pooled, rest) if tokens else pooled

    def project(
        self, pooled: Mapping[str, jax.Array], *, train: bool = False
    ) -> dict[str, jax.Array]:
        """{'a/b': [N, d]}, features of a embedded for comparison with b; see the head's class."""
        return self.head(pooled, train=train)

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Operations for one example.

        Args:
          shapes: {modality: shape of its input without batch}; axes in front (views [V, …],
            captions [L, W]) multiply.
          train: count forward and backward (three times forward) with DropToken; False: forward.
        """
        total = 0.0
        for modality, shape in shapes.items():
            operations, count = self.tower_flops(modality, shape, train=train)
            total += operations + count * self.head.flops(modality)
        return 3 * total if train else total


class Classifier(Towers):
    """A tower, dropout and a dense layer, for fine-tuning.

    The tower's parameters have the same paths as in `Multimodal` (`video/…`, for `ut_*` also
    `encoder/…`), so a pretrained one loads by name.

    Args:
      backbone: spec of `build_tower`; or 'ut_base', 'ut_medium' or 'ut_large', one modality of a
        unified model, as a dict with `modality` ('video' by default) and options of its encoder and
        of that modality's tower.
      num_classes: outputs.
      dropout_rate: before the dense layer; None is VATT's: 0.5 for video, 0 for others, 0.2 for
        `ut_*`.
      rare_bias: start the bias at -ln(num_classes - 1), so that each sigmoid starts at 1 /
        num_classes (many labels, few true); None is VATT's: for audio alone.
      rngs: for initialization.
      **shared: options for the tower (dtype, remat, …).
    """

    OPTIONS = ("backbone", "num_classes", "rare_bias")

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
            raise UserError(f"num_classes must be at least 2, not {num_classes}.")
        spec = as_dict(backbone)
        name = spec.get("name")
        if name not in BACKBONES:
            raise unknown("backbone", name, BACKBONES)
        unified = name.startswith("ut_")
        if unified:
            modality = spec.pop("modality", "video")
            size = spec.pop("name").removeprefix("ut_")
            options = {key: spec.pop(key) for key in ENCODER_OPTIONS if key in spec}
            parts = _unified(size, (modality,), **{**shared, **options, modality: spec})
            super().__init__(rngs=rngs, **parts)
        else:
            super().__init__(towers={TOWERS[name][0]: spec}, rngs=rngs, **shared)
        (self.modality,) = self.modalities
        tower = getattr(self, self.modality)
        is_video, is_audio = self.modality == "video", self.modality == "audio"
        published = 0.2 if unified else 0.5 if is_video else 0.0
        self.dropout_rate = published if dropout_rate is None else dropout_rate
        start = (
            -math.log(num_classes - 1) if (is_audio if rare_bias is None else rare_bias) else 0.0
        )
        init = nnx.initializers.glorot_normal() if is_video else nnx.initializers.glorot_uniform()
        self.classifier = nnx.Linear(
            tower.out_features,
            num_classes,
            kernel_init=init,
            bias_init=nnx.initializers.constant(start),
            rngs=rngs,
        )

    def encode(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Pooled features, float32 [N, D], of its modality; arguments as of `Multimodal.encode`."""
        if train and key is None:
            raise TypeError("encode(train=True) needs a key.")
        if self.modality not in inputs:
            raise UserError(f"The backbone needs {self.modality}; the batch has {sorted(inputs)}.")
        pooled, _ = self.run({self.modality: inputs[self.modality]}, key if train else None)
        return pooled[self.modality]

    def classify(
        self, pooled: jax.Array, *, key: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Logits, float32 [N, num_classes]."""
        return self.classifier(dropout(pooled, self.dropout_rate, key if train else None))

    def flops(self, shapes: Mapping[str, Sequence[int]], *, train: bool = False) -> float:
        """Operations for one example, as `Multimodal.flops`; other modalities are ignored."""
        total, count = self.tower_flops(self.modality, shapes[self.modality], train=train)
        total += count * 2.0 * self.classifier.in_features * self.classifier.out_features
        return 3 * total if train else total


def _changed(
    towers: Mapping[str, Spec], options: dict[str, Any]
) -> tuple[dict[str, Spec], dict[str, Any]]:
    """Towers with the changes that `options` has for them, and the options that are left.

    The change of a modality is another tower's name, options, None to leave it out, or '' for none.
    A modality that `towers` lacks needs a name.
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
                    f"No tower for {modality}: name one, config.model.{modality}.name=…"
                )
    return result, rest


def _separate(
    towers: Mapping[str, Spec], *, head: Spec = "fac", **options: Any
) -> Callable[[nnx.Rngs], Multimodal]:
    """A constructor of towers that have an encoder of their own each, from changes to named ones.

    Args:
      towers: {modality: spec}.
      head: see `Multimodal`.
      **options: of a modality (video, audio, text, image, touch): the name of another tower, a dict
        of options to change (with `name`: of another tower), None to leave it out, '' for that of
        `towers`, which has none for image and touch; all others are for all towers, e.g. dtype,
        remat, dropout_rate, scan_unroll.
    """
    towers, shared = _changed(towers, options)
    return lambda rngs: Multimodal(towers=towers, head=head, rngs=rngs, **shared)


def tx_fac(*, size: str = "mbs", **options: Any) -> Callable[[nnx.Rngs], Multimodal]:
    """A constructor of VATT's modality-specific model.

    Args:
      size: a key of `TX_SIZES`.
      **options: of `_separate`.
    """
    return _separate(choose("size of tx_fac", size, TX_SIZES), **options)


def mmv_fac(*, size: str = "i3d", **options: Any) -> Callable[[nnx.Rngs], Multimodal]:
    """A constructor of MMV: convolutional towers on video and spectrograms, linear text.

    Args:
      size: a key of `MMV_SIZES`.
      **options: of `_separate`.
    """
    return _separate(choose("size of mmv_fac", size, MMV_SIZES), **options)


def _unified(
    size: str,
    modalities: Sequence[str],
    *,
    post_projection: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of `Towers`: these modalities around one encoder of this size, with the changes of
    `options` to them (as in `_changed`) and to the encoder."""
    choose("size of ut", size, dict.fromkeys(UT_SIZES))
    named = "tiny" if size == "tiny" else "base"  # patches and tables; the encoder is `size`'s
    width = post_projection or (128 if size == "tiny" else 1024)
    towers: dict[str, Spec] = {
        "video": dict(name=f"vit_{named}", pre_projection=True),
        "audio": dict(name=f"wat_{named}", pre_projection=True),
        "text": dict(name=f"bert_{named}", projection_bias=True),
    }
    for modality in modalities:
        choose("modality of ut", modality, towers)
    towers = {m: dict(towers[m], post_projection=width) for m in modalities}
    towers, encoder = _changed(towers, options)
    for modality in towers:
        if modality not in modalities:
            raise UserError(
                f"The encoder that modalities share takes video, audio and text, not {modality}: "
                f"leave config.model.{modality} out, or take another model (tx_fac)."
            )
    for key in encoder:
        if key not in ENCODER_OPTIONS:
            raise unknown(
                "config key model", key, [*ENCODER_OPTIONS, *Multimodal.OPTIONS, "post_projection"]
            )
    return dict(towers=towers, encoder={**ENCODERS[size], **encoder})


def ut_fac(
    *, size: str = "medium", head: Spec = "fac", **options: Any
) -> Callable[[nnx.Rngs], Multimodal]:
    """A constructor of VATT's modality-agnostic model: one encoder for the tokens of all
    modalities.

    Args:
      size: 'base', 'medium', 'large'; 'tiny' is ours.
      head: see `Multimodal`.
      **options: `video`, `audio`, `text`: options of a modality's patches, positions and DropToken,
        None to leave it out (`name` takes another tower's; spt_base: spectrograms); all others are
        the encoder's, and `post_projection`, the width of the pooled features (1024).
    """
    parts = _unified(size, ("video", "audio", "text"), **options)
    return lambda rngs: Multimodal(head=head, rngs=rngs, **parts)


def classifier(
    *,
    backbone: Spec,
    num_classes: int,
    dropout_rate: float | None = None,
    rare_bias: bool | None = None,
    **shared: Any,
) -> Callable[[nnx.Rngs], Classifier]:
    """A constructor of `Classifier`; `dropout_rate` is before its dense layer, not the tower's."""
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
    """A constructor of the named model, for `mmjax.state.ModelDef`.

    Raises:
      UserError: an unknown model or option, by name.
    """
    return choose("model", name, MODELS)(**options)

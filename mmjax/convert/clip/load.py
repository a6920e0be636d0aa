"""Reads TVL's published checkpoints and OpenCLIP's files.

TVL (Fu et al. 2024, A Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv
2402.13232) names the arrays of its touch encoder as timm's ViT or torchvision's ResNet-18. Its
files are dicts with the keys `model`, `optimizer`, `epoch` and `scaler`; checkpoints of training
runs also have `args`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmjax.convert import torch_source
from mmjax.convert.clip import names as clip_names
from mmjax.convert.torch_source import UNKNOWN, NamingScheme, TorchSource
from mmjax.convert.vision import names as vision_names
from mmjax.errors import UserError
from mmjax.formats.name_rules import Rule, Rules, dense, prefixes, with_prefix

SCALAR_PATHS = ("logit_scale", "logit_bias")
SCALARS: Rules = [Rule(name, (name,)) for name in SCALAR_PATHS]
CLIP = "clip/"  # prefix of the scalars of an OpenCLIP model
HEADS: Rules = [
    Rule(f"modality_heads.{name}.weight", (f"heads/{modality}/kernel",), "dense")
    for name, modality in {"tactile": "touch", "vision": "image", "text": "text"}.items()
]
TOUCH = "tactile_encoder."
_ENDINGS = {"vit": vision_names.ENDINGS["vit"], "resnet": vision_names.ENDINGS["resnet"]}


RULES: dict[str, Rules] = {
    "vit": vision_names.VIT,
    "resnet": [*vision_names.RESNET, *dense("fc", "projection")],
    "clip_image": clip_names.IMAGE,
    "clip_text": clip_names.TEXT,
    "scalars": SCALARS,
    "heads": HEADS,
}


@dataclasses.dataclass(frozen=True)
class Component:
    """A component of a model in a file.

    Attributes:
      type: Key of `RULES`; 'vit' and 'resnet' are touch encoders.
      path: Prefix of its paths in mmjax, for example 'touch/'.
      key: Prefix of its names in the file.
    """

    type: str
    path: str
    key: str

    @property
    def rules(self) -> Rules:
        """The names of its arrays, with prefixes."""
        return with_prefix(RULES[self.type], key=self.key, path=self.path)


def find_components(names: Sequence[str]) -> tuple[Component, ...]:
    """Returns the components of a model in a file with arrays of these names.

    Returns:
      The components; () if the file contains no supported model.

    Raises:
      UserError: There are two towers for one modality, or the image tower is not a plain ViT.
    """
    images = [f"{prefix}visual." for prefix in prefixes(names, clip_names.IMAGE_KEY)]
    images = [prefix for prefix in images if f"{prefix}class_embedding" in names]
    texts = prefixes(names, clip_names.TEXT_KEY)
    towers = [Component("clip_image", "image/", prefix) for prefix in images]
    towers += [Component("clip_text", "text/", prefix) for prefix in texts]
    for type_, ending in _ENDINGS.items():
        for prefix in prefixes(names, ending):
            if "visual." in prefix:
                raise UserError(
                    f"the image tower {prefix[: prefix.index('visual.') + 7]} is not supported; "
                    "expected a plain ViT of CLIP."
                )
            towers.append(Component(type_, "touch/", prefix))
    for path in ("touch/", "image/", "text/"):
        keys = [component.key for component in towers if component.path == path]
        if len(keys) > 1:
            raise UserError(
                f"the file contains {len(keys)} {path[:-1]} towers, with the prefixes "
                f"{' and '.join(map(repr, keys))}. Save only one of them in a file."
            )
    # The scalars of TVL's model precede those of the CLIP model that it contains.
    roots = [tower.key.removesuffix(TOUCH) for tower in towers if tower.path == "touch/"]
    roots += [prefix.removesuffix("visual.") for prefix in images]
    roots += [prefix.removesuffix("text.") for prefix in texts]
    scalars = [root for root in roots if f"{root}logit_scale" in names]
    components = towers + [Component("scalars", "", root) for root in scalars[:1]]
    heads = [root for root in roots if any(name.startswith(f"{root}modality_") for name in names)]
    return tuple(components + [Component("heads", "", root) for root in heads[:1]])


def find_scheme(names: Sequence[str]) -> NamingScheme | None:
    """Returns the naming scheme of a file with arrays of these names; None if not supported.

    Raises:
      UserError: See `find_components`.
    """
    components = find_components(names)
    if not components:
        return None
    roots = tuple(
        component.key.removesuffix(TOUCH).removesuffix("visual.") for component in components
    )

    def unused_reason(name: str) -> str:
        last = name.rsplit(".", 1)[-1]
        if last == vision_names.COUNTER or last in clip_names.CONSTANTS:
            return "constant"
        if last == "logit_scale":
            return "duplicate of the model's scale"
        return UNKNOWN if name.startswith(roots) else "unknown, outside the model"

    return NamingScheme(
        components={each.path.rstrip("/") or each.type: each.type for each in components},
        rules=[rule for component in components for rule in component.rules],
        unused_reason=unused_reason,
    )


def read(source: str) -> TorchSource:
    """Returns the entries of one file.

    Raises:
      UserError: The file cannot be read or contains no supported model.
    """
    return torch_source.read_file(
        source,
        find_scheme,
        expected="the names of a TVL touch encoder (timm's ViT or torchvision's ResNet) or of an "
        "OpenCLIP model with a ViT, or of a ResNet, MobileNetV2 or ViT of torchvision or timm. For "
        "a model in the format of the transformers library, use its open_clip_* file.",
    )


def read_all(sources: Sequence[str]) -> TorchSource:
    """Returns the entries of several files. Scalars and heads are those of the first file.

    Raises:
      UserError: A file cannot be read, or two files contain the same tower.
    """
    return torch_source.read_files(sources, read, shared=("scalars", "heads"))


def load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of a file for `mmjax.convert.load.load_params`.

    Without a touch encoder, the scalars of an OpenCLIP model have the prefix `CLIP`: its scale is
    for pairs of images and text, and a model with touch learns its own.

    Returns:
      `(arrays, description)`: {path: array}, and a description for the log.

    Raises:
      UserError: The file cannot be read, contains no supported model, or is incomplete.
    """
    file = read(source)
    leaves = file.params(source)
    if "touch" not in file.components:
        scalars = [path for path in leaves if path in SCALAR_PATHS]
        leaves |= {CLIP + path: leaves.pop(path) for path in scalars}
    labels = {"touch": "touch encoder", "image": "image tower", "text": "text tower"}
    towers = [label for component, label in labels.items() if component in file.components]
    return leaves, f"the {' and '.join(towers)} of {source}"


def with_clip_scalars(
    leaves: Mapping[str, np.ndarray], target: Iterable[str]
) -> dict[str, np.ndarray]:
    """Returns the leaves with the scalars of an OpenCLIP model for a model without touch.

    Scalars of another source are preferred. A model with touch does not get OpenCLIP's.

    Args:
      leaves: {path: array} of the sources.
      target: Paths of the model.
    """
    touch = any(path.startswith("touch/") for path in target)
    scalars = {} if touch else {k: leaves[CLIP + k] for k in SCALAR_PATHS if CLIP + k in leaves}
    return scalars | {path: x for path, x in leaves.items() if not path.startswith(CLIP)}

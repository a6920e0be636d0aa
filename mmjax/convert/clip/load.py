"""TVL's published checkpoints and OpenCLIP's files as arrays under our names.

TVL (Fu et al. 2024, A Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv
2402.13232) names its touch encoder as timm's ViT or torchvision's ResNet-18; its files are a dict
of `model`, `optimizer`, `epoch`, `scaler` and, of one's own trainings, `args`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmjax.convert import torch_contents
from mmjax.convert.clip import names as clip_names
from mmjax.convert.torch_contents import UNKNOWN, Contents, Layout
from mmjax.convert.vision import names as vision_names
from mmjax.errors import UserError
from mmjax.formats.name_rules import QKV, Rule, Rules, dense, norm, prefixes, with_prefix

_BLOCK, _LAYERS = "blocks.{i}", "encoder/layers"
VIT: Rules = [
    Rule("cls_token", ("class_token",), "class_token"),
    Rule("pos_embed", ("positions",), "positions"),
    Rule("patch_embed.proj.weight", ("patch/kernel",), "convolution"),
    Rule("patch_embed.proj.bias", ("patch/bias",)),
    *norm("norm_pre", "pre_norm"),
    *norm(f"{_BLOCK}.norm1", f"{_LAYERS}/attention_norm"),
    *dense(f"{_BLOCK}.attn.qkv", *QKV),
    *dense(f"{_BLOCK}.attn.proj", f"{_LAYERS}/attention/out"),
    *norm(f"{_BLOCK}.norm2", f"{_LAYERS}/mlp_norm"),
    *dense(f"{_BLOCK}.mlp.fc1", f"{_LAYERS}/mlp/up"),
    *dense(f"{_BLOCK}.mlp.fc2", f"{_LAYERS}/mlp/down"),
    *norm("norm", "encoder/final_norm"),
    *norm("fc_norm", "pool_norm"),
    *dense("head", "projection"),
]


SCALAR_PATHS = ("logit_scale", "logit_bias")
SCALARS: Rules = [Rule(name, (name,)) for name in SCALAR_PATHS]
CLIP = "clip/"  # in front of the paths of an OpenCLIP model's own scalars
HEADS: Rules = [
    Rule(f"modality_heads.{theirs}.weight", (f"heads/{ours}/kernel",), "dense")
    for theirs, ours in {"tactile": "touch", "vision": "image", "text": "text"}.items()
]
TOUCH = "tactile_encoder."
_ENDINGS = {"vit": "patch_embed.proj.weight", "resnet": vision_names.ENDINGS["resnet"]}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model in a file.

    Attributes:
      kind: 'vit', 'resnet' (both of touch), 'clip_image', 'clip_text', 'scalars' or 'heads'.
      ours: in front of our paths, e.g. 'touch/'.
      theirs: in front of their names.
    """

    kind: str
    ours: str
    theirs: str

    @property
    def rules(self) -> Rules:
        """Of whole names and paths."""
        return with_prefix(RULES[self.kind], key=self.theirs, path=self.ours)


RULES: dict[str, Rules] = {
    "vit": VIT,
    "resnet": [*vision_names.RESNET, *dense("fc", "projection")],
    "clip_image": clip_names.IMAGE,
    "clip_text": clip_names.TEXT,
    "scalars": SCALARS,
    "heads": HEADS,
}


def layout_of(names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of the model that a file with these names is of; () if it is none of ours.

    Raises:
      UserError: a part is there twice, or it is a CLIP whose image tower is no plain ViT.
    """
    images = [f"{prefix}visual." for prefix in prefixes(names, clip_names.IMAGE_KEY)]
    images = [place for place in images if f"{place}class_embedding" in names]
    texts = prefixes(names, clip_names.TEXT_KEY)
    towers = [Part("clip_image", "image/", place) for place in images]
    towers += [Part("clip_text", "text/", place) for place in texts]
    for kind, ending in _ENDINGS.items():
        for place in prefixes(names, ending):
            if "visual." in place:
                raise UserError(
                    f"its image tower, below {place[: place.index('visual.') + 7]}, is not a "
                    "plain ViT of CLIP, which is what mmjax has."
                )
            towers.append(Part(kind, "touch/", place))
    for ours in ("touch/", "image/", "text/"):
        places = [part.theirs for part in towers if part.ours == ours]
        if len(places) > 1:
            raise UserError(
                f"it has {len(places)} towers for {ours[:-1]}: below {' and '.join(places)}. Save "
                "the entry that is meant alone."
            )
    # The scalars of TVL's own model go before those of the CLIP in it.
    roots = [part.theirs.removesuffix(TOUCH) for part in towers if part.ours == "touch/"]
    roots += [place.removesuffix("visual.") for place in images]
    roots += [place.removesuffix("text.") for place in texts]
    scalars = [root for root in roots if f"{root}logit_scale" in names]
    parts = towers + [Part("scalars", "", root) for root in scalars[:1]]
    heads = [root for root in roots if any(name.startswith(f"{root}modality_") for name in names)]
    return tuple(parts + [Part("heads", "", root) for root in heads[:1]])


def find(names: Sequence[str]) -> Layout | None:
    """The layout of a file with arrays of these names; None if it is none of ours.

    Raises:
      UserError: see `layout_of`.
    """
    parts = layout_of(names)
    if not parts:
        return None
    roots = tuple(part.theirs.removesuffix(TOUCH).removesuffix("visual.") for part in parts)
    kinds = {part.ours.rstrip("/") or part.kind: part.kind for part in parts}
    rules = [rule for part in parts for rule in part.rules]
    return Layout(kinds, rules, lambda name: _what(name, roots))


def _what(name: str, roots: tuple[str, ...]) -> str:
    """What an array is that no rule knows."""
    last = name.rsplit(".", 1)[-1]
    if last == vision_names.COUNTER or last in clip_names.CONSTANTS:
        return "constant"
    if last == "logit_scale":
        return "left out, the model has its own"
    return UNKNOWN if name.startswith(roots) else "unknown, outside the model"


def read(source: str) -> Contents:
    """Sorts the entries of one file.

    Raises:
      UserError: it cannot be read, or holds no model of these kinds.
    """
    return torch_contents.read(
        source,
        find,
        otherwise="holds neither a touch encoder of TVL (timm's ViT, torchvision's ResNet) nor an "
        "OpenCLIP model with a ViT, by the names of its arrays: {names} … Files of the library "
        "transformers have other names; take the model's open_clip_* file.",
    )


def read_all(sources: Sequence[str]) -> Contents:
    """Sorts the entries of several files; of the scalars that they share, the first file's count.

    Raises:
      UserError: see `read`; or two files have the same tower.
    """
    return torch_contents.together(sources, read, shared=("scalars", "heads"))


def load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """`({path: array}, words for the log)`, as `mmjax.init_from.load_params` gives them.

    Arrays in the model that have no name with us stand under their own. The scale of an OpenCLIP
    model, of images with text, stands below `CLIP`: touch with them has another.

    Raises:
      UserError: see `read`; or the array of some layer is missing or has another shape.
    """
    found = read(source)
    leaves = found.values(source)
    if "touch" not in found.parts:
        scalars = [path for path in leaves if path in SCALAR_PATHS]
        leaves |= {CLIP + path: leaves.pop(path) for path in scalars}
    what = {"touch": "touch encoder", "image": "image tower", "text": "text tower"}
    parts = [words for part, words in what.items() if part in found.parts]
    return leaves, f"the {' and '.join(parts)} of {source}"


def with_scale_of_clip(
    leaves: Mapping[str, np.ndarray], target: Iterable[str]
) -> dict[str, np.ndarray]:
    """The leaves for a model of these paths: an OpenCLIP model's scalars are those of a model
    without touch, if no other source has them, and of no use to one with it."""
    touch = any(path.startswith("touch/") for path in target)
    scalars = {} if touch else {k: leaves[CLIP + k] for k in SCALAR_PATHS if CLIP + k in leaves}
    return scalars | {path: x for path, x in leaves.items() if not path.startswith(CLIP)}

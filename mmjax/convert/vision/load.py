"""Backbones of images, alone or with the heads that LGSSL trains them with, under our names.

What is read: a ResNet or MobileNetV2 with torchvision's or timm's names, below any prefix, as LGSSL
(El Banani et al. 2023, arXiv 2302.12248) publishes its backbones, and as the published weights of
SimCLR (Lightning Bolts), SimSiam, SwAV and MoCo v3 have them; and the checkpoints that LGSSL's
trainings write (PyTorch Lightning), of all its methods.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmjax.convert import torch_contents
from mmjax.convert.clip import names as clip_names
from mmjax.convert.torch_contents import UNKNOWN, Contents, Layout
from mmjax.convert.vision import names as vision_names
from mmjax.errors import UserError
from mmjax.formats import torch_reader
from mmjax.formats.name_rules import Rule, Rules, dense, match_keys, norm, with_prefix

# In front of the paths of a backbone whose tower the file does not tell: images' or touch's.
BACKBONE = "backbone/"
_VISUAL, _LANGUAGE = "visual_backbone.", "language_backbone."
_DEPTH = 8  # layers of the deepest MLP that is read
# Heads beside a backbone; the first is one into the space of texts where it is a single layer.
_HEADS = {
    "visual_project": "projection",
    "proj_mlp": "projection",
    "pred_mlp": "predictor",
    "clip_vis_project": "clip",
}
_OF_TEXTS = ("language_project.", "clip_scale", _LANGUAGE)
HEAD = "left out, a head"
AVERAGE = "left out, a moving average"
NO_TEXTS = "left out, its encoder of texts is no CLIP's"
OUTSIDE = "outside the model"
# In names of what other models have beside their backbone.
_HEAD = re.compile(
    r"(^|\.)(fc|head|classifier|projection|projection_head|projector|predictor|prototypes|queue|"
    r"queue_ptr|non_linear_evaluator)(\.|$)"
)
_AVERAGES = ("momentum_encoder.", "encoder_k.")  # of the backbone


def _head(theirs: str, head: str) -> Rules:
    """Dense layers without bias in a Sequential, each followed by BatchNorm and ReLU; or one."""
    rules = [Rule(f"{theirs}.weight", (f"heads/{head}/linear/0/kernel",), "dense")]
    for layer in range(_DEPTH):
        ours, batch_norm = f"heads/{head}/norm/{layer}", f"{theirs}.{3 * layer + 1}"
        kernel = f"heads/{head}/linear/{layer}/kernel"
        rules += [
            Rule(f"{theirs}.{3 * layer}.weight", (kernel,), "dense"),
            *norm(batch_norm, ours),
            *vision_names.statistics(batch_norm, ours),
        ]
    return rules


def _training(names: Sequence[str], root: str) -> tuple[Rules, bool]:
    """The rules of what an LGSSL training has below `root` beside its backbone, and whether a tower
    of texts is there."""
    rules: list[Rule] = [Rule("prototypes.weight", ("prototypes/kernel",), "dense")]
    for theirs, head in _HEADS.items():
        if any(name.startswith(f"{root}{theirs}.") for name in names):
            linear = f"{root}visual_project.weight" in names and theirs == "visual_project"
            rules += _head(theirs, "clip" if linear else head)
    text = f"{root}{_LANGUAGE}{clip_names.TEXT_KEY}" in names
    if text:
        rules += [
            *_head("language_project", "text"),
            Rule("clip_scale", ("logit_scale",)),
            *with_prefix(clip_names.TEXT, key=_LANGUAGE, path="text/"),
        ]
    return with_prefix(rules, key=root), text


def find(names: Sequence[str]) -> Layout | None:
    """The layout of a file with arrays of these names; None if it has no backbone of these kinds,
    or is TVL's or OpenCLIP's.

    Raises:
      UserError: it has several backbones.
    """
    places = vision_names.places(names)
    texts = [name for name in names if name.endswith(clip_names.TEXT_KEY) and _LANGUAGE not in name]
    if texts or any("visual." in place or "tactile_encoder." in place for place in places):
        return None
    averages = tuple(place for place in places if place.endswith(_AVERAGES))
    kinds = {place: kind for place, kind in places.items() if place not in averages}
    if not kinds:
        return None
    if len(kinds) > 1:
        raise UserError(
            f"it has {len(kinds)} backbones: below {' and '.join(repr(place) for place in kinds)}. "
            "Save the entry that is meant alone."
        )
    ((place, kind),) = kinds.items()
    rules = list(with_prefix(vision_names.RULES[kind], key=place, path="image/"))
    parts, root = {"image": kind}, place.removesuffix(_VISUAL)
    trained = root != place  # by LGSSL's code
    if trained:
        more, text = _training(names, root)
        rules += more
        parts |= dict(text="clip_text") if text else {}
    without_texts = tuple(root + name for name in _OF_TEXTS) if trained and not text else ()
    top = f"{place.split('.')[0]}." if place else ""

    def what(name: str) -> str:
        last = name.rsplit(".", 1)[-1]
        if last == vision_names.COUNTER or last in clip_names.CONSTANTS:
            return "constant"
        if averages and name.startswith(averages):
            return AVERAGE
        if without_texts and name.startswith(without_texts):
            return NO_TEXTS
        if not trained and _HEAD.search(name):
            return HEAD
        return UNKNOWN if name.startswith(top) else OUTSIDE

    return Layout(parts, rules, what)


def fits(source: str) -> bool:
    """Whether a file of PyTorch's is of these.

    Raises:
      UserError: it cannot be read, or has several backbones.
    """
    try:
        return find(list(torch_reader.tensors(source))) is not None
    except UserError as error:
        where = "" if str(error).startswith(source) else f"{source}: "
        raise UserError(f"{where}{error}") from error


def read(source: str) -> Contents:
    """Sorts the entries of one file.

    Raises:
      UserError: it cannot be read, or holds no backbone of these kinds.
    """
    return torch_contents.read(
        source,
        find,
        otherwise="holds no backbone of images (a ResNet or MobileNetV2 of torchvision or timm), "
        "by the names of its arrays: {names} …",
    )


def load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """`({path: array}, words for the log)`, as `mmjax.init_from.load_params` gives them.

    A backbone alone stands below `BACKBONE`, with the dense layer behind it, if it is one, as
    `projection`; `of_tower` puts it where a model has it.

    Raises:
      UserError: see `read` and `Contents.values`.
    """
    found = read(source)
    leaves = found.values(source)
    if all(path.removeprefix("extra/").startswith("image/") for path in found.leaves):
        behind = {name: x.shape for name, x in found.arrays().items() if name in found.unused_keys}
        ending = re.compile(r"(^|\.)fc\.(weight|bias)$")
        places = {name[: name.rindex("fc.")] for name in behind if ending.search(name)}
        rules = [rule for place in places for rule in dense(f"{place}fc", "image/projection")]
        arrays = found.arrays()
        leaves |= {path: leaf.read(arrays) for path, leaf in match_keys(behind, rules)[0].items()}
        leaves = {path.replace("image/", BACKBONE, 1): x for path, x in leaves.items()}
    return leaves, f"the backbone of {source}"


def of_tower(leaves: Mapping[str, np.ndarray], target: Iterable[str]) -> dict[str, np.ndarray]:
    """The leaves for a model of these paths: a backbone alone is its tower's of images or touch.

    The dense layer behind it is left out where the tower has none.

    Raises:
      UserError: both towers could take it.
    """
    marked = {path for path in leaves if path.removeprefix("extra/").startswith(BACKBONE)}
    if not marked:
        return dict(leaves)
    target = set(target)
    towers = [tower for tower in ("image", "touch") if f"{tower}/stem/conv/kernel" in target]
    if len(towers) > 1:
        raise UserError(
            "These parameters are of one backbone, and this model has two that could take them. "
            f"Say which: config.init_map=(('{BACKBONE}', 'touch/'),), or 'image/'."
        )
    tower = towers[0] if towers else "image"
    rest = {path: x for path, x in leaves.items() if path not in marked}
    for path in marked:
        ours = path.replace(BACKBONE, f"{tower}/", 1)
        if ours in target or "/projection/" not in ours:
            rest[ours] = leaves[path]
    return rest

"""TVL's published checkpoints and OpenCLIP's files as arrays under our names.

TVL (Fu et al. 2024, A Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv
2402.13232) names its touch encoder as timm's ViT or torchvision's ResNet-18; its files are a dict
of `model`, `optimizer`, `epoch`, `scaler` and, of one's own trainings, `args`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.convert import clip, torch_files
from mmjax.convert.names import is_statistic, listing
from mmjax.convert.torch_names import (
    QKV,
    Leaf,
    Rule,
    Rules,
    below,
    dense,
    names_of,
    norm,
    prefixes,
    sort,
)
from mmjax.errors import UserError

_BLOCK, _LAYERS = "blocks.{i}", "encoder/layers"
VIT: Rules = [
    Rule("cls_token", ("class_token",), "token"),
    Rule("pos_embed", ("positions",), "table"),
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


def _unit(convolution: str, batch_norm: str, ours: str) -> Rules:
    """A convolution and its BatchNorm."""
    return [
        Rule(f"{convolution}.weight", (f"{ours}/conv/kernel",), "convolution"),
        *norm(batch_norm, f"{ours}/norm"),
        Rule(f"{batch_norm}.running_mean", (f"{ours}/norm/mean",)),
        Rule(f"{batch_norm}.running_var", (f"{ours}/norm/var",)),
    ]


_UNITS = {
    "first": ("conv1", "bn1"),
    "second": ("conv2", "bn2"),
    "third": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}
RESNET: Rules = [
    *_unit("conv1", "bn1", "stem"),
    *(
        rule
        for group in range(4)
        for ours, theirs in _UNITS.items()
        for rule in _unit(
            *(f"layer{group + 1}.{{j}}.{name}" for name in theirs), f"groups/{group}/{{j}}/{ours}"
        )
    ),
    *dense("fc", "projection"),
]
COUNTER = "num_batches_tracked"  # of BatchNorm, which needs none with a constant momentum
SCALAR_PATHS = ("logit_scale", "logit_bias")
SCALARS: Rules = [Rule(name, (name,)) for name in SCALAR_PATHS]
CLIP = "clip/"  # in front of the paths of an OpenCLIP model's own scalars
HEADS: Rules = [
    Rule(f"modality_heads.{theirs}.weight", (f"heads/{ours}/kernel",), "dense")
    for theirs, ours in {"tactile": "touch", "vision": "image", "text": "text"}.items()
]
TOUCH = "tactile_encoder."
_ENDINGS = {"vit": "patch_embed.proj.weight", "resnet": "layer1.0.conv1.weight"}


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
        return below(RULES[self.kind], theirs=self.theirs, ours=self.ours)


RULES: dict[str, Rules] = {
    "vit": VIT,
    "resnet": RESNET,
    "clip_image": clip.IMAGE,
    "clip_text": clip.TEXT,
    "scalars": SCALARS,
    "heads": HEADS,
}


def layout_of(names: Sequence[str]) -> tuple[Part, ...]:
    """The parts of the model that a file with these names is of; () if it is none of ours.

    Raises:
      UserError: a part is there twice, or it is a CLIP whose picture tower is no plain ViT.
    """
    images = [f"{prefix}visual." for prefix in prefixes(names, clip.IMAGE_KEY)]
    images = [place for place in images if f"{place}class_embedding" in names]
    texts = prefixes(names, clip.TEXT_KEY)
    towers = [Part("clip_image", "image/", place) for place in images]
    towers += [Part("clip_text", "text/", place) for place in texts]
    for kind, ending in _ENDINGS.items():
        for place in prefixes(names, ending):
            if "visual." in place:
                raise UserError(
                    f"its picture tower, below {place[: place.index('visual.') + 7]}, is not a "
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


@dataclasses.dataclass
class Contents:
    """What one or several files hold.

    Attributes:
      entries: {key: array or other value}, all there are. A key is a name; of several files the
        file's, a colon and a name.
      parts: of the model, {'touch', 'image', 'text', 'scalars' or 'heads': kind}.
      leaves: {our path: what it is made of}; statistics of BatchNorm have no `extra/` here.
      leftovers: {key: what it is} for keys that no leaf is made of.
      problems: {key: what is wrong}.
      step: training steps, by the optimizer's state; else 0.
    """

    entries: dict[str, Any]
    parts: dict[str, str]
    leaves: dict[str, Leaf]
    leftovers: dict[str, str]
    problems: dict[str, str]
    step: int
    rules: list[Rule] = dataclasses.field(default_factory=list)  # of the keys

    def names(self, path: str, shape: Sequence[int]) -> list[str]:
        """The keys that make up our array of this path and shape; the path itself if none do."""
        return names_of(path, shape[0] if shape else 1, self.rules) or [path]

    def arrays(self) -> dict[str, np.ndarray]:
        """{key: array} of the entries that are."""
        return {k: x for k, x in self.entries.items() if isinstance(x, np.ndarray)}

    def unknown(self) -> list[str]:
        """Keys of arrays in the model that mmjax has no array for."""
        return [key for key, what in self.leftovers.items() if what == UNKNOWN]


UNKNOWN = "unknown, in the model"
EARLIER = "left out, an earlier file has it"


def read(source: str) -> Contents:
    """Sorts the entries of one file.

    Raises:
      UserError: it cannot be read, or holds no model of these kinds.
    """
    entries = torch_files.entries(source)
    arrays = {name: x for name, x in entries.items() if isinstance(x, np.ndarray)}
    try:
        layout = layout_of(list(arrays))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if not layout:
        some = ", ".join(list(arrays)[:4]) or "none"
        raise UserError(
            f"{source} holds neither a touch encoder of TVL (timm's ViT, torchvision's ResNet) nor "
            f"an OpenCLIP model with a ViT, by the names of its arrays: {some} … Files of the "
            "library transformers have other names; take the model's open_clip_* file."
        )
    shapes = {name: array.shape for name, array in arrays.items()}
    rules = [rule for part in layout for rule in part.rules]
    leaves, problems, rest = sort(shapes, rules)
    roots = tuple(part.theirs.removesuffix(TOUCH).removesuffix("visual.") for part in layout)
    leftovers = {name: _what(name, roots) for name in rest}
    leftovers |= {k: f"value: {_shown(v)}" for k, v in entries.items() if k not in arrays}
    steps = [
        int(value)
        for name, value in entries.items()
        if name.startswith("optimizer.state.") and name.endswith(".step") and np.size(value) == 1
    ]
    kinds = {part.ours.rstrip("/") or part.kind: part.kind for part in layout}
    return Contents(entries, kinds, leaves, leftovers, problems, max(steps, default=0), rules)


def _what(name: str, roots: tuple[str, ...]) -> str:
    """What an array is that no rule knows."""
    last = name.rsplit(".", 1)[-1]
    if name.startswith("optimizer.") or ".optimizer." in name:
        return "optimizer state"
    if last == COUNTER or last in clip.CONSTANTS:
        return "constant"
    if last == "logit_scale":
        return "left out, the model has its own"
    return UNKNOWN if name.startswith(roots) else "unknown, outside the model"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def read_all(sources: Sequence[str]) -> Contents:
    """Sorts the entries of several files; of the scalars that they share, the first file's count.

    Raises:
      UserError: see `read`; or two files have the same tower.
    """
    whole = Contents({}, {}, {}, {}, {}, 0)
    names = [pathlib.Path(source).name for source in sources]
    labels = names if len(set(names)) == len(names) else list(sources)
    of: dict[str, str] = {}
    for source, label in zip(sources, labels, strict=True):
        one = read(source)
        prefix = f"{label}: " if len(sources) > 1 else ""
        for part, kind in one.parts.items():
            if part in of and part not in ("scalars", "heads"):
                raise UserError(f"{of[part]} and {source} both hold a tower for {part}. Give one.")
            of.setdefault(part, source)
            whole.parts.setdefault(part, kind)
        for path, leaf in one.leaves.items():
            keys = tuple(prefix + key for key in leaf.keys)
            if path in whole.leaves:
                whole.leftovers |= dict.fromkeys(keys, EARLIER)
            else:
                whole.leaves[path] = dataclasses.replace(leaf, keys=keys)
        whole.entries |= {prefix + key: value for key, value in one.entries.items()}
        whole.leftovers |= {prefix + key: what for key, what in one.leftovers.items()}
        whole.problems |= {prefix + key: what for key, what in one.problems.items()}
        whole.step = max(whole.step, one.step)
        whole.rules += below(one.rules, theirs=prefix)
    return whole


def load(source: str) -> tuple[dict[str, np.ndarray], str]:
    """`({path: array}, words for the log)`, as `mmjax.initialize.load_params` gives them.

    Arrays in the model that have no name with us stand under their own. The scale of an OpenCLIP
    model, of pictures with text, stands below `CLIP`: touch with them has another.

    Raises:
      UserError: see `read`; or the array of some layer is missing or has another shape.
    """
    contents = read(source)
    if contents.problems:
        raise UserError(f"{source}:\n{listing(contents.problems)}")
    arrays = contents.arrays()
    leaves: dict[str, np.ndarray] = {
        f"extra/{path}" if is_statistic(path) else path: leaf.read(arrays)
        for path, leaf in contents.leaves.items()
    }
    if "touch" not in contents.parts:
        scalars = [path for path in leaves if path in SCALAR_PATHS]
        leaves |= {CLIP + path: leaves.pop(path) for path in scalars}
    leaves |= {key: arrays[key] for key in contents.unknown()}
    what = {"touch": "touch encoder", "image": "picture tower", "text": "text tower"}
    parts = [words for part, words in what.items() if part in contents.parts]
    return leaves, f"the {' and '.join(parts)} of {source}"


def with_scale_of_clip(
    leaves: Mapping[str, np.ndarray], target: Iterable[str]
) -> dict[str, np.ndarray]:
    """The leaves for a model of these paths: an OpenCLIP model's scalars are those of a model
    without touch, if no other source has them, and of no use to one with it."""
    touch = any(path.startswith("touch/") for path in target)
    scalars = {} if touch else {k: leaves[CLIP + k] for k in SCALAR_PATHS if CLIP + k in leaves}
    return scalars | {path: x for path, x in leaves.items() if not path.startswith(CLIP)}

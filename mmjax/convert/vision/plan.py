"""What a conversion makes of backbones of images, and of the checkpoints of LGSSL's trainings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from mmjax import config
from mmjax.convert import run, torch_plan, vocabulary
from mmjax.convert.clip import infer_config as clip_config
from mmjax.convert.shapes import HEAD_DIM, Shapes
from mmjax.convert.torch_contents import Contents
from mmjax.convert.vision import load as vision_load
from mmjax.convert.vision import names as vision_names
from mmjax.errors import UserError
from mmjax.models.guided import make_model
from mmjax.preprocess import image as image_ops
from mmjax.state import ModelDef

_SIZE = 224  # pixels, of the published trainings and evaluations


def plan(source: str, *, head_dim: int | None = None, vocab: str | None = None) -> run.Plan:
    """Reads the names and shapes of a file and compares them with the model they tell of.

    Args:
      source: the file.
      head_dim: see `model_section`.
      vocab: CLIP's list of merges, `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
      UserError: the file cannot be read or holds no such model, or does not tell its sizes; or
        `vocab` is not the vocabulary of its table.
    """
    contents = vision_load.read(source)
    cfg = make_config(contents, head_dim=head_dim)
    options = config.resolve(cfg).model
    if vocab and "text" not in options:
        raise UserError("--vocab is of a tower for texts; there is none. Leave it out.")
    words = None
    if vocab:
        rows = options["text"]["vocab_size"]
        words = vocabulary.check(vocab, rows=rows, tokenizer="clip")
    notes = []
    if words is not None:
        notes.append(f"Vocabulary: {words.path}, tokenizer {words.tokenizer}")
    elif "text" in options:
        notes.append(
            "Vocabulary: give CLIP's bpe_simple_vocab_16e6.txt.gz with --vocab, or as "
            "--config.data.text.vocab with every command."
        )
    return torch_plan.make(
        contents,
        source=source,
        cfg=cfg,
        model=ModelDef(make_model(**options)),
        notes=notes,
        vocabulary=words,
    )


def config_of(source: str) -> ml_collections.ConfigDict:
    """`make_config` of a file, for those who start from it without a run directory.

    Raises:
      UserError: it cannot be read or holds no such model, or does not tell its sizes.
    """
    return make_config(vision_load.read(source))


def make_config(contents: Contents, *, head_dim: int | None = None) -> ml_collections.ConfigDict:
    """A whole config: the model of the file, and images as LGSSL evaluates them.

    The shorter side is resized to 224 by PIL's bicubic filter, the middle square cut out, and
    ImageNet's mean and deviation taken off. The model computes in float32.

    Args:
      contents: of the file.
      head_dim: see `model_section`.
    """
    cfg = config.base()
    cfg.task = "guided"
    cfg.model = model_section(contents, head_dim=head_dim)
    cfg.total_steps = max(cfg.total_steps, contents.step)
    cfg.data = dict(image=dict(size=_SIZE, resize="bicubic", square="crop_resized"))
    if "text" in cfg.model:
        words = cfg.model.text.context_length
        cfg.data.text = dict(tokenizer="clip", max_tokens=words, candidates=1)
        if "clip" not in cfg.model.heads and "projection" in cfg.model.heads:
            cfg.loss = dict(clip=dict(head="projection"))  # LGSLIP compares these with texts
    cfg.augment = dict(image=dict(mean=image_ops.IMAGENET_MEAN, std=image_ops.IMAGENET_STD))
    config.resolve(cfg)
    return cfg


def model_section(contents: Contents, *, head_dim: int | None = None) -> dict[str, Any]:
    """The section `model` of a config of the guided task: towers, heads and their sizes.

    Args:
      contents: of the file.
      head_dim: features of an attention head of texts, which no shape tells; None is 64.

    Raises:
      UserError: an array that tells a size is missing, or a size cannot be.
    """
    shapes = Shapes({path: leaf.shape for path, leaf in contents.leaves.items()})
    model: dict[str, Any] = dict(
        image=vision_names.options(contents.parts["image"], shapes, "image")
    )
    if "text" in contents.parts:
        # LGSSL's code has OpenAI's GELU.
        text = clip_config.clip_text_options(shapes, head_dim or HEAD_DIM)
        model["text"] = dict(text, name="clip_text_b", activation="quick_gelu")
    if heads := _heads(shapes):
        model["heads"] = heads
    if "prototypes/kernel" in shapes:
        model["prototypes"] = shapes["prototypes/kernel"][1]
    return model


def _heads(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    layers: dict[str, int] = {}
    for path in shapes:
        if match := re.match(r"heads/(\w+)/linear/(\d+)/", path):
            head, layer = match[1], int(match[2])
            layers[head] = max(layers.get(head, 0), layer)
    return {
        head: dict(
            dims=tuple(shapes[f"heads/{head}/linear/{n}/kernel"][1] for n in range(last + 1)),
            final_norm=any(path.startswith(f"heads/{head}/norm/{last}/") for path in shapes),
        )
        for head, last in layers.items()
    }

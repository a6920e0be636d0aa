"""Plans the conversion of image backbones and of LGSSL's training checkpoints."""

from __future__ import annotations

from mmjax import config
from mmjax.convert import vocabulary
from mmjax.convert.plan import ConversionPlan
from mmjax.convert.torch_plan import plan_torch
from mmjax.convert.vision import infer_config as vision_config
from mmjax.convert.vision import load as vision_load
from mmjax.errors import UserError
from mmjax.models.guided import make_model
from mmjax.state import ModelDef


def plan_conversion(
    source: str, *, head_dim: int | None = None, vocab: str | None = None
) -> ConversionPlan:
    """Returns the plan for one file.

    Args:
      source: The file.
      head_dim: Width of an attention head of the text tower; None for 64.
      vocab: CLIP's list of merges, `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
      UserError: The file cannot be read or contains no such backbone, a size is undetermined, or
        `vocab` does not fit the token embedding.
    """
    file = vision_load.read(source)
    cfg = vision_config.make_config(file, head_dim=head_dim)
    options = config.resolve(cfg).model
    if vocab and "text" not in options:
        raise UserError(f"--vocab {vocab}: {source} has no text tower. Remove --vocab.")
    checked_vocab, notes = None, []
    if vocab:
        vocab_size = options["text"]["vocab_size"]
        checked_vocab = vocabulary.check(vocab, vocab_size=vocab_size, tokenizer="clip")
    if "text" in options:
        notes = vocabulary.clip_notes(checked_vocab)
    return plan_torch(
        file,
        name=source,
        cfg=cfg,
        model=ModelDef(make_model(**options)),
        notes=notes,
        vocabulary=checked_vocab,
    )

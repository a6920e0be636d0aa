"""Plans the conversion of FLAIR's checkpoints."""

from __future__ import annotations

from mmjax import config
from mmjax.convert import vocabulary
from mmjax.convert.flair import infer_config as flair_infer
from mmjax.convert.flair import load as flair_load
from mmjax.convert.plan import ConversionPlan
from mmjax.convert.torch_plan import plan_torch
from mmjax.models.flair import make_model
from mmjax.state import ModelDef


def plan_conversion(
    source: str, *, head_dim: int | None = None, vocab: str | None = None
) -> ConversionPlan:
    """Returns the plan for one file.

    Args:
      source: The file.
      head_dim: Width of an attention head; None for 64.
      vocab: CLIP's list of merges, `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
      UserError: The file cannot be read or does not contain FLAIR, a size is undetermined, or
        `vocab` does not fit the token embedding.
    """
    file = flair_load.read(source)
    cfg = flair_infer.make_config(file, head_dim=head_dim)
    options = config.resolve(cfg).model
    checked_vocab = None
    if vocab:
        size = options["text"]["vocab_size"]
        checked_vocab = vocabulary.check(vocab, vocab_size=size, tokenizer="clip")
    return plan_torch(
        file,
        name=source,
        cfg=cfg,
        model=ModelDef(make_model(**options)),
        notes=[*file.added.values(), *vocabulary.clip_notes(checked_vocab)],
        vocabulary=checked_vocab,
    )

"""Plans the conversion of TVL's checkpoints and OpenCLIP's files."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax import config
from mmjax.convert import vocabulary
from mmjax.convert.clip import infer_config as clip_config
from mmjax.convert.clip import load as clip_load
from mmjax.convert.clip import names as clip_names
from mmjax.convert.plan import ConversionPlan
from mmjax.convert.torch_plan import plan_torch
from mmjax.convert.torch_source import TorchSource
from mmjax.errors import UserError
from mmjax.models.multi_tower import MultiTower
from mmjax.models.tvl import make_model
from mmjax.state import ModelDef

_TOWERS = ("touch", "image", "text")


def plan_conversion(
    sources: Sequence[str],
    *,
    head_dim: int | None = None,
    quick_gelu: bool = False,
    vocab: str | None = None,
) -> ConversionPlan:
    """Returns the plan for TVL's checkpoint, OpenCLIP's file, or both.

    Args:
      sources: The files. Scalars that both contain are those of the first.
      head_dim: Width of an attention head; None for 64.
      quick_gelu: Whether the CLIP towers compute GELU as x·sigmoid(1.702 x).
      vocab: CLIP's list of merges, `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
      UserError: A file cannot be read or contains no supported model, two files contain the same
        tower, a size is undetermined, or `vocab` does not fit the token embedding.
    """
    source = clip_load.read_all(sources)
    cfg = clip_config.make_config(source, head_dim=head_dim, quick_gelu=quick_gelu)
    options = {k: v for k, v in config.resolve(cfg).model.items() if v is not None}
    if quick_gelu and not {"image", "text"} & set(options):
        raise UserError(
            f"--quick-gelu applies to CLIP's towers, and {sources[0]} has none. Remove the flag."
        )
    vocab_size = options["text"]["vocab_size"] if "text" in options else None
    checked_vocab = (
        vocabulary.check(vocab, vocab_size=vocab_size, tokenizer="clip") if vocab else None
    )
    towers = {name: options[name] for name in _TOWERS if name in options}
    leaves, incomplete = source.leaves, ""
    if len(towers) > 1:
        model = ModelDef(make_model(**options))
    else:  # can be inspected, but a model of the touch task has at least two towers
        (tower,) = towers
        model = ModelDef(lambda rngs: MultiTower(towers=towers, rngs=rngs))
        leaves = {path: leaf for path, leaf in leaves.items() if path.startswith(f"{tower}/")}
        incomplete = (
            f"{sources[0]} contains only a {tower} tower; a model needs at least two towers. Pass "
            f"the file with the other towers too: mmjax convert {sources[0]} OPENCLIP_FILE --out "
            "RUN"
        )
    return plan_torch(
        source,
        name=" and ".join(sources),
        cfg=cfg,
        model=model,
        leaves=leaves,
        notes=_notes(source, quick_gelu, checked_vocab),
        vocabulary=checked_vocab,
        incomplete=incomplete,
    )


def _notes(
    source: TorchSource, quick_gelu: bool, checked_vocab: vocabulary.Vocabulary | None
) -> list[str]:
    """Returns notes about options that the shapes do not determine."""
    notes = []
    if {"image", "text"} & set(source.components):
        if quick_gelu:
            note = "CLIP's towers compute GELU as x·sigmoid(1.702 x), because of --quick-gelu."
        else:
            note = (
                "CLIP's towers compute the exact GELU. If they were trained with x·sigmoid(1.702 "
                "x), as OpenAI's models and all models with 'quickgelu' in their names, convert "
                "with --quick-gelu."
            )
            if any(key.endswith(clip_names.OPENAI_KEY) for key in source.entries):
                note += f" The key {clip_names.OPENAI_KEY} indicates a model of OpenAI."
        notes.append(note)
    if checked_vocab is not None or "text" in source.components:
        notes += vocabulary.clip_notes(checked_vocab)
    return notes

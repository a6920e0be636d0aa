"""What a conversion makes of TVL's checkpoints and OpenCLIP's files."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax import config
from mmjax.convert import run, torch_plan, vocabulary
from mmjax.convert.clip import infer_config as clip_config
from mmjax.convert.clip import load as clip_load
from mmjax.convert.clip import names as clip_names
from mmjax.convert.torch_contents import Contents
from mmjax.errors import UserError
from mmjax.models.towers.registry import Towers
from mmjax.models.tvl import make_model
from mmjax.state import ModelDef

_TOWERS = ("touch", "image", "text")


def plan(
    sources: Sequence[str],
    *,
    head_dim: int | None = None,
    quick_gelu: bool = False,
    vocab: str | None = None,
) -> run.Plan:
    """Reads the names and shapes of files and compares them with the model they tell of.

    Args:
      sources: TVL's checkpoint, OpenCLIP's file, or both; of what both have the first's counts.
      head_dim: see `tvl_architecture.model_section`.
      quick_gelu: see there.
      vocab: CLIP's list of merges, `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
      UserError: a file cannot be read or holds no such model, two have the same tower, or they do
        not tell their model's sizes; or `vocab` is not the vocabulary of their table.
    """
    contents = clip_load.read_all(sources)
    cfg = clip_config.make_config(contents, head_dim=head_dim, quick_gelu=quick_gelu)
    options = {k: v for k, v in config.resolve(cfg).model.items() if v is not None}
    if quick_gelu and not {"image", "text"} & set(options):
        raise UserError("--quick-gelu is of CLIP's towers; there is none. Leave it out.")
    rows = options["text"]["vocab_size"] if "text" in options else None
    words = vocabulary.check(vocab, rows=rows, tokenizer="clip") if vocab else None
    towers = {part: options[part] for part in _TOWERS if part in options}
    leaves, partial = contents.leaves, ""
    if len(towers) > 1:
        model = ModelDef(make_model(**options))
    else:  # what the tower is can be said, but a model of the touch task has two at least
        (tower,) = towers
        model = ModelDef(lambda rngs: Towers(towers=towers, rngs=rngs))
        leaves = {path: leaf for path, leaf in leaves.items() if path.startswith(f"{tower}/")}
        partial = (
            f"{sources[0]} has a tower for {tower} alone; a model compares two at least. Give the "
            f"file with the others too: mmjax convert {sources[0]} OPENCLIP_FILE --out RUN"
        )
    return torch_plan.make(
        contents,
        source=" and ".join(sources),
        cfg=cfg,
        model=model,
        leaves=leaves,
        notes=_notes(contents, quick_gelu, words),
        vocabulary=words,
        partial=partial,
    )


def _notes(contents: Contents, quick_gelu: bool, words: vocabulary.Vocabulary | None) -> list[str]:
    """What no shape tells."""
    notes = []
    if {"image", "text"} & set(contents.parts):
        if quick_gelu:
            note = "CLIP's towers compute x·sigmoid(1.702 x) for GELU, as --quick-gelu says."
        else:
            note = (
                "CLIP's towers compute the exact GELU. If they were trained with x·sigmoid(1.702 "
                "x), as OpenAI's and all models whose names have 'quickgelu', convert with "
                "--quick-gelu."
            )
            if any(key.endswith(clip_names.OF_OPENAI) for key in contents.entries):
                note += f" These have {clip_names.OF_OPENAI}, as OpenAI's have."
        notes.append(note)
    if words is not None:
        notes.append(f"Vocabulary: {words.path}, tokenizer {words.tokenizer}")
    elif "text" in contents.parts:
        notes.append(
            "Vocabulary: give CLIP's bpe_simple_vocab_16e6.txt.gz with --vocab, or as "
            "--config.data.text.vocab with every command."
        )
    return notes

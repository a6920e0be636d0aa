"""What a conversion makes of a TensorFlow checkpoint of VATT."""

from __future__ import annotations

from mmjax import config
from mmjax.convert import run, vocabulary
from mmjax.convert.vatt import infer_config as vatt_config
from mmjax.convert.vatt import load as vatt_load
from mmjax.convert.vatt import names as vatt_names
from mmjax.convert.vatt import optimizer_slots
from mmjax.formats import tf_checkpoint
from mmjax.init_from import WORDS
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef

# Parts whose names were compared with those of real checkpoints; others follow from the classes.
_SEEN = ("vit", "wat", "t5", "unified", "fac", "classifier")


def plan(prefix: str, *, head_dim: int | None = None, vocab: str | None = None) -> run.Plan:
    """Reads the names and shapes of a checkpoint and compares them with the model they tell of.

    Args:
      prefix: from `tf2.find`.
      head_dim: see `architecture.model_section`.
      vocab: the file of words that the model was trained with, if it is known.

    Raises:
      UserError: it cannot be read, is no checkpoint of VATT, or does not tell its model's sizes; or
        `vocab` is not the vocabulary of its table.
    """
    reader = tf_checkpoint.Reader(prefix)
    contents = vatt_load.contents_of(reader)
    cfg = vatt_config.make_config(contents, head_dim=head_dim)
    num_words = contents.leaves[WORDS].shape[0] if WORDS in contents.leaves else None
    words = vocabulary.check(vocab, rows=num_words) if vocab else None
    model = ModelDef(make_model(**config.resolve(cfg).model))
    unknown = dict.fromkeys(contents.unknown(), "is no array of a model that mmjax knows")
    problems, fresh = run.compare(
        model,
        contents.leaves,
        contents.problems | unknown,
        lambda path, shape: vatt_names.keys_of(path, shape, contents.layout),
    )
    state = optimizer_slots.abstract(cfg, model.params)
    found = optimizer_slots.find(contents, reader.shapes, state) or {}

    def fill():
        return optimizer_slots.fill(
            state, found, lambda leaf: vatt_load.read_leaf(reader, leaf), contents.step
        )

    inferred = [kind for kind in contents.kinds.values() if kind not in _SEEN]
    notes = []
    if num_words is not None:
        notes.append(vocabulary.describe(words, rows=num_words))
    if inferred:
        notes.append(
            f"The names of {', '.join(inferred)} follow from the published classes; no checkpoint "
            "with them was there to compare."
        )
    leaves = contents.leaves | {f"opt/{path}": leaf for path, leaf in found.items()}
    used = {key for leaf in found.values() for key in leaf.keys}
    unused_keys = {key: what for key, what in contents.unused_keys.items() if key not in used}
    return run.Plan(
        source=prefix,
        step=contents.step,
        cfg=cfg,
        model=model,
        keys=reader.shapes,
        becomes=run.becomes_of(leaves, unused_keys),
        source_keys={path: leaf.keys for path, leaf in leaves.items()},
        read=lambda path: vatt_load.read_leaf(reader, contents.leaves[path]),
        problems=problems,
        fresh=fresh,
        optimizer=fill if found else None,
        slots=len(found),
        facts={"words": num_words, "inferred": inferred},
        notes=notes,
        vocabulary=words,
    )

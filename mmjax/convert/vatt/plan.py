"""Plans the conversion of a TensorFlow checkpoint of VATT."""

from __future__ import annotations

from mmjax import config
from mmjax.convert import vocabulary
from mmjax.convert.matching import compare, targets_of_keys
from mmjax.convert.plan import UNKNOWN_KEY, ConversionPlan
from mmjax.convert.vatt import infer_config as vatt_config
from mmjax.convert.vatt import load as vatt_load
from mmjax.convert.vatt import names as vatt_names
from mmjax.convert.vatt import optimizer_slots
from mmjax.formats import tf_checkpoint
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef


def plan_conversion(
    prefix: str, *, head_dim: int | None = None, vocab: str | None = None
) -> ConversionPlan:
    """Returns the plan for a checkpoint.

    Args:
      prefix: The result of `tf_checkpoint.find`.
      head_dim: Width of an attention head; see `infer_config.model_section`.
      vocab: The vocabulary file that the model was trained with, if known.

    Raises:
      UserError: The checkpoint cannot be read or is not VATT's, a size is undetermined, or `vocab`
        does not fit the token embedding.
    """
    reader = tf_checkpoint.Reader(prefix)
    source = vatt_load.match_reader(reader)
    cfg = vatt_config.make_config(source, head_dim=head_dim)
    embedding = source.leaves.get(vatt_names.WORD_EMBEDDING)
    vocab_size = embedding.shape[0] if embedding else None
    checked_vocab = vocabulary.check(vocab, vocab_size=vocab_size) if vocab else None
    model = ModelDef(make_model(**config.resolve(cfg).model))
    mismatches, random_paths = compare(
        model,
        source.leaves,
        source.mismatches | dict.fromkeys(source.unknown_keys(), UNKNOWN_KEY),
        lambda path, shape: vatt_names.keys_of(path, shape, source.components),
    )
    state = optimizer_slots.abstract_state(cfg, model.params)
    slots = optimizer_slots.find_slots(source, reader.shapes, state) or {}

    def make_optimizer_state() -> dict:
        return optimizer_slots.fill(
            state, slots, lambda leaf: vatt_load.read_leaf(reader, leaf), source.step
        )

    notes = []
    if vocab_size is not None:
        notes.append(vocabulary.vatt_note(checked_vocab, vocab_size=vocab_size))
    leaves = source.leaves | {f"opt/{path}": leaf for path, leaf in slots.items()}
    slot_keys = {key for leaf in slots.values() for key in leaf.keys}
    unused_keys = {key: r for key, r in source.unused_keys.items() if key not in slot_keys}
    return ConversionPlan(
        source=prefix,
        step=source.step,
        cfg=cfg,
        model=model,
        keys=reader.shapes,
        targets=targets_of_keys(leaves, unused_keys),
        source_keys={path: leaf.keys for path, leaf in leaves.items()},
        read=lambda path: vatt_load.read_leaf(reader, source.leaves[path]),
        mismatches=mismatches,
        random_paths=random_paths,
        make_optimizer_state=make_optimizer_state if slots else None,
        num_optimizer_arrays=len(slots),
        details={"vocab_size": vocab_size},
        notes=notes,
        vocabulary=checked_vocab,
    )

"""`mmjax convert`: published weights to what mmjax reads."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mmjax.convert import tf2, vocabulary, words
from mmjax.errors import UserError


def convert_checkpoint(
    source: str,
    *,
    out: str | None,
    inspect: bool = False,
    as_json: bool = False,
    head_dim: int | None = None,
    allow: Sequence[str] = (),
    vocab: str | None = None,
) -> int:
    """Converts a TensorFlow checkpoint of VATT to a run directory, or describes it.

    Returns:
      The exit status: 0, or 1 if `inspect` finds problems.

    Raises:
      UserError: anything the user can put right.
    """
    from mmjax.convert import run, vatt_plan  # import jax

    prefix = tf2.find(source)
    if prefix is None:
        raise UserError(
            f"{source}: no TensorFlow checkpoint. Give its prefix (…/ckpt-500000), its .index "
            "file, or the folder if it has one of them or TensorFlow's file `checkpoint`; for word "
            f"embeddings a {', '.join(words.SUFFIXES)} file."
        )
    plan = vatt_plan.plan(prefix, head_dim=head_dim, vocab=vocab)
    if inspect:
        if as_json:
            print(json.dumps({**run.summary(plan), "keys": run.rows(plan)}, indent=1))
        else:
            print(run.report(plan, arrays=False))
        return int(bool(plan.problems))
    run.convert(plan, out, allow=allow)
    facts = run.summary(plan)
    print(
        f"{out}: {facts['model']['name']}, step {facts['step']}, {facts['parameters']:,} "
        f"parameters in {facts['arrays']} arrays. Every name is in {run.REPORT}.\n"
        f"Start from it with --override_checkpoint={out}"
    )
    if facts["words"] is not None:
        print(vocabulary.describe(plan.vocabulary, rows=facts["words"]))
    if plan.fresh:
        print(f"{len(plan.fresh)} arrays are fresh: {', '.join(plan.fresh[:8])}")
    return 0


def convert_words(
    source: str, *, out: str | None, inspect: bool = False, vocab: str | None = None
) -> int:
    """Converts a pickle of word embeddings to a plain .npz, or describes it.

    Raises:
      UserError: the file is not such a table, or `vocab` has another number of words.
    """
    table = words.load(source)
    print(f"{source}: {len(table)} words, {table.shape[1]} features.")
    if vocab is not None:
        if not pathlib.Path(vocab).is_file():
            raise UserError(f"--vocab {vocab}: there is no such file.")
        lines = pathlib.Path(vocab).read_text(encoding="utf-8").splitlines()
        count = sum(1 for line in lines if line.strip())
        if count != len(table):
            raise UserError(f"--vocab {vocab} has {count} words, {source} {len(table)}.")
    if inspect:
        return 0
    path = pathlib.Path(out)
    if path.suffix != ".npz":
        raise UserError(f"--out {out}: a table of words becomes a file that ends with .npz.")
    if path.exists():
        raise UserError(f"--out {out} is there already. Give another, or delete it.")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, **{words.KEY: table})
        partial.rename(path)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"{out}: start from it with --config.init_from={out}")
    return 0

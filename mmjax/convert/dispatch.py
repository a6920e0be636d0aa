"""`mmjax convert`: published weights to what mmjax reads."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mmjax.errors import UserError
from mmjax.formats import published_checkpoints, tf_checkpoint, torch_reader, word_vectors


def convert_checkpoint(
    sources: Sequence[str],
    *,
    out: str | None,
    inspect: bool = False,
    as_json: bool = False,
    head_dim: int | None = None,
    quick_gelu: bool = False,
    allow: Sequence[str] = (),
    vocab: str | None = None,
) -> int:
    """Converts published weights to a run directory, or describes them.

    Args:
      sources: a TensorFlow checkpoint of VATT; PyTorch's files of TVL, of OpenCLIP, or both; or one
        of a backbone of images, or of a training of LGSSL's.
      out: the run directory.
      inspect: only say what the sources are and hold.
      as_json: say it as JSON.
      head_dim, quick_gelu, vocab: see the plans, `vatt_plan.plan`, `tvl_plan.plan` and
        `guided_plan.plan`.
      allow: see `run.convert`.

    Returns:
      The exit status: 0, or 1 if `inspect` finds problems.

    Raises:
      UserError: anything the user can put right.
    """
    from mmjax.convert import run
    from mmjax.convert.clip import plan as clip_plan
    from mmjax.convert.vatt import plan as vatt_plan  # import jax
    from mmjax.convert.vision import load as vision_load
    from mmjax.convert.vision import plan as vision_plan

    torch = all(map(torch_reader.is_file, sources))
    if torch and len(sources) == 1 and vision_load.fits(sources[0]):
        if quick_gelu:
            raise UserError("--quick-gelu is of OpenCLIP's towers. Leave it out.")
        plan = vision_plan.plan(sources[0], head_dim=head_dim, vocab=vocab)
    elif torch:
        plan = clip_plan.plan(sources, head_dim=head_dim, quick_gelu=quick_gelu, vocab=vocab)
    else:
        prefix = _tensorflow(sources)
        if quick_gelu:
            raise UserError("--quick-gelu is of CLIP's towers; VATT has none. Leave it out.")
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
        f"{out}: {run.name_of(facts['model'])}, step {facts['step']}, {facts['parameters']:,} "
        f"parameters in {facts['arrays']} arrays. Every name is in {run.REPORT}.\n"
        f"Start from it with --override_checkpoint={out}"
    )
    for note in plan.notes:
        print(note)
    if plan.fresh:
        print(f"{len(plan.fresh)} arrays are fresh: {', '.join(plan.fresh[:8])}")
    return 0


def _tensorflow(sources: Sequence[str]) -> str:
    """The prefix of the one TensorFlow checkpoint that is given."""
    if len(sources) > 1:
        others = [source for source in sources if not torch_reader.is_file(source)]
        raise UserError(
            f"{others[0]} is no file of PyTorch's ({', '.join(torch_reader.SUFFIXES)}). Several "
            "sources make one model only if all are; give any other alone."
        )
    prefix = tf_checkpoint.find(sources[0])
    if prefix is None:
        raise UserError(
            f"{sources[0]}: no TensorFlow checkpoint. Give its prefix (…/ckpt-500000), its .index "
            "file, or the folder if it has one of them or TensorFlow's file `checkpoint`; for TVL, "
            f"OpenCLIP or a backbone of images a {', '.join(torch_reader.SUFFIXES)} file; for "
            f"word embeddings a {', '.join(word_vectors.SUFFIXES)} file.{published_checkpoints.hint(sources[0])}"
        )
    return prefix


def export(source: str, *, to: str, out: str) -> int:
    """Writes parameters of a run under PyTorch's names; see `mmjax.convert.export.export`."""
    from mmjax.convert import export as exporting  # imports jax

    for line in exporting.export(source, to=to, out=out):
        print(line)
    return 0


def convert_word_vectors(
    source: str, *, out: str | None, inspect: bool = False, vocab: str | None = None
) -> int:
    """Converts a pickle of word embeddings to a plain .npz, or describes it.

    Raises:
      UserError: the file is not such a table, or `vocab` has another number of words.
    """
    table = word_vectors.load(source)
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
            np.savez(file, **{word_vectors.KEY: table})
        partial.rename(path)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"{out}: start from it with --config.init_from={out}")
    return 0

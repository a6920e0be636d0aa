"""`mmjax convert`: published weights to what mmjax reads."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from mmjax.errors import UserError
from mmjax.files import atomic_open
from mmjax.formats import published_checkpoints, tf_checkpoint, torch_reader, word_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a conversion or an inspection.

    Attributes:
      message: A description for the user.
      has_problems: Whether an inspection found problems that would stop the conversion.
    """

    message: str
    has_problems: bool = False


def convert(
    sources: Sequence[str],
    *,
    out: str | None = None,
    to: str | None = None,
    inspect: bool = False,
    as_json: bool = False,
    head_dim: int | None = None,
    quick_gelu: bool = False,
    allow: Sequence[str] = (),
    vocab: str | None = None,
) -> Result:
    """Converts, exports or describes, depending on the sources and on `to`.

    Args:
      sources: Published files, or with `to` one run directory.
      out: The path to write; may be omitted with `inspect`.
      to: Format to export a run to; see `mmjax.convert.export.export`.
      inspect: Whether to only describe the sources.
      as_json: Whether the description is JSON.
      head_dim, quick_gelu, allow, vocab: See `convert_checkpoint`.

    Raises:
      UserError: The arguments do not fit together, or the sources cannot be converted.
    """
    if not out and not inspect:
        raise UserError("Pass --out PATH to convert, or --inspect to describe the sources.")
    if to:
        if inspect or len(sources) > 1:
            raise UserError(f"--to {to} takes exactly one run directory and --out.")
        from mmjax.convert import export  # imports jax

        return Result(message="\n".join(export.export(sources[0], to=to, out=out)))
    if len(sources) == 1 and word_vectors.is_word_vectors(sources[0]):
        return convert_word_vectors(sources[0], out=out, inspect=inspect, vocab=vocab)
    return convert_checkpoint(
        sources,
        out=out,
        inspect=inspect,
        as_json=as_json,
        head_dim=head_dim,
        quick_gelu=quick_gelu,
        allow=allow,
        vocab=vocab,
    )


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
) -> Result:
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
            message = json.dumps({**run.summary(plan), "keys": run.rows(plan)}, indent=1)
        else:
            message = run.report(plan, arrays=False)
        return Result(message=message, has_problems=bool(plan.problems))
    run.convert(plan, out, allow=allow)
    summary = run.summary(plan)
    lines = [
        f"{out}: {run.name_of(summary['model'])}, step {summary['step']}, "
        f"{summary['parameters']:,} parameters in {summary['arrays']} arrays. {run.REPORT} lists "
        "every name.",
        f"To start from it: --override_checkpoint={out}",
        *plan.notes,
    ]
    if plan.fresh:
        lines.append(
            f"{len(plan.fresh)} arrays are randomly initialized: {', '.join(plan.fresh[:8])}"
        )
    return Result(message="\n".join(lines))


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


def convert_word_vectors(
    source: str, *, out: str | None, inspect: bool = False, vocab: str | None = None
) -> Result:
    """Converts a pickle of word embeddings to an .npz file, or describes it.

    Raises:
      UserError: The file is not a table of word embeddings, or `vocab` has another number of words.
    """
    table = word_vectors.load(source)
    description = f"{source}: {len(table)} words, {table.shape[1]} features."
    if vocab is not None:
        if not pathlib.Path(vocab).is_file():
            raise UserError(f"--vocab {vocab}: no such file.")
        lines = pathlib.Path(vocab).read_text(encoding="utf-8").splitlines()
        count = sum(1 for line in lines if line.strip())
        if count != len(table):
            raise UserError(
                f"--vocab {vocab} has {count} words, but {source} has {len(table)} embeddings."
            )
    if inspect:
        return Result(message=description)
    path = pathlib.Path(out)
    if path.suffix != ".npz":
        raise UserError(f"--out {out}: expected a name that ends in .npz for word embeddings.")
    if path.exists():
        raise UserError(f"--out {out} already exists. Choose another name, or delete it.")
    try:
        with atomic_open(path, "wb") as file:
            np.savez(file, **{word_vectors.KEY: table})
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    return Result(message=f"{description}\n{out}: to start from it, --config.init_from={out}")

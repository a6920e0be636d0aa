"""Chooses what `mmjax convert` does with its sources: convert, describe or export them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from mmjax import files
from mmjax.convert import report, run_writer
from mmjax.convert.clip import plan as clip_plan
from mmjax.convert.export import export
from mmjax.convert.flair import load as flair_load
from mmjax.convert.flair import plan as flair_plan
from mmjax.convert.plan import ConversionPlan
from mmjax.convert.segmentation import load as segmentation_load
from mmjax.convert.segmentation import plan as segmentation_plan
from mmjax.convert.vatt import plan as vatt_plan
from mmjax.convert.vision import load as vision_load
from mmjax.convert.vision import plan as vision_plan
from mmjax.errors import UserError, about
from mmjax.formats import published_checkpoints, tf_checkpoint, torch_reader, word_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a conversion or an inspection.

    Attributes:
      message: A description for the user.
      has_mismatches: Whether an inspection found mismatches that would stop the conversion.
    """

    message: str
    has_mismatches: bool = False


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
    """Converts, describes or exports the sources.

    Args:
      sources: A TensorFlow checkpoint of VATT; a PyTorch file of TVL, of OpenCLIP, or both; a
        PyTorch file with FLAIR, a segmentation model, an image backbone or an LGSSL model; or a
        file of word vectors. With `to`, one run directory or any of these.
      out: The path to write; can be omitted with `inspect`.
      to: Export for a PyTorch library: key of `mmjax.convert.export.TARGETS`.
      inspect: Whether to only describe the sources.
      as_json: Whether the description is JSON.
      head_dim: Width of an attention head; None for the default of the converter.
      quick_gelu: Whether CLIP's towers compute GELU as x·sigmoid(1.702 x).
      allow: Patterns of keys whose mismatches are accepted.
      vocab: The vocabulary file that the model was trained with.

    Raises:
      UserError: The arguments do not fit together, or the sources cannot be converted.
    """
    if not out and not inspect:
        raise UserError("Pass --out PATH to convert, or --inspect to describe SOURCE.")
    if to:
        if inspect or len(sources) > 1:
            raise UserError(
                f"--to {to} exports exactly one SOURCE to --out PATH. Remove --inspect and other "
                "sources."
            )
        return Result(message="\n".join(export(sources[0], to=to, out=out)))
    if len(sources) == 1 and word_vectors.is_word_vectors(sources[0]):
        return _convert_word_vectors(sources[0], out=out, inspect=inspect, vocab=vocab)
    with about(sources[0]):
        plan = _plan(sources, head_dim=head_dim, quick_gelu=quick_gelu, vocab=vocab)
    if inspect:
        if as_json:
            values = {**report.summary(plan), "keys": report.key_table(plan)}
            message = json.dumps(values, indent=1)
        else:
            message = report.format_report(plan, arrays=False)
        return Result(message=message, has_mismatches=bool(plan.mismatches))
    run_writer.write_run(plan, out, allow=allow)
    return Result(message=_describe_run(plan, out))


def _describe_run(plan: ConversionPlan, out: str) -> str:
    """Returns the message after a conversion."""
    values = report.summary(plan)
    lines = [
        f"{out}: {report.model_name(values['model'])}, step {values['step']}, "
        f"{values['parameters']:,} parameters in {values['arrays']} arrays. {run_writer.REPORT} "
        "lists every name.",
        f"To start training from it, pass --override_checkpoint={out}",
        *plan.notes,
    ]
    if plan.random_paths:
        count, paths = len(plan.random_paths), ", ".join(plan.random_paths[:8])
        lines.append(f"Randomly initialized arrays: {count} ({paths})")
    return "\n".join(lines)


def _plan(
    sources: Sequence[str], *, head_dim: int | None, quick_gelu: bool, vocab: str | None
) -> ConversionPlan:
    """Returns the plan of the converter that reads the sources."""
    if all(map(torch_reader.is_file, sources)):
        readers = (
            (flair_load, flair_plan),
            (segmentation_load, segmentation_plan),
            (vision_load, vision_plan),
        )
        plans = (plan for reader, plan in readers if len(sources) == 1 and reader.fits(sources[0]))
        if (plan := next(plans, None)) is None:
            return clip_plan.plan_conversion(
                sources, head_dim=head_dim, quick_gelu=quick_gelu, vocab=vocab
            )
        if quick_gelu:
            raise UserError(
                f"--quick-gelu applies to OpenCLIP's towers, not to {sources[0]}. Remove the flag."
            )
        return plan.plan_conversion(sources[0], head_dim=head_dim, vocab=vocab)
    prefix = _tensorflow_prefix(sources)
    if quick_gelu:
        raise UserError(f"--quick-gelu applies to CLIP's towers, not to {prefix}. Remove the flag.")
    return vatt_plan.plan_conversion(prefix, head_dim=head_dim, vocab=vocab)


def _tensorflow_prefix(sources: Sequence[str]) -> str:
    """Returns the prefix of the TensorFlow checkpoint in `sources`, which must be the only one."""
    suffixes = ", ".join(torch_reader.SUFFIXES)
    if len(sources) > 1:
        others = [source for source in sources if not torch_reader.is_file(source)]
        raise UserError(
            f"{others[0]} is not a PyTorch file ({suffixes}). Only PyTorch files can be combined; "
            "convert any other source separately."
        )
    prefix = tf_checkpoint.find(sources[0])
    if prefix is None:
        raise UserError(
            f"{sources[0]} is not a source that mmjax can convert. Expected a TensorFlow "
            "checkpoint (its prefix …/ckpt-500000, its .index file, or a directory with one "
            f"checkpoint or the file `checkpoint`), a PyTorch file ({suffixes}) of TVL, OpenCLIP, "
            f"FLAIR or an image backbone, or word vectors ({', '.join(word_vectors.SUFFIXES)})."
            f"{published_checkpoints.hint(sources[0])}"
        )
    return prefix


def _convert_word_vectors(
    source: str, *, out: str | None, inspect: bool, vocab: str | None
) -> Result:
    """Converts a table of word vectors to a .npz file, or describes it."""
    table = word_vectors.load(source)
    description = f"{source}: {len(table)} words, width {table.shape[1]}."
    if vocab is not None:
        if not pathlib.Path(vocab).is_file():
            raise UserError(f"--vocab {vocab}: no such file.")
        count = len(files.read_lines(vocab))
        if count != len(table):
            raise UserError(
                f"--vocab {vocab} has {count} words, but {source} has {len(table)} vectors. Pass "
                "the vocabulary of this table."
            )
    if inspect:
        return Result(message=description)
    path = pathlib.Path(out)
    if path.suffix != ".npz":
        raise UserError(f"--out {out}: word vectors are written to a file that ends with .npz.")
    if path.exists():
        raise UserError(f"--out {out} already exists. Pass another path, or delete it.")
    try:
        with files.atomic_open(path, "wb") as file:
            np.savez(file, **{word_vectors.KEY: table})
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    return Result(
        message=f"{description}\n{out}: to start training from it, pass --config.init_from={out}"
    )

"""Nearest neighbors of a dataset's features: `mmjax neighbors`."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mmjax.errors import UserError

if TYPE_CHECKING:  # which import TensorFlow and JAX
    from mmjax.data.sources.registry import Source
    from mmjax.neighbors import Found

_WORK = "search.npz"
_QUANTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def add(commands) -> None:
    """Adds the command `neighbors`."""
    p = commands.add_parser(
        "neighbors",
        help="find the nearest neighbors of records by their features",
        description="Writes the k nearest neighbors of each row of features, by cosine, without "
        "itself, as the folder that data.pairs.path takes. The search is exact, and features need "
        "not fit into memory. Run again after an interruption, it goes on where it stopped.",
    )
    p.add_argument(
        "features",
        metavar="FEATURES",
        help="a folder of `mmjax sentences` or `mmjax embed`, or a .npy file of floats [N, D]",
    )
    p.add_argument("--out", metavar="PAIRS", help="the folder of pairs")
    p.add_argument("--modality", help="text, image, … (default: the only one there is)")
    p.add_argument("--split", default="train", help="which one (train)")
    p.add_argument("--data", metavar="DATASET", help="the dataset that the features are of")

    which = p.add_argument_group("which neighbors")
    which.add_argument("--k", type=int, default=1, help="neighbors of each record (1)")
    which.add_argument(
        "--min-similarity", type=float, default=-1.0, metavar="S", help="leave out pairs below (-1)"
    )
    which.add_argument(
        "--exclude-duplicates",
        nargs="?",
        choices=("captions", "features"),
        const=True,
        help="never pair records with the same caption, but for case and white space (needs "
        "--data), or with the same features (default: captions for text, else features)",
    )
    which.add_argument(
        "--mutual", action="store_true", help="keep pairs where each is among the k of the other"
    )
    which.add_argument(
        "--scope",
        help="only among records of one group: label; subreddit, year or subreddit-year of folders "
        "<subreddit>_<year>_<number>; or TABLE.csv:COLUMN (.tsv, .jsonl, .ndjson, .parquet), "
        "joined by the column path, filename, file or image. Needs --data",
    )
    which.add_argument("--groups", metavar="FILE.npy", help="the groups as integers [N]")

    how = p.add_argument_group("how to search")
    how.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="of the first pass; the result is the same (auto: float32 on CPUs, else bfloat16)",
    )
    how.add_argument(
        "--memory", type=float, metavar="GIB", help="for features on each device (as it has)"
    )
    how.add_argument("--block", type=int, metavar="N", help="rows of a product (1024 or 8192)")
    how.add_argument("--plan", action="store_true", help="only say what it would take")
    how.add_argument("--quiet", action="store_true", help="no progress bar")

    look = p.add_argument_group("to look at")
    look.add_argument("--show", type=int, default=0, metavar="N", help="print N examples")
    look.add_argument("--figure", metavar="PNG", help="draw 8 examples, or as many as --show says")
    p.set_defaults(run=_run)


def command(features: str, *, data: str, split: str, modality: str = "") -> str:
    """What is typed to find neighbors by features, for who has just made them.

    Args:
      features: their folder.
      data: the dataset that they are of.
      split: of it.
      modality: whose features these are, if the folder may have others.
    """
    words = ["mmjax", "neighbors", features]
    words += ["--modality", modality] if modality else []
    words += ["--data", data, "--out", f"pairs/{os.path.basename(os.path.abspath(features))}"]
    words += ["--split", split] if split != "train" else []
    return shlex.join(words)


def _run(args) -> int:
    from mmjax import neighbors
    from mmjax.data.pairs import positives

    if not args.out and not args.plan:
        raise UserError("Give --out PAIRS, or --plan.")
    for option in ("k", "block"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option} {value} must be at least 1.")
    if not -1 <= args.min_similarity <= 1:
        raise UserError(f"--min-similarity {args.min_similarity} is a cosine, between -1 and 1.")
    if args.memory is not None and args.memory <= 0:
        raise UserError(f"--memory {args.memory} must be above 0.")
    features, modality, name = _features(args)
    count = len(features)
    if args.k >= max(count, 2):
        raise UserError(f"--k {args.k}: of {count} records each has {count - 1} others at most.")
    kind = args.exclude_duplicates
    if kind is True:
        kind = "captions" if modality == "text" else "features"
    source = _source(args, kind, name, count)
    captions, filenames = _contexts(args, source)
    groups = _groups(args, source, filenames, count)
    texts = [" ".join((*own, "")[0].split()).casefold() for own in captions]
    same = None
    if kind == "captions":
        numbers: dict[str, int] = {}
        same = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    settings = neighbors.choose_settings(
        args.dtype, block=args.block, device_bytes=args.memory and args.memory * 2**30
    )
    if count:
        with _logging():
            _print_plan(features, args.k, settings, groups)
    if args.plan:
        return 0
    out = os.path.expanduser(args.out)
    os.makedirs(out, exist_ok=True)
    work = os.path.join(out, _WORK)
    with _logging():
        with _bar("read", count, " rows", args.quiet) as progress:
            prepared = neighbors.prepare(
                features, groups=groups, same=same, equal=kind is None, progress=progress
            )
        scores = settings.block**2
        total = neighbors.products(prepared.rows, settings) * scores
        with _bar("search", total, " scores", args.quiet) as progress:
            found = neighbors.nearest(
                prepared,
                k=args.k,
                settings=settings,
                work=work,
                progress=lambda products: progress(products * scores),
            )
    both = neighbors.mutual(found)
    keep = (found.neighbors >= 0) & (found.similarity >= args.min_similarity)
    below = int(((found.neighbors >= 0) & ~keep).sum())
    if args.mutual:
        keep &= both
    _keep(found, keep, both)
    positives.write_pairs(
        args.out,
        found.neighbors,
        found.similarity,
        dataset=source.info.name if source else name,
        split=args.split,
        made={
            "of": os.path.abspath(os.path.expanduser(args.features)),
            "modality": modality,
            "k": args.k,
            "min_similarity": args.min_similarity,
            "exclude_duplicates": kind,
            "mutual": args.mutual,
            "scope": args.scope or args.groups,
            "features": prepared.content,
        }
        | found.counts,
    )
    if os.path.exists(work):
        os.remove(work)
    print("\n".join(_summary(args.out, found, both, texts, below)))
    if args.show or args.figure:
        _look(args, found, source, captions)
    if source:
        train = ["python", "-m", "mmjax.main", "--task=guided", "--config=pairs"]
        train += [f"--config.data.train={args.data}", f"--config.data.pairs.path={args.out}"]
        print(f"Next: {shlex.join(train)}")
    return 0


def _features(args) -> tuple[np.ndarray, str, str]:
    """(features, modality, name of the dataset)."""
    from mmjax.data.pipeline import precomputed_features

    directory = os.path.expanduser(args.features)
    if directory.endswith(".npy"):
        path, modality, name = (
            directory,
            args.modality or "",
            os.path.basename(directory)[: -len(".npy")],
        )
        content = None
    else:
        content = precomputed_features.read_description(directory)
        if content is None:
            raise UserError(
                f"{args.features} is no folder of features: it has no {precomputed_features.FILE}. `mmjax "
                "sentences` and `mmjax embed` write such; or name a .npy file."
            )
        modality = args.modality or _only_modality(os.path.join(directory, args.split))
        path, name = (
            precomputed_features.features_path(directory, args.split, modality),
            content["dataset"],
        )
    if content and not os.path.exists(path):
        there = ", ".join(_modalities(os.path.dirname(path))) or "nothing"
        raise UserError(f"There is no {path}. That split has features of {there}.")
    try:
        features = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an array: {error}.") from error
    if features.ndim != 2:
        raise UserError(
            f"{path} has the shape {list(features.shape)}; expected a row for each record, [N, D]. "
            "Features with several rows for each (`mmjax sentences --captions all`, `mmjax embed "
            "--variants`) are for training: make them with one."
        )
    if content and content["num_examples"].get(args.split) != len(features):
        raise UserError(
            f"{path} has {len(features)} rows, but {precomputed_features.FILE} says "
            f"{content['num_examples'].get(args.split, 0)}: compute the features again."
        )
    return features, modality, name


def _modalities(directory: str) -> list[str]:
    """Of which there are features."""
    entries = sorted(os.listdir(directory)) if os.path.isdir(directory) else ()
    return [entry[: -len(".npy")] for entry in entries if entry.endswith(".npy")]


def _only_modality(directory: str) -> str:
    found = _modalities(directory)
    if not found:
        raise UserError(f"{directory} has no features: name another --split, or compute them.")
    if len(found) > 1:
        raise UserError(f"{directory} has features of {', '.join(found)}: say --modality NAME.")
    return found[0]


def _source(args, kind: str | None, name: str, count: int) -> Source | None:
    """The dataset, if it is given."""
    if not args.data:
        needs = {
            "--scope": args.scope,
            "--show": args.show,
            "--figure": args.figure,
            "--exclude-duplicates captions": kind == "captions",
        }
        if lacking := [option for option, value in needs.items() if value]:
            raise UserError(f"{lacking[0]} needs --data DATASET: the one that the features are of.")
        return None
    from mmjax.data.sources import registry as sources

    source = sources.open_source(args.data, split=args.split)
    of_file = args.features.endswith(".npy")
    if source.num_examples != count or (source.info.name != name and not of_file):
        raise UserError(
            f"--data {args.data} has {source.num_examples} records of {source.info.name}/"
            f"{args.split}, but the features are {count} of {name}/{args.split}."
        )
    return source


def _contexts(args, source: Source | None) -> tuple[Sequence[Sequence[str]], Sequence[str]]:
    """(captions, file names) of all records; nothing without a dataset."""
    if source is None:
        return [], []
    from mmjax.data.sources import captions

    found = captions.read_contexts(source, range(source.num_examples))
    texts, filenames = [], []
    for own, name in tqdm(
        found, "captions", source.num_examples, unit=" records", disable=args.quiet
    ):
        texts.append(own)
        filenames.append(name)
    return texts, filenames


def _groups(args, source: Source | None, filenames: Sequence[str], count: int) -> np.ndarray | None:
    from mmjax.data.pairs import scopes

    if args.scope and args.groups:
        raise UserError("--scope and --groups both say who may be whose neighbor: give one.")
    if args.scope:
        return scopes.groups_of(args.scope, source, filenames)
    if not args.groups:
        return None
    try:
        groups = np.lib.format.open_memmap(os.path.expanduser(args.groups), mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"--groups {args.groups} cannot be read as an array: {error}.") from error
    if groups.shape != (count,) or not np.issubdtype(groups.dtype, np.integer):
        raise UserError(
            f"--groups {args.groups} is {groups.dtype} {list(groups.shape)}; expected integers "
            f"[{count}], one for each row of the features."
        )
    return groups


def _print_plan(features: np.ndarray, k: int, settings: Any, groups: np.ndarray | None) -> None:
    from mmjax import neighbors
    from mmjax.monitor import report

    count, width = features.shape
    found = neighbors.plan(count, width, k=k, settings=settings, groups=groups)
    where = "kept in memory" if found["cached"] else "read from the file each time"
    within = "" if groups is None else f" within its group, of {len(np.unique(groups))}"
    lines = [
        f"{count} rows of {width} ({features.dtype}), the nearest {k} of each{within}",
        f"devices: {len(settings.devices)}; products in {settings.dtype}: {found['flops']:.3g} "
        f"floating point operations, about {report.format_seconds(found['seconds'])} at this "
        "machine's rate just now",
        f"memory: {report.format_bytes(found['device_bytes'])} on each device, "
        f"{report.format_bytes(found['host_bytes'])} on the host; unit vectors are {where}; "
        f"passes over the features: {found['passes']}",
    ]
    print("\n".join(lines), flush=True)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """What the search logs is shown, such as how many rows it searches again."""
    logger = logging.getLogger("mmjax.neighbors")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _bar(what: str, total: int, unit: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    with tqdm(
        desc=what, total=total, unit=unit, unit_scale=True, disable=quiet, file=sys.stderr
    ) as bar:
        yield bar.update


def _keep(found: Found, keep: np.ndarray, both: np.ndarray) -> None:
    """Leaves out the other pairs, in place; those that are kept move to the front."""
    order = np.argsort(~keep, 1, kind="stable")
    found.neighbors[:] = np.take_along_axis(np.where(keep, found.neighbors, -1), order, 1)
    found.similarity[:] = np.take_along_axis(np.where(keep, found.similarity, 0), order, 1)
    both[:] = np.take_along_axis(both & keep, order, 1)


def _summary(
    out: str, found: Found, both: np.ndarray, texts: Sequence[str], below: int
) -> Iterator[str]:
    """Lines that say what was found."""
    there, counts = found.neighbors >= 0, found.counts
    yield (
        f"{out}: {there[:, 0].sum()} of {len(there)} records have a neighbor, {there.sum()} pairs."
    )
    reasons = {
        "rows of zeros": counts["zero"],
        "alone in their group": counts["alone"],
        "pairs below --min-similarity": below,
    }
    if told := ", ".join(f"{count} {what}" for what, count in reasons.items() if count):
        yield f"left out: {told}"
    yield (
        f"{counts['distinct']} distinct rows, of which {counts['searched_again']} were searched "
        f"again in float32, {counts['searched_whole']} by all scores"
    )
    if not there.any():
        return
    values = np.percentile(found.similarity[:, 0][there[:, 0]], _QUANTILES)
    shown = "  ".join(f"{q} %: {v:.3f}" for q, v in zip(_QUANTILES, values, strict=True))
    yield f"similarity of the nearest: {shown}"
    yield f"mutual: {both.sum()} of {there.sum()} pairs ({both.sum() / there.sum():.0%})"
    if texts:
        rows, places = np.nonzero(there)
        others = found.neighbors[rows, places]
        equal = sum(texts[row] == texts[other] for row, other in zip(rows, others, strict=True))
        yield f"same caption: {equal} pairs ({equal / len(rows):.0%})"


def _look(args, found: Found, source: Source, captions: Sequence[Sequence[str]]) -> None:
    """Prints and draws some records beside their neighbors."""
    from mmjax.neighbors import figure

    having = np.flatnonzero(found.neighbors[:, 0] >= 0)
    if not len(having):
        return
    chosen = np.random.default_rng(0).permutation(having)[: args.show or 8]
    rows = []
    for record in map(int, np.sort(chosen)):
        names = [record, *(int(n) for n in found.neighbors[record] if n >= 0)]
        cosines = found.similarity[record][: len(names) - 1]
        heads = [f"record {record}"]
        heads += [f"{s:.3f}  record {n}" for n, s in zip(names[1:], cosines, strict=True)]
        texts = [(*captions[number], "(no caption)")[0] for number in names]
        rows.append(list(zip(names, heads, texts, strict=True)))
        if args.show:
            print("\n".join(["", f"{heads[0]}: {texts[0]}"]))
            print("\n".join(f"  {h}: {t}" for h, t in zip(heads[1:], texts[1:], strict=True)))
    if not args.figure:
        return
    drawn = [[(_image(source, number), h, t) for number, h, t in row[:6]] for row in rows]
    title = f"{source.name}: records and their nearest neighbors"
    try:
        figure.draw(drawn, args.figure, title=title)
    except (OSError, ValueError) as error:
        raise UserError(f"{args.figure} cannot be written: {error}.") from error
    print(f"{args.figure}: {len(rows)} records and their neighbors")


def _image(source: Source, record: int) -> np.ndarray | None:
    """The first image of a record."""
    import io

    import PIL.Image

    from mmjax.data.storage import schema

    example = schema.decode(source.fetch(record), waveform_format="unchecked")
    images = (*example.frames, *example.touch)
    if not images:
        return None
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(images[0])).convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        return None

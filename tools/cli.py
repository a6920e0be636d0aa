"""The console command `mmjax`: everything around training that works on datasets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from absl import flags, logging

from mmjax.errors import UserError
from mmjax.monitor import log

# Heavy imports happen inside the commands: `mmjax --help` must not wait for TensorFlow.


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0 fine, 1 problems found, 2 wrong input."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # says so at length if it is on
    log.setup(logging.WARNING)
    flags.FLAGS.mark_as_parsed()  # absl's, of which commands have none: else it warns at each log
    parser = argparse.ArgumentParser(prog="mmjax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    args, rest = parser.parse_known_args(argv)
    beam = args.command == "build" and args.runner == "beam"
    overrides = args.command in ("plan", "embed") and all(a.startswith("--config.") for a in rest)
    if rest and not (beam or overrides):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    args.rest = [argument for argument in rest if argument != "--"]
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"mmjax {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmjax {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file in the way of a folder, no permission, a full disk
        print(f"mmjax {args.command}: {error}", file=sys.stderr)
        return 2


def _add_import(commands) -> None:
    from mmjax.tools import import_data

    import_data.add(commands)


def _add_build(commands) -> None:
    p = commands.add_parser(
        "build",
        help="build a dataset from media files",
        description="Builds a dataset from a table of media files, or a folder of images. Run "
        "again after an interruption, it keeps the shards that are finished. With --runner beam, "
        "arguments not listed here, and all after --, go to Apache Beam.",
    )
    what = p.add_argument_group("what to build")
    source = what.add_mutually_exclusive_group()
    source.add_argument(
        "--csv",
        metavar="FILE",
        help="table (.csv, .tsv, .jsonl, .parquet) with the columns path, start, end, caption, "
        "label, split, touch, background, crop",
    )
    source.add_argument(
        "--images", metavar="FOLDER", help="images in FOLDER/class, or FOLDER/split/class"
    )
    what.add_argument("--out", required=True, metavar="FOLDER", help="the dataset")
    what.add_argument(
        "--media-root", metavar="FOLDER", help="for paths (default: where the table is)"
    )
    what.add_argument("--classes", metavar="FILE", help="class names, one per line, in order")
    what.add_argument("--separator", default="|", help="between captions, labels in a cell ('|')")
    what.add_argument("--split", default="train", help="of rows that name none (train)")
    what.add_argument(
        "--split-by-time",
        metavar="train:0.8,test:0.2",
        help="parts of every file, in this order of time",
    )
    what.add_argument("--split-by-file", metavar="train:0.8,test:0.2", help="parts of the files")
    what.add_argument("--clip-seconds", type=float, metavar="S", help="cut rows into clips")

    how = p.add_argument_group("how to store it")
    how.add_argument("--fps", type=float, default=10.0, help="frames per second (10)")
    how.add_argument(
        "--size", type=int, default=256, help="shorter side in pixels, 0 = as is (256)"
    )
    how.add_argument("--sample-rate", type=int, default=48_000, help="of the sound, in Hz (48000)")
    how.add_argument("--quality", type=int, default=90, help="of the JPEGs (90)")
    how.add_argument(
        "--crop-margin",
        type=float,
        default=0.0,
        metavar="F",
        help="keep this fraction of a crop's sides around it, for jittered crops (0)",
    )
    how.add_argument("--no-video", action="store_true", help="leave out the image")
    how.add_argument("--no-audio", action="store_true", help="leave out the sound")
    how.add_argument(
        "--frame-dir-fps", type=float, metavar="FPS", help="of folders of frames (default: --fps)"
    )
    how.add_argument(
        "--clips-per-shard", type=int, metavar="N", help="64, or 1024 with --images, by default"
    )
    how.add_argument("--vocab-size", type=int, default=65_536, help="words in vocab.txt (65536)")

    run = p.add_argument_group("how to run it")
    run.add_argument("--workers", type=int, help="processes (default: one per core)")
    run.add_argument(
        "--on-error", choices=("skip", "fail"), default="skip", help="a bad row (skip)"
    )
    run.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="exit status 1 if more rows are bad (0.05)",
    )
    run.add_argument("--retry-bad", action="store_true", help="build shards with bad rows again")
    run.add_argument("--overwrite", action="store_true", help="replace another dataset in --out")
    run.add_argument("--shard", metavar="I/N", help="build only the I-th of N parts, 0 ≤ I < N")
    run.add_argument(
        "--finalize", action="store_true", help="only write dataset.json, after --shard"
    )
    run.add_argument("--runner", choices=("local", "beam"), default="local")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    p.set_defaults(run=_build)


def _build(args) -> int:
    from mmjax.data.build import build, manifest, runners

    if args.finalize:
        return _finish(build.finalize(args.out, plan := build.load_plan(args.out)), plan, args)
    if args.csv:
        root = args.media_root or os.path.dirname(os.path.abspath(args.csv))
        rows = manifest.read_table(args.csv, separator=args.separator, split=args.split)
    elif args.images:
        root = args.media_root or args.images
        rows = manifest.read_image_directory(args.images, split=args.split)
    else:
        raise UserError("Give --csv FILE or --images FOLDER (or --finalize).")
    part, parts = manifest.parse_part(args.shard, option="--shard")
    workers = args.workers or _cores()
    plan = build.prepare(
        args.out,
        rows,
        build.Options(
            fps=args.fps,
            size=args.size or None,
            sample_rate=args.sample_rate,
            quality=args.quality,
            crop_margin=args.crop_margin,
            video=not args.no_video,
            audio=not args.no_audio,
            frame_dir_fps=args.frame_dir_fps,
            clip_seconds=args.clip_seconds,
            by_time=_fractions(args.split_by_time),
            by_file=_fractions(args.split_by_file),
            clips_per_shard=args.clips_per_shard or (1024 if args.images else 64),
            vocab_size=args.vocab_size,
        ),
        media_root=root,
        class_names=_lines(args.classes) if args.classes else None,
        overwrite=args.overwrite,
        workers=4 * workers,
        progress=not args.quiet,
    )
    mine = {shard.name for shard in plan.shards()[part::parts]}
    unfinished = build.pending(args.out, plan, retry_bad=args.retry_bad)
    todo = [shard for shard in unfinished if shard.name in mine]
    if len(todo) < len(mine):
        print(f"{len(mine) - len(todo)} of {len(mine)} shards are finished already.")
    builder = build.ShardBuilder(
        out=os.path.abspath(args.out),
        media_root=os.path.abspath(root),
        options=plan.options,
        classes=plan.classes,
        key=plan.key,
        on_error=args.on_error,
    )
    if args.runner == "beam":
        runners.run_beam(builder, todo, arguments=args.rest)
    else:
        runners.run_local(builder, todo, workers=workers, progress=not args.quiet)
    if parts > 1:
        print(
            f"Part {part} of {parts} is built: {len(mine)} shards. When all parts are: "
            f"mmjax build --finalize --out {args.out}"
        )
        return 0
    return _finish(build.finalize(args.out, plan), plan, args)


def _add_validate(commands) -> None:
    p = commands.add_parser(
        "validate",
        help="look at every record for what goes wrong in training",
        description="Checks every record of a dataset; exit status 1 if there are errors.",
    )
    p.add_argument("dataset", metavar="FOLDER")
    p.add_argument("--split", action="append", default=[], help="only this one (repeatable)")
    p.add_argument("--max-records", type=int, metavar="N", help="of each split, evenly spread")
    p.add_argument("--workers", type=int, help="threads (default: one per core)")
    p.add_argument("--offenders", type=int, default=3, metavar="N", help="to list per kind (3)")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(run=_validate)


def _validate(args) -> int:
    from mmjax.data.build import validate

    result = validate.validate(
        args.dataset,
        splits=args.split,
        max_records=args.max_records,
        workers=args.workers or _cores(),
        progress=not args.quiet,
    )
    if args.json:
        print(json.dumps(validate.as_json(result), indent=1))
    else:
        print(validate.report(result, offenders=args.offenders))
    return int(result.num_errors > 0)


def _add_preview(commands) -> None:
    p = commands.add_parser(
        "preview",
        help="draw a contact sheet of a dataset",
        description="Draws frames, waveform, captions and labels of some clips of a dataset.",
    )
    p.add_argument("dataset", metavar="FOLDER")
    p.add_argument("--split", default="train", help="which one (train)")
    p.add_argument("--out", default="preview.png", metavar="FILE", help="the PNG (preview.png)")
    p.add_argument("--clips", type=int, default=8, help="rows, evenly spread over the split (8)")
    p.add_argument("--frames", type=int, default=8, help="frames of each clip (8)")
    p.set_defaults(run=_preview)


def _preview(args) -> int:
    from mmjax.data.build import preview

    chosen = preview.preview(
        args.dataset, split=args.split, out=args.out, clips=args.clips, frames=args.frames
    )
    print(f"{args.out}: {len(chosen)} examples of {args.dataset}, split {args.split}.")
    return 0


def _add_index(commands) -> None:
    p = commands.add_parser(
        "index",
        help="index the shards of a folder and write dataset.json",
        description="Makes a folder of TFRecord shards, for example DMVR's, a dataset: writes an "
        "index beside each shard, and dataset.json. What dataset.json says already is kept.",
    )
    p.add_argument("dataset", metavar="FOLDER")
    p.set_defaults(run=_index)


def _index(args) -> int:
    from mmjax.data.build import index
    from mmjax.data.storage import dataset

    print(dataset.describe(index.index(args.dataset)))
    return 0


def _add_vocab(commands) -> None:
    p = commands.add_parser(
        "vocab",
        help="count the words of a dataset's captions",
        description="Writes the words of the captions of a split, by frequency, to vocab.txt in "
        "the dataset.",
    )
    p.add_argument("dataset", metavar="FOLDER")
    p.add_argument("--split", default="train", help="which one (train)")
    p.add_argument("--size", type=int, default=65_536, help="at most this many words (65536)")
    p.add_argument(
        "--keywords",
        action="store_true",
        help="and the words that data.text.keywords puts between keywords",
    )
    p.add_argument("--synonyms", metavar="FILE", default="", help="with --keywords: and these")
    p.add_argument("--prompt", metavar="TEXT", default="", help="with --keywords: and these")
    p.set_defaults(run=_vocab)


def _vocab(args) -> int:
    from mmjax.data.build import index
    from mmjax.data.pipeline import keywords

    if (args.synonyms or args.prompt) and not args.keywords:
        raise UserError("--synonyms and --prompt are what --keywords counts: give it too.")
    also = []
    if args.keywords:
        options = keywords.Keywords(synonyms=args.synonyms, prompt=args.prompt)
        also = keywords.inserted(options)
    words = index.vocabulary(args.dataset, split=args.split, size=args.size, also=also)
    print(f"{os.path.join(args.dataset, 'vocab.txt')}: {len(words)} words.")
    return 0


def _add_background(commands) -> None:
    from mmjax.data.build import background

    background.add(commands)


def _add_plan(commands) -> None:
    p = commands.add_parser(
        "plan",
        help="say what a recipe needs on any number of devices",
        description="Prints shapes and bytes per device of the train state of a recipe on a mesh "
        "of any size, without the devices. --config.key=value overrides values as in training.",
    )
    p.add_argument("--task", default="pretrain", help="whose recipe (pretrain)")
    p.add_argument("--config", default="demo", metavar="NAME", help="recipe or .py file (demo)")
    p.add_argument("--data", type=int, default=1, help="size of the mesh axis (1)")
    p.add_argument("--fsdp", type=int, default=1, help="size of the mesh axis (1)")
    p.add_argument("--tensor", type=int, default=1, help="size of the mesh axis (1)")
    p.add_argument("--full", action="store_true", help="list every parameter")
    p.add_argument("--device", metavar="KIND", help="e.g. 'NVIDIA H100': the least time of a step")
    p.set_defaults(run=_plan)


def _plan(args) -> int:
    from mmjax import config, plan

    cfg = config.load(args.task, args.config, args.rest)
    sizes = dict(data=args.data, fsdp=args.fsdp, tensor=args.tensor)
    print(plan.plan(cfg, **sizes, full=args.full, device=args.device))
    return 0


def _add_convert(commands) -> None:
    p = commands.add_parser(
        "convert",
        help="turn published weights into a run directory, or a run into PyTorch's names",
        description="Reads a TensorFlow checkpoint of VATT, or PyTorch's files of TVL, OpenCLIP or "
        "LGSSL, or of a ResNet or MobileNetV2, and writes a run directory that any task can start "
        "from, with a report of every name. A pickle of word embeddings becomes an .npz. "
        "Pickles are never executed. With --to a run becomes a .safetensors or .pth file.",
    )
    p.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="prefix (…/ckpt-500000), its .index, its folder; a .pth, .pt, .bin, .ckpt or "
        ".safetensors of TVL, of OpenCLIP, of both, or of a backbone of images; a .pkl of word "
        "embeddings; with --to a run",
    )
    p.add_argument("--out", metavar="PATH", help="the run directory, .npz, .safetensors or .pth")
    p.add_argument("--inspect", action="store_true", help="only say what SOURCE is and holds")
    p.add_argument("--json", action="store_true", help="with --inspect: as JSON")
    p.add_argument(
        "--to",
        choices=("timm", "tvl", "open_clip", "torchvision"),
        help="write a run's touch encoder in the names of timm, or of TVL's checkpoints, its "
        "other towers in OpenCLIP's, or its backbone of images in torchvision's",
    )
    p.add_argument(
        "--head-dim",
        type=int,
        metavar="N",
        help="features of an attention head (what T5's table tells, else 64)",
    )
    p.add_argument(
        "--quick-gelu",
        action="store_true",
        help="CLIP was trained with x·sigmoid(1.702 x) for GELU, as OpenAI's",
    )
    p.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="PATTERN",
        help="keys that may be missing, unknown or of another shape (repeatable)",
    )
    p.add_argument(
        "--vocab",
        metavar="FILE",
        help="the words that SOURCE was trained with: checked against its table, and kept with the "
        "run (VATT: misc/howto100m_en.txt, CLIP: bpe_simple_vocab_16e6.txt.gz)",
    )
    p.set_defaults(run=_convert)


def _convert(args) -> int:
    from mmjax.convert import dispatch
    from mmjax.formats import word_vectors

    if not args.out and not args.inspect:
        raise UserError("Give --out PATH, or --inspect.")
    if args.to:
        if args.inspect or len(args.sources) > 1:
            raise UserError(f"--to {args.to} takes one SOURCE, and writes --out.")
        return dispatch.export(args.sources[0], to=args.to, out=args.out)
    if len(args.sources) == 1 and word_vectors.is_word_vectors(args.sources[0]):
        return dispatch.convert_word_vectors(
            args.sources[0], out=args.out, inspect=args.inspect, vocab=args.vocab
        )
    return dispatch.convert_checkpoint(
        args.sources,
        out=args.out,
        inspect=args.inspect,
        as_json=args.json,
        head_dim=args.head_dim,
        quick_gelu=args.quick_gelu,
        allow=args.allow,
        vocab=args.vocab,
    )


def _add_embed(commands) -> None:
    p = commands.add_parser(
        "embed",
        help="compute what towers make of a dataset, once",
        description="Runs towers over the training data of a recipe or a run and writes what they "
        "make of it: frozen towers of the touch task, of which a training then neither reads the "
        "images nor runs the towers, or a backbone of the guided task, to find neighbors by. "
        "--config.key=value overrides values as in training.",
    )
    p.add_argument(
        "modalities",
        nargs="+",
        choices=("image", "text", "touch"),
        metavar="MODALITY",
        help="image, text or touch",
    )
    p.add_argument(
        "--config", default="tvl", metavar="NAME", help="recipe of touch, or .py file (tvl)"
    )
    p.add_argument(
        "--run", dest="source", default="", metavar="RUN", help="a run's recipe and weights instead"
    )
    p.add_argument(
        "--weights",
        nargs="+",
        metavar="SOURCE",
        help="what the training will start from: a run directory or published files",
    )
    p.add_argument("--out", required=True, metavar="FOLDER", help="where the features go")
    p.add_argument(
        "--variants",
        type=int,
        default=0,
        metavar="K",
        help="K draws of the recipe's augmentation (random crops, colors, keywords) for each "
        "example; 0: the one that evaluation sees (0)",
    )
    p.add_argument("--batch-size", type=int, default=64, help="over all devices (64)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(run=_embed)


def _embed(args) -> int:
    from mmjax import config, embed
    from mmjax.checkpoints import manager as checkpoint
    from mmjax.checkpoints import run_dir
    from mmjax.neighbors import search_dataset

    if args.source:
        run, _ = checkpoint.find(args.source)
        cfg = run_dir.RunDir(run, create=False).read_config()
        config.apply(cfg, args.rest)
    else:
        cfg = config.load("touch", args.config, args.rest)
    if not (args.weights or args.source):
        raise UserError("Give --weights, or --run RUN to take a run's recipe and weights.")
    embed.embed(
        cfg,
        args.modalities,
        weights=args.weights or [args.source],
        out=args.out,
        variants=args.variants,
        batch_size=args.batch_size,
        progress=not args.quiet,
    )
    if cfg.task == "touch":
        print(f"{args.out}: train on it with")
    for modality in args.modalities:
        if cfg.task == "touch":
            print(f"  --config.data.{modality}.features={args.out}")
        else:
            split = cfg.data.get("split", "train")
            following = search_dataset.command(
                args.out, data=cfg.data.train, split=split, modality=modality
            )
            print(f"{args.out}: features of {modality}.\nNext: {following}")
    return 0


def _add_sentences(commands) -> None:
    from mmjax.sentence_encoders import embed_captions

    embed_captions.add(commands)


def _add_neighbors(commands) -> None:
    from mmjax.data.pairs import lists
    from mmjax.neighbors import search_dataset

    search_dataset.add(commands)
    lists.add(commands)


def _finish(bad: list[dict], plan, args) -> int:
    """Prints what has been built; the exit status."""
    from mmjax.data.storage import dataset

    info = dataset.DatasetInfo.load(args.out)
    print(dataset.describe(info))
    shortened = info.statistics["shortened"]
    if shortened:
        print(f"{shortened} clips are shorter than asked for: their files end earlier.")
    if not bad:
        return 0
    print(f"\n{len(bad)} of {len(plan.clips)} clips could not be built (bad_rows.csv):")
    by_file: dict[str, list[dict]] = {}
    for row in bad:
        by_file.setdefault(row["path"], []).append(row)
    print("   line  clips  problem")
    for rows in list(by_file.values())[:20]:
        print(f"{rows[0]['row']:>7}  {len(rows):>5}  {rows[0]['error']}")
    if len(by_file) > 20:
        print(f"… and {len(by_file) - 20} more files")
    print("When the files are repaired, run the same command with --retry-bad.")
    return int(len(bad) > args.max_bad_fraction * len(plan.clips))


def _add_thresholds(commands) -> None:
    from mmjax.evals import thresholds

    thresholds.add(commands)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))  # the cores this process may use
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _fractions(text: str | None) -> tuple[tuple[str, float], ...]:
    from mmjax.data.build import manifest

    return tuple(manifest.parse_fractions(text)) if text else ()


def _lines(path: str) -> list[str]:
    if not os.path.exists(path):
        raise UserError(f"There is no file {path}.")
    with open(path, encoding="utf-8-sig") as file:
        return [line.strip() for line in file if line.strip()]


COMMANDS = [
    _add_import,
    _add_build,
    _add_validate,
    _add_preview,
    _add_index,
    _add_vocab,
    _add_background,
    _add_embed,
    _add_sentences,
    _add_neighbors,
    _add_plan,
    _add_convert,
    _add_thresholds,
]  # functions that add a command to the parser; its `run` gets the arguments

if __name__ == "__main__":
    sys.exit(main())

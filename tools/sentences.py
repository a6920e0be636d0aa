"""Compute sentence embeddings of the captions of each record of a dataset.

Writes FEATURES/SPLIT/text.npy, which `mmjax neighbors` and data.text.features read. An interrupted
run continues where it stopped if you run the same command again.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dataset", metavar="DATASET", help="dataset directory, or world:NAME")
    parser.add_argument(
        "--out", required=True, metavar="FEATURES", help="directory of features to write"
    )
    parser.add_argument(
        "--encoder",
        required=True,
        metavar="ENCODER",
        help="a directory with config.json and model.safetensors (a BERT model such as "
        "all-MiniLM-L6-v2, run in JAX); st:NAME: a model of the package sentence-transformers; "
        "words: bag of words with tf-idf weights; vectors:FILE: mean of word vectors (fastText's "
        ".vec file, or an .npz file with --vocab); npy:FILE: precomputed vectors; or "
        "package.module:NAME",
    )
    parser.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="split of the dataset (default: %(default)s)",
    )
    parser.add_argument(
        "--captions",
        choices=("first", "mean", "all"),
        help="first: embed the first caption; mean: the mean of all captions; all: every caption; "
        "training samples one at each visit (default: first)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="texts per batch, over all devices (default: depends on the device)",
    )
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens per text (default: the model's maximum)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="data type of a BERT model (default: float32)",
    )
    parser.add_argument(
        "--width", type=int, metavar="N", help="vector width of --encoder words (default: 1024)"
    )
    parser.add_argument(
        "--vocab", metavar="FILE", help="with --encoder vectors:FILE.npz: the words, one per line"
    )
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="with --encoder npy:FILE: the file name of each vector, one per line (default: "
        "vectors are in the order of the records)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> None:
    """Writes the embeddings and prints what to run next."""
    from mmjax.sentence_encoders import embed_captions

    print(
        embed_captions.embed_captions(
            args.dataset,
            args.out,
            encoder=args.encoder,
            split=args.split,
            captions=args.captions,
            ids=args.ids,
            progress=not args.quiet,
            batch_size=args.batch_size,
            max_length=args.max_length,
            dtype=args.dtype,
            width=args.width,
            vocab=args.vocab,
        )
    )

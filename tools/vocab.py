"""Write the words in the captions of a split to `vocab.txt` of the dataset, by frequency."""

from __future__ import annotations

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dataset", metavar="DIR", help="the dataset")
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="split to count (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=65_536,
        metavar="N",
        help="maximum number of words (default: %(default)s)",
    )
    parser.add_argument(
        "--keywords",
        action="store_true",
        help="also count the words that data.text.keywords inserts between keywords",
    )
    parser.add_argument(
        "--synonyms",
        metavar="FILE",
        default="",
        help="with --keywords: also count the synonyms in this file",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", default="", help="with --keywords: also count this prompt"
    )


def run(args: argparse.Namespace) -> None:
    """Writes the vocabulary."""
    from mmjax.data.build import vocabulary

    words = vocabulary.write_vocabulary(
        args.dataset,
        split=args.split,
        size=args.size,
        extra_texts=vocabulary.keyword_texts(
            args.keywords, synonyms=args.synonyms, prompt=args.prompt
        ),
    )
    print(f"{os.path.join(args.dataset, 'vocab.txt')}: {len(words)} words.")

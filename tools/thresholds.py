"""Compute thresholds of the evaluator semantic_retrieval from synonyms.

Encodes words and their synonyms with the text tower of a run, and prints percentiles of their
cosine similarities as JSON. "minus_published" compares them with TVL's thresholds, which shows the
--prompt and --pairs that those were computed with.
"""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model_dir", metavar="RUN", help="run directory of a model with a text tower"
    )
    parser.add_argument(
        "--synonyms",
        default="tactile",
        metavar="FILE",
        help='JSON file, {"word": ["synonym", …], …} (default: the touch adjectives of mmjax)',
    )
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="text before each word (default: none)"
    )
    parser.add_argument(
        "--pairs",
        choices=("key", "all"),
        default="key",
        help="key: a word and each of its synonyms; all: also two synonyms of one word "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--percentiles",
        type=float,
        nargs="+",
        default=(0.0, 25.0, 50.0, 75.0),
        metavar="P",
        help="percentiles of the similarities, 0 to 100 (default: 0 25 50 75)",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the report."""
    from mmjax.evals import thresholds

    report = thresholds.thresholds_of_run(
        args.model_dir,
        synonyms=args.synonyms,
        prompt=args.prompt,
        pairs=args.pairs,
        percentiles=args.percentiles,
    )
    print(json.dumps(report, indent=1, ensure_ascii=False))

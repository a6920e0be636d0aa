"""Let a judge model compare diagnostic texts with references.

Each CAPTIONS is a file of JSON lines with the keys key, class and caption, as captions.jsonl of
`mmjax differences`; so is the file of references, which a person has written or checked. The judge
is a model on a server (`mmjax vlm check`). It says for each text whether it is correct, and rates
it from 0 to 5. The table shows the fraction of correct texts with its 95 % interval, the mean
score, and the fraction of texts that name no other class. DIR contains study.csv, judgments.jsonl,
and the answers of the judge, which are used again if the command is repeated.

Servers that need a key read it from the environment variable MMJAX_VLM_API_KEY.
"""

from __future__ import annotations

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("captions", nargs="+", metavar="CAPTIONS", help="texts to judge")
    parser.add_argument("--references", required=True, metavar="FILE", help="reference texts")
    parser.add_argument("--model", required=True, metavar="NAME", help="the judge")
    parser.add_argument(
        "--url",
        default="http://localhost:11434",
        metavar="URL",
        help="address of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt",
        metavar="FILE",
        help="your own question, a text with {pos_class}, {reference} and {answer}",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the results")


def run(args: argparse.Namespace) -> int:
    """Prints the table; the exit status is 1 if the judge has judged no text."""
    from mmjax.diagnostic_text import study
    from mmjax.diagnostic_text.vlm.judge import Judge
    from mmjax.monitor.report import format_table

    prompt = study.read_prompt(args.prompt or study.BUILT_IN)
    references = study.read_captions(args.references)
    texts = {path: study.read_captions(path) for path in args.captions}
    out = pathlib.Path(args.out)
    with Judge(args.url, args.model, store=out / "answers.jsonl") as judge:
        details, rows = study.judge(texts, references, judge.ask, prompt)
    study.write_results(out, details, rows)
    header = ("texts", "class", "judged", "missing", "failed", "correct", "score", "pertinent")
    lines = []
    for row in rows:
        judged = row.num_references - row.num_missing - row.num_failed
        correct = score = pertinent = "-"
        if row.interval is not None:
            correct = f"{row.correct:.2f} ({row.interval[0]:.2f}-{row.interval[1]:.2f})"
            score = f"{row.score:.2f}"
        if row.pertinent is not None:
            pertinent = f"{row.pertinent:.2f}"
        counts = (str(judged), str(row.num_missing), str(row.num_failed))
        lines.append((row.texts, row.class_name, *counts, correct, score, pertinent))
    print(format_table(header, lines))
    print(f"Results: {out / 'study.csv'}")
    return 0 if any(row.correct is not None for row in rows) else 1

"""Damages files of all kinds that mmjax reads, and reads them as mmjax does.

    python -m tests.drills.fuzz --minutes 5 --seed 0

Each damaged file must be refused with a message that names it, or give the result of the intact
file. Everything else is a finding: another result although a checksum could have told (`silent`), a
`traceback`, a `hang`, a `signal`, more `memory` than the file justifies, or a message that does not
name the file (`unnamed`). Bytes that no checksum covers are counted as `uncovered`. With the same
seed, the same files are damaged in the same way.
"""

import argparse
import collections
import json
import multiprocessing
import pathlib
import sys
import tempfile
import time

from tests.drills import worker

HARMLESS = ("refused", "identical", "uncovered", "unchanged")
FINDINGS = ("silent", "traceback", "hang", "signal", "memory", "unnamed")
START_SECONDS = 300.0


class Pool:
    """One worker process, which is replaced when it hangs or dies.

    Args:
      patterns: Kinds of files to damage.
      seed: Seed of the mutations.
      time_limit: Seconds after which a case hangs.
      target: The function of the process.
    """

    def __init__(self, patterns, *, seed, time_limit=30.0, target=worker.serve):
        self.patterns, self.seed = list(patterns), seed
        self.time_limit, self.target = time_limit, target
        self.names: list[str] = []
        self.start()

    def start(self):
        self.directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=self.target, args=(other, self.directory.name, self.patterns, self.seed)
        )
        self.process.start()
        other.close()
        if not self.connection.poll(START_SECONDS):
            self.stop()
            raise TimeoutError("The worker of the fuzzer did not start.")
        self.names = self.connection.recv()

    def stop(self):
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.directory.cleanup()

    def run(self, name, number):
        """Returns the outcome of a case."""
        try:
            self.connection.send((name, number))
            if self.connection.poll(self.time_limit):
                return self.connection.recv()
            outcome, details = "hang", f"no result after {self.time_limit:g} s"
        except (EOFError, OSError):
            self.process.join()
            outcome, details = "signal", f"exit status {self.process.exitcode}"
        self.stop()
        self.start()
        return {"outcome": outcome, "details": details}


def fuzz(patterns=("*",), *, count=None, minutes=None, seed=0, first=0, **options):
    """Yields (kind, number, outcome) of `count` cases, or of as many as fit into `minutes`."""
    pool = Pool(patterns, seed=seed, **options)
    end = time.monotonic() + 60 * minutes if minutes else None
    try:
        number = 0
        while (count is None or number < count) and (end is None or time.monotonic() < end):
            name = pool.names[number % len(pool.names)]
            case = first + number // len(pool.names)
            yield name, case, pool.run(name, case)
            number += 1
    finally:
        pool.stop()


def table(counts):
    """Returns the counts of outcomes, one line per kind."""
    columns = [*HARMLESS, *FINDINGS]
    width = max(map(len, counts), default=4)
    lines = [f"{'kind':<{width}}" + "".join(f"{name:>11}" for name in ("cases", *columns))]
    total = collections.Counter()
    for name, row in sorted(counts.items()):
        total.update(row)
        numbers = [sum(row.values()), *(row[column] for column in columns)]
        lines.append(f"{name:<{width}}" + "".join(f"{number:>11}" for number in numbers))
    numbers = [sum(total.values()), *(total[column] for column in columns)]
    return "\n".join([*lines, f"{'total':<{width}}" + "".join(f"{n:>11}" for n in numbers)])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=None, help="time to run")
    parser.add_argument("--count", type=int, default=None, help="cases over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of a kind")
    parser.add_argument("--kinds", nargs="+", default=["*"], help="patterns of kinds (*: all)")
    parser.add_argument("--json", type=pathlib.Path, default=None, help="file of the findings")
    args = parser.parse_args(argv)
    if args.minutes is None and args.count is None:
        args.minutes = 5.0
    counts, findings = collections.defaultdict(collections.Counter), []
    cases = fuzz(
        args.kinds, count=args.count, minutes=args.minutes, seed=args.seed, first=args.first
    )
    for name, number, result in cases:
        counts[name][result["outcome"]] += 1
        if result["outcome"] in FINDINGS:
            findings.append({"kind": name, "case": number, "seed": args.seed, **result})
            print(f"{name} {number}: {json.dumps(result)}", flush=True)
    print(table(counts))
    if args.json:
        args.json.write_text(json.dumps(findings, indent=1) + "\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

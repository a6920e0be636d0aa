"""A short selection of the mutation fuzzer, and the fuzzer itself finds what it looks for."""

import os
import time

import numpy as np
import pytest

from mmjax.errors import UserError
from tests.drills import fuzz, kinds, worker
from tests.drills.kinds import Refused

KINDS = kinds.load()
# Kinds that start a program or read many files take most of the time of a long run.
SLOW = (
    "run_directory",
    "tensorflow",
    "bert",
    "bert_in_parts",
    "validated_shards",
    "records",
    "image_backbone",
)
CASES = 6


@pytest.mark.parametrize("name", [name for name in KINDS if name not in SLOW])
def test_damaged_files_are_refused_or_harmless(tmp_path, name):
    cases = worker.Cases(KINDS[name], tmp_path)
    results = [cases.run(number, seed=0) for number in range(CASES)]
    assert not [result for result in results if result["outcome"] not in fuzz.HARMLESS]
    assert {result["outcome"] for result in results} != {"unchanged"}


def serve(connection, directory, patterns, seed):
    """Like `worker.serve`, for kinds of which each shows one outcome."""
    names = ["fine", "hang", "signal", "traceback"]
    connection.send(names)
    while True:
        name, _ = connection.recv()
        if name == "hang":
            time.sleep(60)
        elif name == "signal":
            os.abort()
        connection.send({"outcome": "refused" if name == "fine" else name, "details": ""})


def test_workers_that_hang_or_die_are_replaced():
    cases = fuzz.fuzz(count=8, seed=0, time_limit=1.0, target=serve)
    results = [(name, number, result["outcome"]) for name, number, result in cases]
    assert results == [
        (name, number, outcome)
        for number in range(2)
        for name, outcome in (
            *(("fine", "refused"), ("hang", "hang")),
            *(("signal", "signal"), ("traceback", "traceback")),
        )
    ]


def outcome_of(tmp_path, read, uncovered=None):
    """Returns the outcomes of a kind whose reader is `read`."""

    def make(directory):
        (directory / "a.bin").write_bytes(bytes(range(200)))
        return read

    cases = worker.Cases(kinds.Kind("fake", make, uncovered or {}), tmp_path)
    return {cases.run(number, seed=0)["outcome"] for number in range(12)} - {"unchanged"}


def reader(error):
    def read(where):
        if (where / "a.bin").read_bytes() != bytes(range(200)):
            raise error
        return 0

    return read


@pytest.mark.parametrize(
    "error, outcome",
    [
        (UserError("a.bin is damaged."), "refused"),
        (Refused("recomputed"), "refused"),
        (UserError("damaged."), "unnamed"),
        (KeyError("a.bin"), "traceback"),
        (SystemExit(1), "traceback"),
        (MemoryError(), "traceback"),
    ],
)
def test_errors_are_classified(tmp_path, error, outcome):
    assert outcome_of(tmp_path, reader(error)) == {outcome}


def test_memory_that_ran_out_behind_a_message_is_found(tmp_path):
    error = UserError("a.bin is damaged.")
    error.__cause__ = MemoryError()
    assert outcome_of(tmp_path, reader(error)) == {"memory"}


def test_another_result_is_silent_unless_no_checksum_covers_the_file(tmp_path):
    def read(where):
        return np.fromfile(where / "a.bin", np.uint8) if (where / "a.bin").is_file() else None

    assert outcome_of(tmp_path / "a", read) == {"silent"}
    assert outcome_of(tmp_path / "b", read, {"*.bin": "no checksum"}) == {"uncovered"}
    assert outcome_of(tmp_path / "c", lambda where: 0) == {"identical"}


def test_cases_are_reproducible(tmp_path):
    kind = KINDS["jsonl"]
    first, second = (
        [cases.run(number, seed=1) for number in range(5)]
        for cases in (worker.Cases(kind, tmp_path / name) for name in "ab")
    )
    assert first == second


def test_the_table_counts_outcomes_per_kind():
    text = fuzz.table(
        {
            "npy": {"refused": 2, "silent": 1}
            | dict.fromkeys(fuzz.FINDINGS[1:], 0)
            | dict.fromkeys(fuzz.HARMLESS[1:], 0)
        }
    )
    assert text.splitlines()[1].split()[:3] == ["npy", "3", "2"]
    assert text.splitlines()[-1].split()[:3] == ["total", "3", "2"]

"""The process of the fuzzer that reads damaged files, with bounded memory."""

import contextlib
import fnmatch
import os
import pathlib
import resource
import shutil
import traceback

import numpy as np

from mmjax.errors import UserError
from tests.drills import kinds, mutations

MEMORY = 3 << 30  # address space in bytes beyond that of the process before


class Cases:
    """Damaged copies of the files of one kind, and the outcome of reading them.

    Args:
      kind: The kind.
      directory: Where intact and damaged files are written.
    """

    def __init__(self, kind: kinds.Kind, directory: pathlib.Path):
        self.kind, self.directory = kind, directory / kind.name
        self.intact = self.directory / "intact"
        self.intact.mkdir(parents=True)
        self.read = kind.make(self.intact)
        self.expected = self._digest(self.intact)
        assert self._digest(self.intact) == self.expected, f"{kind.name}: readings differ"
        paths = (path for path in self.intact.rglob("*") if path.is_file())
        self.files = sorted(path.relative_to(self.intact) for path in paths)

    def _digest(self, directory: pathlib.Path) -> str:
        """Returns the fingerprint of what is read; paths in it do not depend on the directory."""
        with contextlib.chdir(directory):
            return kinds.digest(self.read(pathlib.Path(".")))

    def run(self, number: int, seed: int) -> dict[str, str]:
        """Returns the outcome of one damaged copy: `file`, `mutation`, `outcome`, `details`."""
        rng = np.random.default_rng([seed, number, *self.kind.name.encode()])
        case = self.directory / f"case{number}"
        shutil.copytree(self.intact, case)
        file = self.files[rng.integers(0, len(self.files))]
        name = mutations.mutate(case / file, rng)
        same = (case / file).is_file() and (
            (case / file).read_bytes() == (self.intact / file).read_bytes()
        )
        outcome, details = ("unchanged", "") if same else self._read(case, file)
        shutil.rmtree(case)
        return {"file": str(file), "mutation": name, "outcome": outcome, "details": details}

    def _read(self, case: pathlib.Path, file: pathlib.Path) -> tuple[str, str]:
        try:
            result = self._digest(case)
        except (UserError, kinds.Refused) as error:
            return self._check_message(error, file)
        except BaseException as error:  # noqa: BLE001 - this is what the fuzzer looks for
            return "traceback", "".join(traceback.format_exception(error)[-4:])
        if result == self.expected:
            return "identical", ""
        excuse = self.kind.excuse(file)
        return ("uncovered", excuse) if excuse else ("silent", "another result was accepted")

    def _check_message(self, error: Exception, file: pathlib.Path) -> tuple[str, str]:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return "memory", str(error)[:500]
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, UserError):
            names = [*file.parts, file.name.split(".")[0]]
            if not any(len(name) > 2 and name in str(error) for name in names):
                return "unnamed", f"the message does not name {file}: {str(error)[:500]}"
        return "refused", str(error)[:200]


def limit_memory() -> None:
    """Bounds the address space, so that a huge allocation fails."""
    with open("/proc/self/statm") as file:
        current = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (current + MEMORY, resource.RLIM_INFINITY))


def serve(connection, directory: str, patterns: list[str], seed: int) -> None:
    """Runs cases `(kind, number)` from a connection until it closes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["MMJAX_CACHE_DIR"] = os.path.join(directory, "cache")
    registry = kinds.load()
    cases = {}
    with open(os.devnull, "w") as null:  # the log of the libraries that read the files
        os.dup2(null.fileno(), 2)
    for name, entry in registry.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            cases[name] = Cases(entry, pathlib.Path(directory))
    limit_memory()
    connection.send(sorted(cases))
    with contextlib.suppress(EOFError):
        while True:
            name, number = connection.recv()
            connection.send(cases[name].run(number, seed))

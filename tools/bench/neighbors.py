"""The bench `neighbors`: the search of mmjax.neighbors beside faiss, on the same vectors."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

from mmjax.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the bench."""
    group = parser.add_argument_group("neighbors")
    group.add_argument("--n", type=int, default=200_000, help="vectors (200000)")
    group.add_argument("--dim", type=int, default=384, help="their size (384)")
    group.add_argument("--k", type=int, default=1, help="neighbors of each (1)")
    group.add_argument(
        "--queries",
        type=int,
        default=0,
        help="faiss searches so many of the vectors, and its time is that of all in proportion "
        "(0: all); mmjax always finds the neighbors of all",
    )
    group.add_argument(
        "--indexes",
        nargs="*",
        default=("IndexFlatIP", "IndexFlatL2"),
        help="of faiss; none: mmjax alone",
    )


def bench_neighbors(cfg: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both for the k nearest of all vectors, in turns, and how far they agree."""
    import numpy as np

    from mmjax import neighbors
    from mmjax.neighbors.vectors import unit

    draw = np.random.default_rng(0)
    # A mixture: a few hundred topics with spread, so that neighbors are nearer than by chance.
    centers = draw.standard_normal((500, options.dim), np.float32)
    vectors = centers[draw.integers(0, 500, options.n)]
    vectors += 1.5 * draw.standard_normal(vectors.shape, np.float32)
    vectors = unit(vectors)
    settings = neighbors.choose_settings()
    neighbors.nearest(neighbors.prepare(vectors[:4096]), k=options.k, settings=settings)

    queries = options.queries or options.n
    rows, found, theirs = [], None, {}
    for _ in range(options.repeats):
        prepared, ready = _timed(lambda: neighbors.prepare(vectors))
        search = functools.partial(neighbors.nearest, prepared, k=options.k, settings=settings)
        found, row = _timed(search)
        row = {f"mmjax_{kind}": row[kind] + ready[kind] for kind in row}
        for name in options.indexes:
            index = _faiss_index(name, options.dim)
            _, added = _timed(lambda index=index: index.add(vectors))
            theirs[name], taken = _timed(
                lambda index=index: index.search(vectors[:queries], options.k + 1)
            )
            for kind in taken:
                row[f"{name}_{kind}"] = added[kind] + taken[kind] * options.n / queries
                row[f"mmjax_over_{name}_{kind}"] = row[f"mmjax_{kind}"] / row[f"{name}_{kind}"]
        rows.append(row)
    figures: dict[str, Any] = {
        name: float(np.median([row[name] for row in rows])) for name in rows[0]
    }
    pairs = options.n * (options.n - 1)
    figures |= {
        "n": options.n,
        "dim": options.dim,
        "k": options.k,
        "dtype": settings.dtype,
        "queries_of_faiss": queries,
        "counts": found.counts,
        "scores_per_second": pairs / figures["mmjax_seconds"],
    }
    for name, (scores, numbers) in theirs.items():
        figures[f"agreement_{name}"] = _agreement(found, name, scores, numbers)
    return figures


def _timed(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call returns, and the seconds it took: by the clock, and of this process' cores."""
    began, cpu = time.perf_counter(), time.process_time()
    value = call()
    return value, {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }


def _faiss_index(name: str, dim: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("The bench compares with faiss: pip install faiss-cpu.") from error
    return getattr(faiss, name)(dim)


def _agreement(found: Any, name: str, scores: Any, numbers: Any) -> dict[str, float]:
    """How often faiss, without the query itself, names the same rows, and how far cosines are."""
    import numpy as np

    queries, k = len(numbers), found.neighbors.shape[1]
    if name == "IndexFlatL2":
        scores = 1 - scores / 2
    other = numbers != np.arange(queries)[:, None]
    order = np.argsort(~other, 1, kind="stable")[:, :k]
    numbers, scores = (np.take_along_axis(x, order, 1) for x in (numbers, scores))
    return {
        "equal_neighbors": float((numbers == found.neighbors[:queries]).mean()),
        "largest_difference": float(np.abs(scores - found.similarity[:queries]).max()),
    }

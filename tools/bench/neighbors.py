"""The nearest-neighbor search of `mmjax.neighbors`, compared with faiss."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmjax.errors import UserError
from mmjax.tools.bench.common import medians

if TYPE_CHECKING:  # import JAX
    from mmjax.config import Config
    from mmjax.neighbors import SearchResult


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments of the benchmark."""
    group.add_argument(
        "--n",
        type=int,
        default=200_000,
        metavar="N",
        help="number of vectors (default: %(default)s)",
    )
    group.add_argument(
        "--k",
        type=int,
        default=1,
        metavar="N",
        help="number of neighbors per vector (default: %(default)s)",
    )
    group.add_argument(
        "--queries",
        type=int,
        default=0,
        metavar="N",
        help="number of queries for faiss; its time is extrapolated to all vectors; 0: all vectors "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--indexes",
        nargs="*",
        default=("IndexFlatIP", "IndexFlatL2"),
        metavar="NAME",
        help="faiss indexes; without a value, only mmjax is measured (default: IndexFlatIP "
        "IndexFlatL2)",
    )


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures both searches for the k nearest neighbors of all vectors, and their agreement."""
    import numpy as np

    from mmjax import neighbors

    # A mixture of 500 clusters, so that neighbors are closer than by chance.
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((500, args.dim), np.float32)
    vectors = centers[rng.integers(0, 500, args.n)]
    vectors += 1.5 * rng.standard_normal(vectors.shape, np.float32)
    vectors = neighbors.unit_vectors(vectors)
    settings = neighbors.choose_settings()
    neighbors.nearest(neighbors.prepare(vectors[:4096]), k=args.k, settings=settings)  # compiles

    queries = args.queries or args.n
    measurements, result, faiss_results = [], None, {}
    for _ in range(args.repeats):
        prepared, preparation = _timed(lambda: neighbors.prepare(vectors))
        search = functools.partial(neighbors.nearest, prepared, k=args.k, settings=settings)
        result, times = _timed(search)
        measurement = {f"mmjax_{clock}": times[clock] + preparation[clock] for clock in times}
        for name in args.indexes:
            index = _faiss_index(name, args.dim)
            _, adding = _timed(lambda index=index: index.add(vectors))
            faiss_results[name], searching = _timed(
                lambda index=index: index.search(vectors[:queries], args.k + 1)
            )
            for clock in searching:
                seconds = adding[clock] + searching[clock] * args.n / queries
                measurement[f"{name}_{clock}"] = seconds
                measurement[f"mmjax_over_{name}_{clock}"] = measurement[f"mmjax_{clock}"] / seconds
        measurements.append(measurement)
    report = medians(measurements)
    report |= {
        "n": args.n,
        "dim": args.dim,
        "k": args.k,
        "dtype": settings.dtype,
        "queries_of_faiss": queries,
        "counts": result.counts,
        "scores_per_second": args.n * (args.n - 1) / report["mmjax_seconds"],
    }
    for name, (scores, indices) in faiss_results.items():
        report[f"agreement_{name}"] = _agreement(result, name, scores, indices)
    return report


def _timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Returns the result of a call, with its wall-clock and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    value = function()
    return value, {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def _faiss_index(name: str, dim: int) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "mmjax bench neighbors compares with faiss, which is not installed: pip install "
            "faiss-cpu. Without it, pass --indexes without a value."
        ) from error
    return getattr(faiss, name)(dim)


def _agreement(result: SearchResult, name: str, scores: Any, indices: Any) -> dict[str, float]:
    """Compares neighbors and similarities with those of faiss, without the query itself."""
    import numpy as np

    queries, k = len(indices), result.neighbors.shape[1]
    if name == "IndexFlatL2":
        scores = 1 - scores / 2
    other = indices != np.arange(queries)[:, None]
    order = np.argsort(~other, 1, kind="stable")[:, :k]
    indices, scores = (np.take_along_axis(x, order, 1) for x in (indices, scores))
    return {
        "equal_neighbors": float((indices == result.neighbors[:queries]).mean()),
        "largest_difference": float(np.abs(scores - result.similarity[:queries]).max()),
    }

"""Pairs per second of diagnostic text, with concurrent requests to a server of fixed latency.

The server is a process of its own that answers every request after --latency seconds. The ideal is
--requests / --latency pairs per second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import TYPE_CHECKING, Any

from mmjax.tools.bench.common import medians

if TYPE_CHECKING:
    from mmjax.config import Config

_MODEL = "fixed-latency"


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments of the benchmark."""
    group.add_argument(
        "--requests",
        type=int,
        nargs="+",
        default=(1, 4, 16),
        metavar="N",
        help="numbers of concurrent requests (default: 1 4 16)",
    )
    group.add_argument(
        "--latency",
        type=float,
        default=0.5,
        metavar="S",
        help="seconds per answer of the server (default: %(default)s)",
    )


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the pairs per second for each number of requests."""
    results = {}
    with fixed_latency_server(args.latency) as url:
        for requests in args.requests:
            measure = dict(requests=requests, latency=args.latency, seconds=args.seconds)
            rows = [throughput(url, **measure) for _ in range(args.repeats)]
            results[f"{requests}_requests"] = medians(rows)
    return {"latency_seconds": args.latency, **results}


def throughput(url: str, *, requests: int, latency: float, seconds: float) -> dict[str, float]:
    """Returns the pairs per second of a writer, and their ratio to the ideal.

    Args:
      url: A server that answers every request after `latency` seconds.
      requests: Number of concurrent requests.
      latency: Seconds per answer of the server.
      seconds: Approximate duration of the measurement.
    """
    import dataclasses

    import numpy as np

    from mmjax.diagnostic_text.examples import drawn_pair
    from mmjax.diagnostic_text.vlm.settings import Connection
    from mmjax.diagnostic_text.vlm.writer import VlmWriter

    rounds = max(2, round(seconds / latency))
    drawn, noise = drawn_pair(), np.random.default_rng(0)
    shape = drawn.scene.shape
    pairs = [  # different images, as large as photographs: equal questions are asked once
        dataclasses.replace(drawn, scene=drawn.scene // 2 + noise.integers(0, 16, shape, np.uint8))
        for _ in range(rounds * requests)
    ]
    connection = Connection(concurrency=requests)
    writer = VlmWriter(url=url, model=_MODEL, connection=connection, checks=())
    try:
        writer.prepare()
        writer.write(pairs[:requests])  # opens the connections
        start, cpu = time.perf_counter(), time.process_time()
        writer.write(pairs)
        rate = len(pairs) / (time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / len(pairs)
    finally:
        writer.close()
    ideal = requests / latency
    return {
        "pairs_per_second": rate,
        "ideal": ideal,
        "ratio": rate / ideal,
        "cpu_seconds_per_pair": cpu,
    }


@contextlib.contextmanager
def fixed_latency_server(latency: float) -> Iterator[str]:
    """Runs the server in a process of its own, and yields its URL."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(latency, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def _serve(latency: float, pipe: Pipe) -> None:
    """Answers OpenAI-compatible requests until the process is terminated."""
    message = {"role": "assistant", "content": "The region is segmented accurately."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    replies = {
        "GET": {"object": "list", "data": [{"id": _MODEL}]},
        "POST": {"choices": [choice], "usage": {}},
    }

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                method, path = head.split(" ", 2)[:2]
                if "content-length:" in head:
                    size = int(head.partition("content-length:")[2].split("\r\n", 1)[0])
                    await reader.readexactly(size)
                if method == "post":
                    await asyncio.sleep(latency)
                status = "200 OK" if path.startswith("/v1/") else "404 Not Found"
                body = json.dumps(replies[method.upper()]).encode()
                headers = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(headers.encode() + body)
                await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=256)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())

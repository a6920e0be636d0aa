"""One HTTP request to a server: limits, retries, and errors with a reason."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from mmjax.diagnostic_text.vlm.settings import API_KEY_VARIABLE, Connection, api_key

RETRIED = (429, 500, 502, 503, 504)  # statuses that may pass
_MAX_BYTES = 8 << 20  # of one answer


class RequestError(Exception):
    """A request has failed.

    Attributes:
      reason: 'connection', 'timeout', 'status' or 'malformed'.
      status: HTTP status, if the server sent one.
      retry: Whether another attempt may succeed.
      retry_after: Seconds that the server asks to wait, if it does.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry: bool = True,
        status: int | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.reason, self.retry = reason, retry
        self.status, self.retry_after = status, retry_after


def make_client(url: str, connection: Connection) -> httpx.AsyncClient:
    """Returns the HTTP client of a server, with the API key of the environment if it is set."""
    key = api_key()
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(connection.timeout, connect=connection.connect_timeout, pool=None),
        limits=httpx.Limits(
            max_connections=connection.concurrency,
            max_keepalive_connections=connection.concurrency,
        ),
    )


async def lines(
    client: httpx.AsyncClient, method: str, path: str, body: Any = None
) -> AsyncIterator[str]:
    """Yields the lines of a response as they arrive.

    Raises:
      RequestError: The server is unreachable, breaks off, or answers with an error.
    """
    try:
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        stream = client.stream(method, path, content=content, headers=headers)
        async with stream as response:
            if response.status_code != 200:
                raise _status_error(response, await response.aread())
            size = 0
            async for line in response.aiter_lines():
                size += len(line)
                if size > _MAX_BYTES:
                    raise RequestError("malformed", f"{path}: the answer exceeds 8 MiB")
                yield line
    except httpx.TimeoutException as error:
        raise RequestError("timeout", f"{path}: {type(error).__name__}") from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        detail = str(error) or type(error).__name__
        raise RequestError("connection", f"{path}: {detail}") from error


async def read_json(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    """Returns the JSON value of a response; see `lines` for errors."""
    return parse("\n".join([line async for line in lines(client, method, path, body)]), path)


def parse(text: str, path: str) -> Any:
    """Returns the JSON value of a text, for `RequestError`s that name the path."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"{path}: the answer is not JSON: {text[:80]!r}"
        raise RequestError("malformed", message) from error


def _status_error(response: httpx.Response, content: bytes) -> RequestError:
    """Returns the error of a status, with the text of the server."""
    text = content.decode("utf-8", "replace")[:2000]
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    status = response.status_code
    hint = f" Set {API_KEY_VARIABLE} to the key of the server." if status in (401, 403) else ""
    after = response.headers.get("retry-after", "")
    return RequestError(
        "status",
        f"{response.url.path}: status {status}: {text.strip()[:300]}{hint}",
        retry=status in RETRIED,
        status=status,
        retry_after=float(after) if after.isdecimal() else None,
    )


async def with_retries(
    attempt: Callable[[], Any], connection: Connection, on_retry: Callable[[], None]
) -> Any:
    """Returns `await attempt()`, repeated after errors that may pass.

    The delay doubles with each attempt and is reduced by up to half at random, so that requests
    that failed together do not return together.

    Raises:
      RequestError: The last attempt has failed, or an error will not pass.
    """
    for number in range(connection.attempts):
        try:
            async with asyncio.timeout(connection.timeout):
                return await attempt()
        except TimeoutError:
            error = RequestError("timeout", f"no answer within {connection.timeout:g} s")
        except RequestError as problem:
            error = problem
        if not error.retry or number + 1 == connection.attempts:
            raise error
        delay = max(connection.backoff * 2**number, error.retry_after or 0)
        on_retry()
        await asyncio.sleep(min(delay, connection.max_backoff) * random.uniform(0.5, 1))
    raise AssertionError("attempts is positive")

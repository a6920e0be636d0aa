"""An asynchronous client that asks one model, usable from synchronous code and several threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any

from mmjax.diagnostic_text.prompt import Parts
from mmjax.diagnostic_text.vlm import http
from mmjax.diagnostic_text.vlm.apis import APIS, Reply
from mmjax.diagnostic_text.vlm.settings import Connection, Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A request to the model.

    Attributes:
      parts: Texts and PNG images.
      sampling: How to sample the answer.
      schema: JSON schema of the answer; None for free text.
    """

    parts: Parts
    sampling: Sampling
    schema: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
      text: The text, not stripped.
      seconds: Time of the successful attempt, including the server's queue.
      input_tokens: Tokens of the prompt; None if the server does not report them.
      output_tokens: Tokens of the answer; None if the server does not report them.
    """

    text: str
    seconds: float
    input_tokens: int | None = None
    output_tokens: int | None = None


class VlmClient:
    """Asks a model with bounded concurrency. All threads share the bound.

    Args:
      url: Base URL; see `settings.server_url`.
      api: 'ollama' or 'openai'.
      model: Name of the model.
      connection: Limits.
      stream: Whether answers arrive in parts.
    """

    def __init__(
        self, url: str, api: str, model: str, connection: Connection, *, stream: bool = False
    ):
        self._api, self._model, self._stream = APIS[api], model, stream
        self._connection = connection
        self._retries = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vlm", daemon=True)
        self._thread.start()
        self._http = http.make_client(url, connection)
        self._free = asyncio.Semaphore(connection.concurrency)

    def submit(self, question: Question) -> concurrent.futures.Future[Answer]:
        """Sends a question as soon as the bound allows, and returns its pending answer.

        The result of the future is an `Answer`, or raises `RequestError`.
        """
        return asyncio.run_coroutine_threadsafe(self._ask(question), self._loop)

    def load(self) -> None:
        """Makes the server load the model, if its API can.

        Raises:
          RequestError: It failed.
        """
        body = self._api.load(self._model)
        if body is not None:
            self._run(
                self._retried(lambda: http.read_json(self._http, "POST", self._api.chat, body))
            )

    def take_retries(self) -> int:
        """Returns the number of repeated attempts since the last call."""
        retries, self._retries = self._retries, 0
        return retries

    def close(self) -> None:
        """Closes connections. Questions in progress fail."""
        if self._loop.is_closed():
            return
        self._run(self._shut_down())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _ask(self, question: Question) -> Answer:
        async with self._free:
            options = dict(stream=self._stream, schema=question.schema)
            body = self._api.request(self._model, question.parts, question.sampling, **options)
            return await self._retried(lambda: self._attempt(body))

    def _retried(self, attempt: Any) -> Any:
        return http.with_retries(attempt, self._connection, self._count_retry)

    def _count_retry(self) -> None:
        self._retries += 1

    async def _attempt(self, body: Mapping[str, Any]) -> Answer:
        start = time.perf_counter()
        path = self._api.chat
        reply = Reply()
        try:
            if self._stream:
                lines = http.lines(self._http, "POST", path, body)
                async with contextlib.aclosing(lines):
                    async for line in lines:
                        if (text := self._api.stream_value(line)) is not None:
                            value = http.parse(text, path)
                            if "error" in value:
                                raise http.RequestError("status", f"{path}: {value['error']}")
                            reply.extend(self._api.reply(value))
            else:
                reply = self._api.reply(await http.read_json(self._http, "POST", path, body))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            message = f"{path}: the answer has an unexpected form ({error})"
            raise http.RequestError("malformed", message) from error
        if not reply.done:
            raise http.RequestError("malformed", f"{path}: the answer is incomplete")
        seconds = time.perf_counter() - start
        return Answer(reply.text, seconds, reply.input_tokens, reply.output_tokens)

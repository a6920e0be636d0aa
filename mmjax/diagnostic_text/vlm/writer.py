"""Diagnostic text by a vision-language model on a server."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Literal

from absl import logging

from mmjax.diagnostic_text.answers import AnswerStore, question_key
from mmjax.diagnostic_text.examples import DRAWN, load_examples
from mmjax.diagnostic_text.pairs import Pair
from mmjax.diagnostic_text.prompt import BUILT_IN, Parts, Prompt
from mmjax.diagnostic_text.prompt_images import comparison_images, encode_png
from mmjax.diagnostic_text.validation import Check, clean, problem
from mmjax.diagnostic_text.vlm.apis import APIS
from mmjax.diagnostic_text.vlm.client import Answer, Question, VlmClient
from mmjax.diagnostic_text.vlm.http import RequestError
from mmjax.diagnostic_text.vlm.servers import inspect
from mmjax.diagnostic_text.vlm.settings import Connection, Sampling
from mmjax.diagnostic_text.writer import Failure, FailureLimitError, Text, Writer
from mmjax.errors import UserError

_REPEATS = 2  # further questions to a model whose answer is not usable
_MESSAGES = {
    "empty": "the answer is empty",
    "class": "the answer does not name the class",
    "language": "the answer is not in English",
}


class VlmWriter(Writer):
    """Asks a model about each pair; see docs/segment.md for how to start a server.

    Args:
      url: Address of the server, for example http://localhost:11434.
      model: Name of the model, for example 'gemma3:12b-it-qat'.
      api: 'ollama', 'openai', or 'auto' to find out.
      connection: Limits; see `Connection`.
      sampling: Options of the model; see `Sampling`.
      stream: Whether answers arrive in parts.
      prompt: JSON file of prompt modules; see `prompt.Prompt`.
      variations: {module: variation} that replace 'default'.
      examples: Worked examples; see `examples.load_examples`.
      alpha: Opacity of the masks over the scene.
      store: File of answers that are used again (`answers.AnswerStore`); '' keeps none.
      checks: What an answer must fulfill, besides not being empty: name the class, be in English.
      invalid: What happens to an answer that fails a check: 'drop' the pair; 'ask_again' up to
        twice with another seed, then drop it; or 'keep' the answer.
      failure_limit: Number of pairs in a row without a text after which training stops.

    Raises:
      UserError: A setting, the prompt, an example or the store is not valid.
    """

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api: Literal["auto", "ollama", "openai"] = "auto",
        connection: Connection = Connection(),
        sampling: Sampling = Sampling(),
        stream: bool = False,
        prompt: str = BUILT_IN,
        variations: Mapping[str, str] | None = None,
        examples: str = DRAWN,
        alpha: float = 0.6,
        store: str = "",
        checks: tuple[Check, ...] = ("class", "english"),
        invalid: Literal["drop", "ask_again", "keep"] = "drop",
        failure_limit: int = 50,
    ):
        if failure_limit < 1:
            raise UserError(f"vlm: failure_limit must be at least 1; got {failure_limit}.")
        self._url, self._model, self._api = url, model, api
        self._connection, self._sampling, self._stream = connection, sampling, stream
        self._prompt = Prompt(prompt, variations, load_examples(examples, alpha=alpha))
        self._alpha, self._checks, self._invalid = alpha, checks, invalid
        self._store = AnswerStore(store) if store else None
        self._failure_limit, self._failures_in_a_row = failure_limit, 0
        self._client: VlmClient | None = None
        self._lock, self._preparing = threading.Lock(), threading.Lock()
        self._counts: Counter[str] = Counter()

    def prepare(self) -> None:
        """Checks the server and its model, and loads the model; does nothing the second time.

        Raises:
          UserError: The server is unreachable, lacks the model or cannot load it.
        """
        with self._preparing:
            if self._client is None:
                self._client = self._connect()

    def _connect(self) -> VlmClient:
        server = inspect(self._url, self._api, self._connection)
        name = server.find(self._model).name
        APIS[server.api].request(name, (), self._sampling)  # checks the options of sampling
        client = VlmClient(server.url, server.api, name, self._connection, stream=self._stream)
        try:
            client.load()
        except RequestError as error:
            client.close()
            raise UserError(
                f"{server.url} cannot load the model {name!r}: {error}. See the log of the server."
            ) from error
        logging.info("Diagnostic text: %s at %s (%s).", name, server.url, server.api)
        return client

    def write(self, pairs: Sequence[Pair]) -> list[Text | Failure]:
        """Returns the result of each pair; see `Writer.write`."""
        self.prepare()
        results: dict[int, Text | Failure] = {}
        waiting = dict(enumerate(pairs))
        for repeat in range(1 + (_REPEATS if self._invalid == "ask_again" else 0)):
            sampling = self._sampling
            if repeat:
                sampling = dataclasses.replace(sampling, seed=(sampling.seed or 0) + repeat)
            answers = self._answers(list(waiting.values()), sampling)
            for (index, pair), answer in zip(waiting.items(), answers, strict=True):
                results[index] = self._result(pair, answer)
            invalid = [i for i in waiting if getattr(results[i], "reason", "") in _MESSAGES]
            waiting = {index: pairs[index] for index in invalid}
        ordered = [results[index] for index in range(len(pairs))]
        self._count(ordered)
        return ordered

    def _parts(self, pair: Pair) -> Parts:
        images = map(encode_png, comparison_images(pair, self._alpha))
        return self._prompt.build(pair.class_name, *images)

    def _answers(self, pairs: Sequence[Pair], sampling: Sampling) -> list[str | RequestError]:
        """Returns answers from the store or the model; new ones are stored."""
        keys: list[str] = []
        known: dict[str, str | RequestError] = {}
        pending: dict[str, tuple[Pair, Future[Answer]]] = {}
        for pair in pairs:  # the first questions are on their way while others are prepared
            parts = self._parts(pair)
            key = question_key(self._model, sampling.values(), parts)
            keys.append(key)
            if self._store is not None and (stored := self._store.get(key)) is not None:
                known[key] = stored
            elif key not in pending:  # the same image can occur twice
                question = Question(parts=parts, sampling=sampling)
                pending[key] = (pair, self._client.submit(question))
        hits = sum(key in known for key in keys)
        for key, (pair, future) in pending.items():
            known[key] = self._wait(key, pair, future)
        with self._lock:
            self._counts["store_hits"] += hits
            self._counts["retries"] += self._client.take_retries()
        return [known[key] for key in keys]

    def _wait(self, key: str, pair: Pair, future: Future[Answer]) -> str | RequestError:
        try:
            answer = future.result()
        except RequestError as error:
            return error
        except CancelledError:
            return RequestError("connection", "the client was closed")
        with self._lock:
            self._counts["answers"] += 1
            self._counts["seconds"] += answer.seconds
            self._counts["tokens"] += answer.output_tokens or 0
        # An empty answer may be a passing problem of the server.
        if self._store is not None and clean(answer.text):
            self._store.put(key, answer.text, pair=pair.key, model=self._model)
        return answer.text

    def _result(self, pair: Pair, answer: str | RequestError) -> Text | Failure:
        if isinstance(answer, RequestError):
            return Failure(pair.key, answer.reason, str(answer))
        text = clean(answer)
        reason = problem(text, pair.class_name, self._checks)
        if reason is None or (reason != "empty" and self._invalid == "keep"):
            return Text(pair.key, text)
        message = f"{_MESSAGES[reason]} {pair.class_name!r}" if reason == "class" else ""
        return Failure(pair.key, reason, f"{message or _MESSAGES[reason]}: {text[:80]!r}")

    def _count(self, results: Sequence[Text | Failure]) -> None:
        """Counts failures, logs the first of them, and applies the limit.

        Raises:
          FailureLimitError: Too many pairs in a row have failed.
        """
        failures = [result for result in results if isinstance(result, Failure)]
        with self._lock:
            for result in results:
                failed = isinstance(result, Failure)
                self._failures_in_a_row = self._failures_in_a_row + 1 if failed else 0
            in_a_row = self._failures_in_a_row
            self._counts["pairs"] += len(results)
            self._counts["failures"] += len(failures)
        if not failures:
            return
        first = f"{failures[0].key}: {failures[0].message}"
        logging.warning("%d of %d pairs got no text; %s", len(failures), len(results), first)
        if in_a_row >= self._failure_limit:
            raise FailureLimitError(
                f"The last {in_a_row} pairs got no text from {self._url}; the limit is "
                f"failure_limit={self._failure_limit}. The first problem of the last step: {first}."
                f" Check the server with `mmjax vlm check --url {self._url} --model {self._model}`,"
                " then resume the run."
            )

    def metrics(self) -> dict[str, float]:
        """Returns counts and means since the last call.

        Names: pairs, failures, retries and store_hits as counts; latency_seconds and output_tokens
        per answer of the server, if there are any.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        names = ("pairs", "failures", "retries", "store_hits")
        result = {name: float(counts[name]) for name in names}
        if counts["answers"]:
            result["latency_seconds"] = counts["seconds"] / counts["answers"]
            result["output_tokens"] = counts["tokens"] / counts["answers"]
        return result

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

"""A model on a server that judges texts; see `mmjax.diagnostic_text.study`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import logging

from mmjax.diagnostic_text.answers import AnswerStore, question_key
from mmjax.diagnostic_text.study import SCHEMA, parse_judgment
from mmjax.diagnostic_text.vlm.client import Question, VlmClient
from mmjax.diagnostic_text.vlm.http import RequestError
from mmjax.diagnostic_text.vlm.servers import inspect
from mmjax.diagnostic_text.vlm.settings import Connection, Sampling


class Judge:
    """A context manager that asks questions without images.

    Args:
      url: Address of the server.
      model: Name of the model.
      store: File of answers that are used again; see `AnswerStore`.
      connection: Limits.

    Raises:
      UserError: The server is unreachable or lacks the model, or the store is not valid.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        store: str | os.PathLike,
        connection: Connection = Connection(),
    ):
        server = inspect(url, "auto", connection)
        self._model, self._sampling = server.find(model).name, Sampling(temperature=0.0)
        self._store = AnswerStore(store)
        self._client = VlmClient(server.url, server.api, self._model, connection)

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, questions: Sequence[str]) -> list[str | None]:
        """Returns the answer to each question; None if there is none. Judgments are stored."""
        keys = [question_key(self._model, self._sampling.values(), (text,)) for text in questions]
        pending = {}
        for key, text in zip(keys, questions, strict=True):
            if self._store.get(key) is None and key not in pending:
                question = Question(parts=(text,), sampling=self._sampling, schema=SCHEMA)
                pending[key] = self._client.submit(question)
        answers: dict[str, str | None] = {}
        for key, future in pending.items():
            try:
                answers[key] = future.result().text
            except RequestError as error:
                logging.warning("A question to the judge failed: %s", error)
                answers[key] = None
                continue
            if parse_judgment(answers[key]) is None:
                logging.warning("The judge gave no judgment: %r", answers[key][:80])
            else:
                self._store.put(key, answers[key], model=self._model)
        return [self._store.get(key) or answers.get(key) for key in keys]

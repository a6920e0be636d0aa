"""A store of answers on disk, so that no question is asked twice, in this run or a later one.

The file has one JSON object per line and only grows. Several processes may append to it. The last
line may be incomplete after a crash; it is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax import files
from mmjax.errors import UserError


def question_key(model: str, options: Mapping[str, Any], parts: Sequence[str | bytes]) -> str:
    """Returns the key of a question: a digest of the model, its options, the text and the images.

    Args:
      model: Name of the model, with its tag.
      options: Everything else that determines the answer, as JSON values.
      parts: Texts and PNG images in order.
    """
    digest = hashlib.sha256()
    header = json.dumps([model, options], sort_keys=True, ensure_ascii=True)
    for part in (header, *parts):
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%s%d:" % (b"t" if isinstance(part, str) else b"i", len(data)) + data)
    return digest.hexdigest()


class AnswerStore:
    """Answers by question.

    Args:
      path: The file. It and its directory are created at the first answer.

    Raises:
      UserError: The file exists but is not such a store.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        self._lock = threading.Lock()
        self._answers: dict[str, str] = self._read() if self._path.exists() else {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> str | None:
        """Returns the answer to a question, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: str, **details: Any) -> None:
        """Stores an answer.

        Args:
          key: See `question_key`.
          answer: The answer.
          **details: JSON values for people who read the file, such as the pair and the model.
        """
        line = json.dumps({"question": key, "answer": answer, **details}) + "\n"
        with self._lock:
            self._answers[key] = answer
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                # After a crash the last line may lack its end.
                if file.tell() and not self._ends_with_newline():
                    line = "\n" + line
                file.write(line.encode())

    def _ends_with_newline(self) -> bool:
        with open(self._path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _read(self) -> dict[str, str]:
        answers, bad = {}, 0
        text = self._path.read_bytes().decode("utf-8", "replace")
        lines = [line for line in text.split("\n") if line.strip()]
        for line in lines:
            try:
                value = files.parse_json(line, str(self._path))
                answers[value["question"]] = str(value["answer"])
            except (UserError, KeyError, TypeError):
                bad += 1
        if lines and not answers:
            raise UserError(
                f"{self._path} is not a store of answers: none of its {bad} lines is a JSON object "
                "with `question` and `answer`. Pass another file, or delete it."
            )
        return answers

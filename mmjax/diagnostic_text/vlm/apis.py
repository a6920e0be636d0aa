"""The two APIs: requests and answers of Ollama and of OpenAI-compatible servers as JSON."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mmjax.diagnostic_text.prompt import IMAGE, Parts
from mmjax.diagnostic_text.vlm.settings import Sampling
from mmjax.errors import UserError


@dataclasses.dataclass
class Reply:
    """An answer of a model, or the part of a streamed one that has arrived.

    Attributes:
      text: The text.
      done: Whether the answer is complete.
      input_tokens: Tokens of the prompt, if the server reports them.
      output_tokens: Tokens of the answer, if the server reports them.
    """

    text: str = ""
    done: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None

    def extend(self, other: Reply) -> None:
        """Appends the next part."""
        self.text += other.text
        self.done |= other.done
        self.input_tokens = other.input_tokens or self.input_tokens
        self.output_tokens = other.output_tokens or self.output_tokens


def flatten(parts: Parts) -> tuple[str, list[str]]:
    """Returns `(text with a marker [img] per image, images in base64)`.

    A newline follows each marker, except before another marker and at the end.
    """
    text = "".join(part if isinstance(part, str) else IMAGE for part in parts)
    marker = re.escape(IMAGE)
    text = re.sub(rf"{marker}(?!{marker}|\n?\Z)", f"{IMAGE}\n", text)
    return text, [_base64(part) for part in parts if isinstance(part, bytes)]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Ollama:
    """Ollama's own API, https://github.com/ollama/ollama/blob/main/docs/api.md."""

    name = "ollama"
    chat = "/api/chat"
    _OPTIONS = {"max_tokens": "num_predict", "context_size": "num_ctx"}

    def request(
        self,
        model: str,
        parts: Parts,
        sampling: Sampling,
        *,
        stream: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns the body of a chat request.

        Args:
          model: Name of the model.
          parts: Texts and PNG images.
          sampling: Options.
          stream: Whether the answer arrives in parts.
          schema: JSON schema of the answer.
        """
        text, images = flatten(parts)
        message = {"role": "user", "content": text} | ({"images": images} if images else {})
        options = {self._OPTIONS.get(key, key): value for key, value in sampling.values().items()}
        body = {"model": model, "messages": [message], "stream": stream, "options": options}
        return body | ({"format": dict(schema)} if schema else {})

    def load(self, model: str) -> dict[str, Any]:
        """Returns the body of a chat request that only loads the model."""
        return {"model": model, "messages": [], "stream": False}

    def reply(self, value: Any) -> Reply:
        """Returns the answer, or one part of a streamed one.

        Raises:
          KeyError, TypeError: The object has another form.
        """
        return Reply(
            text=_text(value["message"].get("content")),
            done=bool(value["done"]),
            input_tokens=value.get("prompt_eval_count"),
            output_tokens=value.get("eval_count"),
        )

    def stream_value(self, line: str) -> str | None:
        """Returns the JSON text of one line of a streamed answer; None for other lines."""
        return line or None


class OpenAi:
    """Chat completions, as vLLM, llama.cpp, LM Studio and Ollama offer them."""

    name = "openai"
    chat = "/v1/chat/completions"
    # vLLM and llama.cpp accept top_k, min_p and repeat_penalty; other servers may reject them.
    _UNSUPPORTED = ("context_size", "repeat_last_n")

    def request(
        self,
        model: str,
        parts: Parts,
        sampling: Sampling,
        *,
        stream: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Returns the body of a chat request; see `Ollama.request`.

        Raises:
          UserError: An option of `sampling` that this API does not have is set.
        """
        content: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                url = f"data:image/png;base64,{_base64(part)}"
                content.append({"type": "image_url", "image_url": {"url": url}})
        options = sampling.values()
        for key in self._UNSUPPORTED:
            if key in options:
                raise UserError(
                    f"sampling.{key}={options[key]} is an option of Ollama, not of "
                    "OpenAI-compatible servers. Remove it, and set it when you start the server."
                )
        messages = [{"role": "user", "content": content}]
        body = {"model": model, "messages": messages, "stream": stream, **options}
        if stream:
            body["stream_options"] = {"include_usage": True}
        if schema:
            named = {"name": "answer", "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def load(self, model: str) -> None:
        """Returns None: these servers load their model when they start."""
        return None

    def reply(self, value: Any) -> Reply:
        """Returns the answer, or one part of a streamed one; see `Ollama.reply`."""
        usage = value.get("usage") or {}
        reply = Reply(
            input_tokens=usage.get("prompt_tokens"), output_tokens=usage.get("completion_tokens")
        )
        if value["choices"]:  # the last part of a stream has only the usage
            choice = value["choices"][0]
            message = choice["delta"] if "delta" in choice else choice["message"]
            reply.text, reply.done = _text(message.get("content")), bool(choice["finish_reason"])
        return reply

    def stream_value(self, line: str) -> str | None:
        """Returns the JSON text of one line of a streamed answer; None for other lines."""
        data = line.removeprefix("data:").strip()
        return data if line.startswith("data:") and data != "[DONE]" else None


def _text(content: Any) -> str:
    """Returns the content of a message, which may be null."""
    if not isinstance(content, str | None):
        raise TypeError(f"content is {type(content).__name__}")
    return content or ""


APIS: dict[str, Ollama | OpenAi] = {"ollama": Ollama(), "openai": OpenAi()}

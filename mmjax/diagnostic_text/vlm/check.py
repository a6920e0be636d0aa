"""`mmjax vlm check`: what a server offers, and one question to a model."""

from __future__ import annotations

import dataclasses

from mmjax.diagnostic_text.examples import drawn_pair
from mmjax.diagnostic_text.vlm.servers import Server
from mmjax.diagnostic_text.vlm.settings import Connection
from mmjax.diagnostic_text.vlm.writer import VlmWriter
from mmjax.diagnostic_text.writer import Failure, Text


def describe_server(server: Server) -> str:
    """Returns the API, version and models of a server, one line each."""
    version = f" {server.version}" if server.version else ""
    name = "Ollama" if server.api == "ollama" else "an OpenAI-compatible server"
    lines = [f"{server.url} is {name}{version} with {len(server.models)} models:"]
    for model in server.models:
        size = f"  {model.size / 1e9:.1f} GB" if model.size else ""
        loaded = "" if model.loaded is None else f", loaded ({model.loaded / 1e9:.1f} GB on GPU)"
        lines.append(f"  {model.name}{size}{loaded}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of one question.

    Attributes:
      result: The text, or why there is none.
      seconds: Time of the answer.
    """

    result: Text | Failure
    seconds: float


def try_model(
    url: str, model: str, api: str = "auto", connection: Connection | None = None
) -> Trial:
    """Asks a model about a drawn pair, with the built-in prompt.

    Raises:
      UserError: The server is unreachable or does not have the model.
    """
    writer = VlmWriter(url=url, model=model, api=api, connection=connection or Connection())
    try:
        writer.prepare()
        (result,) = writer.write([drawn_pair()])
        return Trial(result, writer.metrics().get("latency_seconds", 0.0))
    finally:
        writer.close()

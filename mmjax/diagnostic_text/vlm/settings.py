"""Settings of a client: sampling, limits, and the address of the server."""

from __future__ import annotations

import dataclasses
import os
import urllib.parse

from mmjax.errors import UserError

API_KEY_VARIABLE = "MMJAX_VLM_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the model samples an answer. None leaves an option to the server.

    Attributes:
      seed: Seed.
      temperature: Temperature; 0 is deterministic.
      max_tokens: Maximum length of the answer.
      top_k: Number of most probable tokens to sample from.
      top_p: Probability mass to sample from.
      min_p: Minimum probability, relative to the most probable token.
      repeat_penalty: Penalty of repeated tokens.
      repeat_last_n: Number of tokens that the penalty looks back (Ollama).
      context_size: Size of the context in tokens (Ollama).
      stop: Texts that end the answer.
    """

    seed: int | None = 42
    temperature: float | None = 0.1
    max_tokens: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    context_size: int | None = None
    stop: tuple[str, ...] | None = None

    def values(self) -> dict[str, object]:
        """Returns the options that are set."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
    """Limits of the communication.

    Attributes:
      concurrency: Requests at the same time. More than the server works on in parallel
        (OLLAMA_NUM_PARALLEL) wait in its queue.
      connect_timeout: Seconds to wait for a connection.
      timeout: Seconds to wait for a complete answer, including the server's queue.
      attempts: Number of attempts per request.
      backoff: Seconds before the second attempt; doubled for each further one.
      max_backoff: Maximum seconds between attempts.
    """

    concurrency: int = 4
    connect_timeout: float = 10.0
    timeout: float = 180.0
    attempts: int = 4
    backoff: float = 1.0
    max_backoff: float = 30.0

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            least = 1 if key in ("concurrency", "attempts") else 0
            if value < least or (not value and "timeout" in key):
                raise UserError(f"connection.{key} must be positive; got {value}.")


def server_url(url: str) -> tuple[str, str]:
    """Returns `(base URL without a path /v1, API)`; the API is 'openai' or 'auto'.

    Args:
      url: Address of a server, for example localhost:11434 or http://host:8000/v1.

    Raises:
      UserError: It is not an HTTP address.
    """
    full = url if "://" in url else f"http://{url}"
    parts = urllib.parse.urlsplit(full)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise UserError(
            f"url={url!r} is not the address of a server; expected one such as "
            "http://localhost:11434 (Ollama) or http://localhost:8000/v1 (OpenAI-compatible)."
        )
    base = full.rstrip("/")
    if base.endswith("/v1"):
        return base.removesuffix("/v1"), "openai"
    return base, "auto"


def api_key() -> str | None:
    """Returns the key for servers that need one, from $MMJAX_VLM_API_KEY.

    It is not part of the config, which is saved with every run.
    """
    return os.environ.get(API_KEY_VARIABLE) or None

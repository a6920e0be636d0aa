"""What a server offers: its API, version and models; the check before training; pulling models."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import difflib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

from mmjax.diagnostic_text.vlm import http
from mmjax.diagnostic_text.vlm.settings import Connection, server_url
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a server.

    Attributes:
      name: Its name, with a tag for Ollama.
      size: Bytes on disk; 0 if unknown.
      loaded: Bytes in GPU memory; None if it is not loaded or unknown.
    """

    name: str
    size: int = 0
    loaded: int | None = None


@dataclasses.dataclass(frozen=True)
class Server:
    """A reachable server.

    Attributes:
      url: Its base URL.
      api: 'ollama' or 'openai'.
      version: Version of Ollama; '' for others.
      models: Its models, by name.
    """

    url: str
    api: str
    version: str
    models: tuple[Model, ...]

    def find(self, name: str) -> Model:
        """Returns a model; the tag ':latest' may be omitted.

        Raises:
          UserError: The server does not have it. The message lists its models.
        """
        by_name = {model.name: model for model in self.models}
        if name not in by_name and self.api == "ollama" and ":" not in name.rpartition("/")[2]:
            name = f"{name}:latest"
        if name in by_name:
            return by_name[name]
        near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        advice = (
            f"Choose one of them, or run: mmjax vlm pull --url {self.url} --model {name}"
            if self.api == "ollama"
            else "Choose one of them, or start the server with this model."
        )
        raise UserError(
            f"{self.url} has no model {name!r}.{hint} It has: {', '.join(by_name) or 'none'}. "
            f"{advice}"
        )


def inspect(url: str, api: str = "auto", connection: Connection | None = None) -> Server:
    """Returns what a server offers.

    Args:
      url: Its address.
      api: 'ollama', 'openai', or 'auto' to try both.
      connection: Limits; by default those of `Connection`.

    Raises:
      UserError: The server is unreachable, or speaks neither API.
    """
    base, found = server_url(url)
    api = found if api == "auto" else api
    connection = connection or Connection()

    async def run(client: httpx.AsyncClient) -> Server:
        return await _inspect(client, base, api, connection)

    return _call(base, connection, run)


def pull(url: str, model: str, progress: Callable[[str, int, int], None]) -> None:
    """Makes an Ollama server download a model.

    Args:
      url: Its address.
      model: Name of the model.
      progress: Called with the status, and the completed and total bytes (0 if unknown).

    Raises:
      UserError: The server is unreachable, or the download failed.
    """
    base, _ = server_url(url)

    async def run(client: httpx.AsyncClient) -> None:
        path, status = "/api/pull", ""
        lines = http.lines(client, "POST", path, {"model": model, "stream": True})
        async with contextlib.aclosing(lines):
            async for value in _objects(lines, path):
                if "error" in value:
                    raise UserError(f"{base} cannot pull {model!r}: {value['error']}.")
                status = str(value.get("status", status))
                progress(status, int(value.get("completed", 0)), int(value.get("total", 0)))
        if status != "success":
            raise UserError(
                f"{base} stopped pulling {model!r} after {status!r}. Run the command again; it "
                "continues where it stopped."
            )

    # Verifying a large model takes minutes without any message.
    _call(base, Connection(timeout=3600.0), run)


async def _objects(lines: AsyncIterator[str], path: str) -> AsyncIterator[dict[str, Any]]:
    """Yields the JSON objects of lines."""
    async for line in lines:
        if isinstance(value := http.parse(line or "{}", path), dict):
            yield value


def _call(
    url: str, connection: Connection, function: Callable[[httpx.AsyncClient], Awaitable[Any]]
) -> Any:
    """Returns the result of a coroutine on a client of its own; its errors become UserErrors."""

    async def run() -> Any:
        async with http.make_client(url, connection) as client:
            return await function(client)

    try:
        return asyncio.run(run())
    except http.RequestError as error:
        if error.reason not in ("connection", "timeout"):
            raise UserError(f"{url}: {error}.") from error
        raise UserError(
            f"The server {url} is unreachable ({error}). Start it (for Ollama: `ollama serve`), "
            "correct the address, or use the describer, which needs no server."
        ) from error


async def _inspect(client: httpx.AsyncClient, url: str, api: str, connection: Connection) -> Server:
    async def get(path: str) -> Any:
        attempt = lambda: http.read_json(client, "GET", path)  # noqa: E731
        return await http.with_retries(attempt, quick, lambda: None)

    # A server that is down must be reported soon; one that is starting gets a second chance.
    quick = dataclasses.replace(connection, attempts=min(2, connection.attempts))
    if api in ("auto", "ollama"):
        try:
            version = str((await get("/api/version"))["version"])
            return Server(url, "ollama", version, await _ollama_models(get))
        except http.RequestError as error:
            if api == "ollama" or error.reason in ("connection", "timeout"):
                raise
        except (KeyError, TypeError) as error:
            if api == "ollama":
                raise _unexpected(url, "an Ollama server") from error
    try:
        names = [str(model["id"]) for model in (await get("/v1/models"))["data"]]
    except (KeyError, TypeError) as error:
        raise _unexpected(url, "an OpenAI-compatible server") from error
    return Server(url, "openai", "", tuple(Model(name) for name in sorted(names)))


def _unexpected(url: str, expected: str) -> UserError:
    return UserError(
        f"{url} answers, but not as {expected} does. Check the address and the option api."
    )


async def _ollama_models(get: Callable[[str], Awaitable[Any]]) -> tuple[Model, ...]:
    loaded = {m["name"]: int(m.get("size_vram", 0)) for m in (await get("/api/ps"))["models"]}
    models = [
        Model(str(m["name"]), int(m.get("size", 0)), loaded.get(m["name"]))
        for m in (await get("/api/tags"))["models"]
    ]
    return tuple(sorted(models, key=lambda model: model.name))

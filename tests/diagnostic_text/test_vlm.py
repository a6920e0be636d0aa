"""The client and its writer against a real HTTP server with faults."""

import dataclasses
import json
import socket
import time

import pytest

from mmjax.diagnostic_text.answers import AnswerStore
from mmjax.diagnostic_text.vlm import servers
from mmjax.diagnostic_text.vlm.http import RequestError
from mmjax.diagnostic_text.vlm.settings import Connection, Sampling, server_url
from mmjax.diagnostic_text.vlm.writer import VlmWriter
from mmjax.diagnostic_text.writer import Failure, FailureLimitError, Text, build
from mmjax.errors import UserError
from mmjax.tools import cli
from tests.diagnostic_text.masks import box, disk, pair
from tests.messages import assert_mentions, raises
from tests.vlm_server import MODELS, VlmServer

FAST = Connection(backoff=0.001, timeout=10.0, attempts=3)
MODEL = "qwen2.5vl:7b-q4_K_M"
APIS = ("ollama", "openai")


def pairs(count):
    """Pairs with the same masks but different images."""
    truth = disk(112, 112, 40, side=224)
    result = []
    for index in range(count):
        one = pair(truth, truth & box(0, 112, 0, 224, side=224), key=f"{index}-8")
        one.scene[0, 0] = 10 * index  # visible in the darkened overlay
        result.append(one)
    return result


@pytest.fixture
def server():
    with VlmServer() as server:
        yield server


@pytest.fixture
def make(server):
    """Returns a function that makes a prepared writer."""
    writers = []

    def make(**options):
        section = dict(url=server.url, model=MODEL, connection=FAST, examples="") | options
        writers.append(VlmWriter(**section))
        writers[-1].prepare()
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_texts_and_metrics(server, make, api, stream):
    writer = make(api=api, stream=stream, examples="drawn")
    results = writer.write(pairs(3))
    assert [type(result) for result in results] == [Text] * 3
    assert [result.key for result in results] == ["0-8", "1-8", "2-8"]
    assert_mentions(results[0].text, "CAT", "bottom")
    metrics = writer.metrics()
    assert (metrics["pairs"], metrics["failures"], metrics["output_tokens"]) == (3, 0, 42)
    assert metrics["latency_seconds"] > 0 and writer.metrics()["pairs"] == 0


def test_request_of_ollama(server, make):
    make(examples="drawn", sampling=Sampling(max_tokens=99, context_size=8192)).write(pairs(1))
    (body,) = server.bodies
    assert body["model"] == MODEL and body["stream"] is False
    assert body["options"] == dict(seed=42, temperature=0.1, num_predict=99, num_ctx=8192)
    assert len(body["messages"][0]["images"]) == 4
    assert not {"format", "tools", "keep_alive"} & set(body)


def test_request_of_openai(server, make, monkeypatch):
    monkeypatch.setenv("MMJAX_VLM_API_KEY", "secret")
    make(api="openai", sampling=Sampling(max_tokens=99, stop=("\n\n",))).write(pairs(1))
    (body,) = server.bodies
    assert {key: body[key] for key in ("seed", "temperature", "max_tokens", "stop")} == dict(
        seed=42, temperature=0.1, max_tokens=99, stop=["\n\n"]
    )
    types = [part["type"] for part in body["messages"][0]["content"]]
    assert types == ["text", "image_url", "text", "image_url", "text"]
    assert server.headers[0]["Authorization"] == "Bearer secret"
    with raises(UserError, "sampling.context_size", 8192):
        make(api="openai", sampling=Sampling(context_size=8192))


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fault", ["429", "500", "502", "503", "504", "malformed", "truncated", "incomplete", "drop"]
)
def test_passing_faults_are_retried(server, make, api, fault):
    writer = make(api=api, stream=fault in ("incomplete", "truncated"))
    server.inject(fault, times=2)
    (result,) = writer.write(pairs(1))
    assert isinstance(result, Text) and writer.metrics()["retries"] == 2


@pytest.mark.parametrize(
    ("fault", "reason", "requests", "facts"),
    [
        ("503", "status", 3, ["503", "server busy"]),
        ("400", "status", 1, ["400"]),
        ("404", "status", 1, ["404"]),
        ("401", "status", 1, ["401", "MMJAX_VLM_API_KEY"]),
        ("malformed", "malformed", 3, ["Bad Gateway"]),
        ("drop", "connection", 3, ["/api/chat"]),
        ("empty", "empty", 1, []),
        ("wrong_class", "class", 1, ["CAT", "PLATYPUS"]),
        ("language", "language", 1, ["fehlt"]),
    ],
)
def test_a_failure_concerns_only_its_pair(server, make, fault, reason, requests, facts):
    writer = make(connection=dataclasses.replace(FAST, concurrency=1))
    server.inject(fault, times=requests)
    first, second = writer.write(pairs(2))
    assert isinstance(first, Failure) and isinstance(second, Text)
    assert (first.key, first.reason, len(server.bodies)) == ("0-8", reason, requests + 1)
    assert_mentions(first.message, *facts)
    assert writer.metrics()["failures"] == 1


def test_slow_answers_time_out(server, make):
    server.slow_seconds = 5
    server.inject("slow", times=-1)
    writer = make(connection=Connection(timeout=0.1, attempts=2, backoff=0.001))
    start = time.perf_counter()
    (result,) = writer.write(pairs(1))
    assert result.reason == "timeout" and time.perf_counter() - start < 3


def test_concurrency_is_bounded_over_threads(server, make):
    server.latency = 0.05
    writer = make(connection=dataclasses.replace(FAST, concurrency=3))
    start = time.perf_counter()
    assert all(isinstance(result, Text) for result in writer.write(pairs(9)))
    assert server.peak == 3 and time.perf_counter() - start >= 0.15


def test_invalid_answers_are_asked_again_or_kept(server, make):
    writer = make(invalid="ask_again", connection=dataclasses.replace(FAST, concurrency=1))
    server.inject("wrong_class", times=2)
    first, second = writer.write(pairs(2))
    assert isinstance(first, Text) and isinstance(second, Text)
    assert [body["options"]["seed"] for body in server.bodies] == [42, 42, 43, 43]
    server.inject("language", times=3)
    (result,) = writer.write(pairs(1))
    assert result.reason == "language" and len(server.bodies) == 7
    keeping = make(invalid="keep")
    server.inject("wrong_class")
    assert_mentions(keeping.write(pairs(1))[0].text, "PLATYPUS")
    server.inject("empty")
    assert keeping.write(pairs(1))[0].reason == "empty"
    server.inject("language")
    assert isinstance(make(checks=("class",)).write(pairs(1))[0], Text)


def test_equal_questions_are_asked_once_and_answers_are_stored(server, make, tmp_path):
    store = str(tmp_path / "answers.jsonl")
    one = pairs(1)[0]
    server.inject("empty")
    assert isinstance(make(store=store).write([one])[0], Failure)
    writer = make(store=store)
    results = writer.write([one, dataclasses.replace(one, key="same-8")])
    assert [result.key for result in results] == ["0-8", "same-8"] and len(server.bodies) == 2
    assert len(AnswerStore(store)) == 1
    again = make(store=store)
    assert again.write([one]) == results[:1] and len(server.bodies) == 2
    assert again.metrics()["store_hits"] == 1
    make(store=store, sampling=Sampling(seed=7)).write([one])
    assert len(server.bodies) == 3


def test_a_server_that_dies_stops_training_at_the_limit(server, make):
    writer = make(failure_limit=5, connection=dataclasses.replace(FAST, attempts=1))
    writer.write(pairs(2))
    server.inject("503", times=4)
    writer.write(pairs(4))  # within the limit
    writer.write(pairs(1))  # a text ends the row
    server.stop()
    writer.write(pairs(4))
    with raises(FailureLimitError, "failure_limit=5", server.url, MODEL):
        writer.write(pairs(1))


def test_unreachable_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with raises(UserError, url, "ollama serve"):
        VlmWriter(url=url, model=MODEL, connection=FAST).prepare()


def test_unknown_models_are_reported_with_those_of_the_server(server, make):
    with raises(UserError, server.url, "qwen2.5vl:7b", "mmjax vlm pull", *MODELS):
        make(model="qwen2.5vl:7b")
    with raises(UserError, "llava", *MODELS):
        make(model="llava", api="openai")
    assert isinstance(make(model="llava").write(pairs(1))[0], Text)  # :latest
    assert server.bodies[0]["model"] == "llava:latest"


def test_a_model_that_cannot_be_loaded_is_reported(server, make, monkeypatch):
    def fail(client):
        raise RequestError("status", "status 500: out of memory")

    monkeypatch.setattr("mmjax.diagnostic_text.vlm.client.VlmClient.load", fail)
    with raises(UserError, MODEL, "out of memory"):
        make()


@pytest.mark.parametrize("apis", [("ollama", "openai"), ("openai",)])
def test_the_api_is_found(apis):
    with VlmServer(apis=apis) as server:
        found = servers.inspect(server.url, connection=FAST)
        assert (found.api, found.version) == ((apis[0], "0.8.0" if len(apis) == 2 else ""))
        assert {model.name for model in found.models} == set(MODELS)
        assert servers.inspect(f"{server.url}/v1/", connection=FAST).api == "openai"
    with VlmServer(apis=()) as server, raises(UserError, server.url, "404"):
        servers.inspect(server.url, connection=FAST)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://h/?a=b"])
def test_bad_addresses_are_reported(url):
    with raises(UserError, url):
        server_url(url)
    assert server_url("host:11434") == ("http://host:11434", "auto")


def test_the_section_of_the_writer_is_checked(server):
    section = dict(url=server.url, model=MODEL, connection=dict(concurrency=2), sampling=dict())
    build("vlm", section, "text.writer").close()
    for key, value, facts in (
        ("connection", dict(concurency=2), ["text.writer.connection.concurrency"]),
        ("connection", dict(concurrency=0), ["connection.concurrency", 0]),
        ("sampling", dict(seed="a"), ["text.writer.sampling.seed", "'a'"]),
        ("invalid", "skip", ["text.writer.invalid", "drop"]),
        ("checks", ("color",), ["text.writer.checks", "class"]),
        ("failure_limit", 0, ["failure_limit", 0]),
    ):
        with raises(UserError, *facts):
            build("vlm", section | {key: value}, "text.writer")


def test_check_prints_models_and_tries_one(server, capsys):
    assert cli.main(["vlm", "check", "--url", server.url]) == 0
    assert_mentions(capsys.readouterr().out, server.url, "Ollama 0.8.0", "3.3 GB", *MODELS)
    assert cli.main(["vlm", "check", "--url", server.url, "--model", MODEL]) == 0
    assert_mentions(capsys.readouterr().out, "BALLOON")
    server.inject("wrong_class")
    assert cli.main(["vlm", "check", "--url", server.url, "--model", MODEL]) == 1
    assert_mentions(capsys.readouterr().out, "class", "PLATYPUS")
    assert cli.main(["vlm", "check", "--url", server.url, "--model", "gemma3:12b"]) == 2
    assert_mentions(capsys.readouterr().err, "gemma3:12b", *MODELS)


def test_pull_shows_progress_and_reports_failures(server, capsys):
    events = []
    servers.pull(server.url, MODEL, lambda *event: events.append(event))
    assert events[1:3] == [("pulling", 40, 100), ("pulling", 100, 100)]
    assert cli.main(["vlm", "pull", "--url", server.url, "--model", MODEL]) == 0
    server.pull_events[-1] = {"error": "file does not exist"}
    with raises(UserError, MODEL, "file does not exist"):
        servers.pull(server.url, MODEL, lambda *event: None)
    server.pull_events.pop()
    with raises(UserError, MODEL, "pulling"):
        servers.pull(server.url, MODEL, lambda *event: None)
    assert cli.main(["vlm", "pull", "--url", server.url]) == 2
    assert_mentions(capsys.readouterr().err, "--model")


def test_the_stub_accepts_what_other_clients_send(server):
    import httpx

    options = dict(num_ctx=None, seed=1)
    message = {"role": "user"}
    body = dict(model=MODEL, messages=[message], tools=[], stream=False, options=options)
    reply = httpx.post(f"{server.url}/api/chat", json=body).json()
    assert reply["done"] and "OBJECT" in reply["message"]["content"]
    body["messages"] = [{"role": "user", "content": "[img]", "images": ["eA=="]}]
    assert httpx.post(f"{server.url}/api/chat", json=body).status_code == 400
    body["messages"][0]["content"] = "no marker"
    error = httpx.post(f"{server.url}/api/chat", json=body)
    assert error.status_code == 400 and "0 markers" in json.loads(error.text)["error"]

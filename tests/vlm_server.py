"""A stub of a server with vision-language models: a real HTTP server that speaks both APIs.

In a test: `with VlmServer() as server: … server.url … server.inject("503", times=2)`. As a process:
`python -m tests.vlm_server --port 0`, which prints its URL; faults are then injected with
POST /_stub {"fault": "503", "times": 2}, and GET /_stub returns the counts.

Faults, each for the next `times` chat requests (-1: all): a status such as '503'; 'slow' (answers
after `slow_seconds`); 'malformed' (not JSON); 'truncated' (breaks off within the body);
'incomplete' (a stream without its end, or done: false); 'drop' (closes the connection without an
answer); 'empty'; 'wrong_class'; 'language' (names the class, in German).
"""

import argparse
import contextlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests import vlm_answers

MODELS = ("gemma3:4b", "qwen2.5vl:7b-q4_K_M", "llava:latest")


class VlmServer:
    """The server, in a thread of this process; use it as a context manager.

    Args:
      models: Names of its models.
      latency: Seconds per answer.
      apis: APIs that it speaks.
      size: Side of the images that it accepts.
      class_names: See `vlm_answers.class_of`.
      port: Port; 0 for any free one.

    Attributes:
      url: Base URL.
      bodies: Bodies of all chat requests.
      peak: Largest number of chat requests at the same time.
      slow_seconds: Delay of the fault 'slow'.
    """

    def __init__(
        self,
        models=MODELS,
        *,
        latency=0.0,
        apis=("ollama", "openai"),
        size=224,
        class_names=(),
        port=0,
    ):
        self.models, self.latency, self.apis = list(models), latency, apis
        self.size, self.class_names, self.slow_seconds = size, class_names, 5.0
        self.bodies, self.peak, self.active = [], 0, 0
        self.headers = []
        self.pull_events = [{"status": "pulling manifest"}]
        self.pull_events += [{"status": "pulling", "total": 100, "completed": n} for n in (40, 100)]
        self.pull_events += [{"status": "success"}]
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self._faults = []
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.stub = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self):
        serve = self._http.serve_forever
        threading.Thread(target=serve, kwargs=dict(poll_interval=0.01), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Dies: open connections break off, new ones are refused."""
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def serve_forever(self):
        self._http.serve_forever()

    def inject(self, fault, times=1):
        with self.lock:
            self._faults.append([fault, times])

    def clear_faults(self):
        with self.lock:
            self._faults.clear()

    def next_fault(self):
        with self.lock:
            if not self._faults:
                return ""
            fault = self._faults[0]
            fault[1] -= 1
            if fault[1] == 0:
                self._faults.pop(0)
            return fault[0]

    @contextlib.contextmanager
    def counted(self):
        with self.lock:
            self.active += 1
            self.peak = max(self.peak, self.active)
        try:
            yield
        finally:
            with self.lock:
                self.active -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # the client has given up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def stub(self):
        return self.server.stub

    def log_message(self, *_):
        pass

    def do_GET(self):
        models, ollama = self.stub.models, "ollama" in self.stub.apis
        if self.path == "/_stub":
            return self._json(dict(requests=len(self.stub.bodies), peak=self.stub.peak))
        if self.path == "/v1/models" and "openai" in self.stub.apis:
            rows = [{"id": name, "object": "model"} for name in models]
            return self._json({"object": "list", "data": rows})
        answers = {
            "/api/version": {"version": "0.8.0"},
            "/api/tags": {
                "models": [{"name": n, "model": n, "size": 3_300_000_000} for n in models]
            },
            "/api/ps": {"models": [{"name": n, "size_vram": 4_000_000_000} for n in models[:1]]},
        }
        if ollama and self.path in answers:
            return self._json(answers[self.path])
        return self._error(404, "404 page not found")

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            body = json.loads(data)
        except ValueError:
            return self._error(400, "the body is not JSON")
        if self.path == "/_stub":
            self.stub.inject(body["fault"], body.get("times", 1))
            return self._json({})
        if self.path == "/api/pull":
            return self._lines([json.dumps(event) for event in self.stub.pull_events])
        if self.path not in ("/api/chat", "/v1/chat/completions"):
            return self._error(404, "404 page not found")
        with self.stub.counted():
            self._chat(body, ollama=self.path == "/api/chat")

    def _chat(self, body, ollama):
        if body.get("model") not in self.stub.models:
            return self._error(404, f"model {body.get('model')!r} not found")
        if ollama and not body.get("messages"):
            done = dict(message={"role": "assistant", "content": ""}, done_reason="load")
            return self._json({"model": body["model"], "done": True, **done})
        with self.stub.lock:
            self.stub.bodies.append(body)
            self.stub.headers.append(dict(self.headers))
        try:
            read = vlm_answers.read_ollama if ollama else vlm_answers.read_openai
            text, encoded = read(body)
            images = vlm_answers.read_images(encoded, self.stub.size)
        except (vlm_answers.BadRequest, KeyError, TypeError, AttributeError) as error:
            return self._error(400, f"{type(error).__name__}: {error}")
        start, fault = time.monotonic(), self.stub.next_fault()
        names = self.stub.class_names
        content = {
            "empty": lambda: " \n",
            "wrong_class": lambda: "The PLATYPUS region in the top left is over-extended.",
            "language": lambda: f"{vlm_answers.class_of(text, names)} fehlt links unten völlig.",
        }.get(fault, lambda: vlm_answers.answer(text, images, names))()
        wait = self.stub.latency + (self.stub.slow_seconds if fault == "slow" else 0)
        if self.stub.stopping.wait(max(0, wait - (time.monotonic() - start))):
            return self._hang_up()
        if fault.isdecimal():
            return self._error(int(fault), "server busy, please try again")
        if fault == "drop":
            return self._hang_up()
        respond = self._ollama if ollama else self._openai
        return respond(body, content, fault)

    def _ollama(self, body, content, fault):
        def line(text, done):
            value = dict(model=body["model"], created_at="2026-01-01T00:00:00Z", done=done)
            value["message"] = {"role": "assistant", "content": text}
            if done:
                value |= dict(done_reason="stop", prompt_eval_count=1100, eval_count=42)
            return value

        done = fault != "incomplete"
        if not body.get("stream", True):
            return self._json(line(content, done), fault)
        half = len(content) // 2
        lines = [line(content[:half], False), line(content[half:], False), line("", True)]
        return self._lines([json.dumps(value) for value in lines[: 3 if done else 2]], fault)

    def _openai(self, body, content, fault):
        base = dict(id="chatcmpl-1", created=1, model=body["model"])
        usage = dict(prompt_tokens=1100, completion_tokens=42, total_tokens=1142)
        end = None if fault == "incomplete" else "stop"
        if not body.get("stream"):
            message = {"role": "assistant", "content": content}
            choices = [dict(index=0, message=message, finish_reason=end)]
            return self._json(
                base | dict(object="chat.completion", choices=choices, usage=usage), fault
            )
        half = len(content) // 2
        deltas = [({"content": content[:half]}, None), ({"content": content[half:]}, end)]
        values = [
            base | dict(choices=[dict(index=0, delta=delta, finish_reason=reason)])
            for delta, reason in deltas
        ]
        values.append(base | dict(choices=[], usage=usage))
        texts = [f"data: {json.dumps(value)}\n" for value in values] + ["data: [DONE]\n"]
        return self._lines(texts, fault)

    def _json(self, value, fault=""):
        self._send(200, json.dumps(value).encode(), fault)

    def _lines(self, texts, fault=""):
        self._send(200, "".join(f"{text}\n" for text in texts).encode(), fault)

    def _error(self, status, text):
        self._send(status, json.dumps({"error": text}).encode())

    def _send(self, status, data, fault=""):
        if fault == "malformed":
            data = b"<html>502 Bad Gateway</html>"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(data[: len(data) // 2])
            return self._hang_up()
        self.wfile.write(data)

    def _hang_up(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)


def main():
    parser = argparse.ArgumentParser(description="A stub of a server with vision-language models.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--class-names", nargs="*", default=())
    args = parser.parse_args()
    names = tuple(args.class_names)
    options = dict(latency=args.latency, size=args.size, class_names=names, port=args.port)
    server = VlmServer(args.models, **options)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

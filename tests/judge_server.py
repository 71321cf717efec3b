"""A small OpenAI-compatible judge on this machine that can misbehave in every way that a real one does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAST = {"retry-after-ms": "5"}  # the client waits as long as it is told


class Judge:
    """`script` decides: script(n, body) -> str (a verdict), or (status, json body, headers), for the n-th request from 0."""

    def __init__(self, script: Callable[[int, dict], str | tuple]):
        self.script, self.requests, self.lock = script, [], threading.Lock()
        self.at_once = self.most_at_once = 0
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with judge.lock:
                    number = len(judge.requests)
                    judge.requests.append(
                        {"path": self.path, "headers": dict(self.headers), "body": body, "at": time.monotonic()}
                    )
                    judge.at_once += 1
                    judge.most_at_once = max(judge.most_at_once, judge.at_once)
                try:
                    answer = judge.script(number, body)
                finally:
                    with judge.lock:
                        judge.at_once -= 1
                status, payload, headers = answer if isinstance(answer, tuple) else (200, completion(answer), {})
                data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                try:
                    self.send_response(status)
                    self.send_header("content-type", headers.pop("content-type", "application/json"))
                    self.send_header("content-length", str(len(data)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client did not wait

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def completion(text: str | None) -> dict:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-0001",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def error(status: int, message: str, **headers: str) -> tuple:
    return status, {"error": {"message": message, "type": "error"}}, {**FAST, **headers}

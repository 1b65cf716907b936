"""A server process with an OpenAI-compatible API: our own engine behind it, and each fault by a model's name.

Run with the directory of a converted model, or `-` for faults and recordings alone; prints its port. With
`--key` it takes no other. `GET /log` tells what it was asked and which replies were cancelled.
"""

from __future__ import annotations

import argparse
import base64
import json
import queue
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHAPES = Path(__file__).parent / "shapes"
CONTEXT = 1024
PAGE = "<!DOCTYPE html><html><body>Please log in</body></html>"

ERRORS: dict[str, tuple[int, dict[str, str], Any]] = {
    "forbidden": (403, {}, {"error": {"message": "This key may not use this model.", "code": 403}}),
    "quoting": (401, {}, {"error": {"message": "Incorrect API key provided: KEY.", "code": 401}}),
    "gone": (404, {}, {"error": {"message": "The model `gone` does not exist.", "code": 404}}),
    "no-route": (404, {}, {"detail": "Not Found"}),
    "busy": (429, {"Retry-After": "7"}, {"error": {"message": "Rate limit reached."}}),
    "broken": (500, {}, {"object": "error", "message": "CUDA error\n  at line 1.", "code": 500}),
    "starting": (503, {}, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}),
    "too-large": (413, {}, "Payload Too Large"),
    "refusing": (400, {}, {"error": {"message": "temperature must be in [0, 1], got 5."}}),
    "page": (200, {"Content-Type": "text/html"}, PAGE),
    "gateway": (502, {"Content-Type": "text/html"}, PAGE),
    "moved": (302, {"Location": "https://login.example.org/?next=1"}, ""),
    "not-streaming": (200, {}, {"choices": [{"message": {"content": "Hello"}}]}),
    # What the servers say of a conversation that is too long.
    "long-vllm": (
        400,
        {},
        {
            "error": {
                "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 "
                "tokens in the messages, Please reduce the length of the messages.",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            }
        },
    ),
    "long-sglang": (
        400,
        {},
        {
            "object": "error",
            "message": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "long-llamacpp": (
        400,
        {},
        {
            "error": {
                "code": 400,
                "message": "request (5000 tokens) exceeds the available context size (4096 tokens), try "
                "increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 5000,
                "n_ctx": 4096,
            }
        },
    ),
}
REFUSES = {
    # Fields that servers do not know: as OpenAI says it, and as a FastAPI with `extra="forbid"` does.
    "strict-openai": (400, lambda field: {"error": {"message": f"Unrecognized request argument: {field}"}}),
    "strict-fastapi": (
        422,
        lambda field: {
            "detail": [{"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs"}]
        },
    ),
}
KNOWN = {"model", "messages", "stream", "temperature", "top_p", "max_tokens", "stop"}
STREAMS = ("cut", "unfinished", "no-json", "error-inside", "stall", "silent", "abort", "filtered")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, model: Path | None, key: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key = key
        self.asked: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.engine: Any = None
        if model:
            from lite_llama.engine.events import Loaded
            from lite_llama.engine.thread import EngineThread, LoadOptions

            self.engine = EngineThread()
            events: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self.engine.load(LoadOptions(model, "cpu", max_context=CONTEXT), events.put)
            while not isinstance(event := events.get(), Loaded):
                assert not type(event).__name__.endswith("Failed"), event


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/log":
            self._send(200, {"asked": self.server.asked, "cancelled": self.server.cancelled})
        elif not self._allowed():
            return
        elif self.path == "/v1/models":
            names = [*ERRORS, *REFUSES, *STREAMS, *(path.stem for path in sorted(SHAPES.glob("*.sse")))]
            if self.server.engine:
                names.insert(0, "demo")
            models = [{"id": name, "object": "model", "owned_by": "vllm"} for name in names]
            self._send(200, {"object": "list", "data": [model | _context(model["id"]) for model in models]})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body | {"path": self.path, "agent": self.headers["User-Agent"]})
        if not self._allowed():
            return
        model = body["model"]
        if self.path == "/tokenize" and model == "demo":
            count = self.server.engine.count_tokens(_messages(body["messages"]))
            self._send(200, {"count": count, "max_model_len": CONTEXT, "tokens": []})
        elif self.path != "/v1/chat/completions":
            self._send(404, {"detail": "Not Found"})
        elif model in ERRORS:
            status, headers, answer = ERRORS[model]
            self._send(status, answer, headers)
        elif model in REFUSES and (unknown := [field for field in body if field not in KNOWN]):
            status, say = REFUSES[model]
            self._send(status, say(unknown[0]))
        elif model == "demo":
            self._generate(body)
        elif (recording := SHAPES / f"{model}.sse").is_file():
            self._begin()
            self._write(recording.read_text(encoding="utf-8"))
            self._write("")
        else:
            self._misbehave(model)

    def _allowed(self) -> bool:
        key = self.server.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return True
        self._send(401, {"error": {"message": "Unauthorized", "type": "invalid_request_error", "code": 401}})
        return False

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        content = text.replace("KEY", self.server.key or "none").encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _write(self, text: str) -> None:
        """One chunk of the transfer encoding; an empty one ends the answer."""
        content = text.encode()
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, **more: Any) -> None:
        choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
        self._write(f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': choices} | more)}\n\n")

    # Real tokens

    def _generate(self, body: dict[str, Any]) -> None:
        from lite_llama.engine.events import Failed, Finished, Queued, TextDelta
        from lite_llama.engine.request import GenerationRequest, SamplingParams

        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        request = GenerationRequest(
            _messages(body["messages"]),
            SamplingParams(
                **{name: body[name] for name in names if name in body},
                max_new_tokens=body.get("max_tokens"),
                stop=tuple(body.get("stop", ())),
            ),
            continue_last=body.get("continue_final_message", False),
        )
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        request_id = self.server.engine.submit(request, events.put)
        try:
            while True:
                match events.get():
                    case Queued():
                        self._begin()
                        self._chunk({"role": "assistant", "content": ""})
                    case TextDelta(text=text):
                        self._chunk({"content": text})
                    case Finished(reason=reason, usage=usage):
                        self._chunk({}, reason)
                        tokens = {
                            "prompt_tokens": usage.prompt_tokens,
                            "completion_tokens": usage.completion_tokens,
                            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                            "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
                        }
                        if body.get("stream_options", {}).get("include_usage"):
                            self._write(f"data: {json.dumps({'choices': [], 'usage': tokens})}\n\n")
                        self._write("data: [DONE]\n\n")
                        return self._write("")
                    case Failed(message=message):
                        return self._send(400, {"error": {"message": message, "code": 400}})
        except ConnectionError:
            self.server.engine.cancel(request_id)
            self.server.cancelled.append("demo")
            self.close_connection = True

    # Faults in the middle of a stream

    def _misbehave(self, how: str) -> None:
        if how == "silent":  # nothing at all, until the client has enough
            self._await_end(how)
            return
        self._begin()
        self._chunk({"role": "assistant", "content": "Once upon"})
        self._chunk({"content": " a time"})
        match how:
            case "cut":
                self.close_connection = True  # without the transfer's last chunk
            case "unfinished":
                self._write("")
            case "no-json":
                self._write("data: {'choices': oops}\n\n")
            case "error-inside":
                self._write(
                    f'data: {{"error": {{"message": "Out of memory, {self.server.key}", "code": 500}}}}\n\n'
                )
                self._write("data: [DONE]\n\n")
                self._write("")
            case "abort":
                self._chunk({}, "abort")
                self._write("")
            case "filtered":
                self._chunk({}, "content_filter")
                self._write("")
            case "stall":
                self._await_end(how)
            case _:
                # The strict servers, once they like the request.
                self._chunk({}, "stop")
                self._write("data: [DONE]\n\n")
                self._write("")

    def _await_end(self, how: str) -> None:
        began = time.monotonic()
        if self.connection.recv(1) == b"":
            self.server.cancelled.append(how)
        self.close_connection = True
        assert time.monotonic() - began < 60


def _context(name: str) -> dict[str, Any]:
    return {"max_model_len": CONTEXT} if name == "demo" else {}


def _messages(messages: list[dict[str, Any]]) -> tuple[Any, ...]:
    from lite_llama.engine.images import image_of
    from lite_llama.engine.request import Message

    taken = []
    for message in messages:
        content, images = message["content"], []
        if not isinstance(content, str):
            urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
            images = [image_of("image", base64.b64decode(url.partition(";base64,")[2])) for url in urls]
            content = "".join(part["text"] for part in content if part["type"] == "text")
        taken.append(Message(message["role"], content, images=tuple(images)))
    return tuple(taken)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--key")
    parser.add_argument("--certificate", type=Path, help="a PEM file with certificate and key: speak TLS")
    options = parser.parse_args()
    server = Server(None if options.model == "-" else Path(options.model), options.key)
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # until the test closes it, or dies


if __name__ == "__main__":
    main()

"""A server of /v1/chat/completions for the tests of the LLM teacher: it annotates problems of `problem(i)`.

A test says by Mock.fault what goes wrong:

    None                                     nothing
    (429, "slow down")                       this status and body, in which KEY stands for the key that came
    (429, "slow down", "Retry-After: 1")     the same with a header
    one of BROKEN or UNFIT
    "gzip"                                   nothing, but the response is compressed
"""
import gzip
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

BROKEN = "stall", "drip", "no response", "half"  # connections: there is no whole response
UNFIT = "wrong answer", "wrong equation", "cut off", "silent"  # what the model says is no annotation


def problem(i):
    """A problem that the mock can solve."""
    a, b = 3 + i % 89, 2 + i // 89
    return {"id": f"p-{i}", "problem": f"Ann has {a} pens. Bo has {b} more. How many have they in case {i}?",
            "answer": str(2 * a + b)}


def annotation(prompt, fault):
    """What a good teacher replies: a dialogue, or as the prompt wants it a chain or questions alone."""
    text, _, solutions = prompt.rpartition("Problem: ")[2].partition("\n")
    a, b = map(int, re.findall(r"\d+", text)[:2])
    questions = ["How many has Bo?", "How many have they together?"]
    if "Solution 1" in solutions:
        return "\n".join(f"Question {k}: {question}" for k, question in enumerate(questions, 1))
    total = 2 * a + b + (fault == "wrong answer")
    lines = [f"Bo has {a}+{b} = <<{a}+{b}={a + b + (fault == 'wrong equation')}>>{a + b} pens.",
             f"They have {a}+{a + b} = <<{a}+{a + b}={2 * a + b}>>{total} pens."]
    if "Question 1" in prompt:
        lines = [f"Question {k}: {q}\nSolution {k}: {s}" for k, (q, s) in enumerate(zip(questions, lines), 1)]
    return "\n".join([*lines, f"Answer: {total}"])


def completion(prompt, fault):
    """The body of a response in which the model has its say."""
    content = "" if fault == "silent" else annotation(prompt, fault)
    choice = {"message": {"content": content}, "finish_reason": "length" if fault == "cut off" else "stop"}
    return json.dumps({"model": "mock-1", "choices": [choice],
                       "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": 40}})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_GET(self):  # what becomes of a POST that is redirected
        self.send(200, "{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, key = body["messages"][-1]["content"], self.headers["Authorization"]
        text = prompt.rpartition("Problem: ")[2].partition("\n")[0]
        fault = self.server.fault(text) if callable(self.server.fault) else self.server.fault
        self.server.requests.append(SimpleNamespace(
            problem=text, fault=fault, prompt=prompt, body=body, key=key, target=self.path,
            connection=self.client_address))
        self.server.closed.wait(600 if fault == "stall" else self.server.latency)
        self.close_connection = fault in BROKEN
        if fault == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(50):
                self.wfile.write(b" ")
                self.server.closed.wait(0.1)
        elif isinstance(fault, tuple):
            status, content, *headers = fault
            self.send(status, content.replace("KEY", (key or "").removeprefix("Bearer ")), *headers)
        elif fault not in ("stall", "no response"):
            self.send(200, completion(prompt, fault), fault=fault)

    def send(self, status, content, *headers, fault=None):
        content = content.encode()
        if fault == "gzip":
            content, headers = gzip.compress(content), ["Content-Encoding: gzip"]
        length = f"Content-Length: {len(content) + 20 * (fault == 'half')}"
        head = "\r\n".join([f"HTTP/1.1 {status} Status", "Content-Type: application/json", length, *headers])
        self.wfile.write(f"{head}\r\n\r\n".encode() + content)


class Mock(ThreadingHTTPServer):
    """The server, in threads of its own. It can be a proxy too: it answers for any host.

    fault: what goes wrong, or a function that tells it from a problem's text. requests: what came in, with
    the fault that each met.
    """
    request_queue_size = 256

    def __init__(self, fault=None, latency=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.latency, self.requests, self.closed = fault, latency, [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *args):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that was killed
            super().handle_error(*args)

    def close(self):
        self.closed.set()
        self.shutdown()
        self.server_close()

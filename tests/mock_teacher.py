"""A server of /v1/chat/completions for the tests and the bench of the LLM teacher, which fails on demand.

    python tests/mock_teacher.py --latency 0.05 --faults 0.5

prints its port. It annotates problems of `problem(i)`. With --faults a share of the requests meets one of
FAULTS, sampled by --seed. GET /log tells what it was asked and what it replied; GET /outage/NAME makes every
request meet the fault NAME, until GET /outage/. It can be a proxy too: it answers for any host.
"""
import argparse
import asyncio
import gzip
import json
import random
import re
from collections import Counter
from email.utils import formatdate
from time import time

FAILURES = {  # of the server: status, body
    "429 seconds": (429, '{"error": {"message": "slow down"}}'),
    "429 date": (429, '{"error": {"message": "slow down"}}'),
    "500": (500, '{"error": {"message": "out of memory"}}'),
    "503 echo": (503, '{"error": {"message": "bad key KEY"}}'),
    "error in 200": (200, '{"error": {"code": 429, "message": "busy"}}'),
    "error in choice": (200, '{"choices": [{"finish_reason": "error", "error": {"code": 502}}]}'),
    "HTML": (200, "<html><body><h1>Welcome</h1></body></html>"), "no choices": (200, '{"choices": []}'),
    "empty": (200, ""), "null": (200, "null")}
# what the model says: no annotation, or a good one in an unusual form
UNFIT = "wrong answer", "wrong equation", "cut off", "silent", "filtered", "refusal", "repeats"
ADORNED = ("no usage", "chatter", "DONE", "raw newlines", "thoughts", "leading space", "short labels", "gzip",
           "chunked")
FAULTS = (*FAILURES, "reset", "stall", "half", "broken JSON", "finish error", "finish abort", "nothing yet",
          *UNFIT, *ADORNED)
FOR_ALL = {  # failures of every problem, on demand alone
    "401": (401, '{"error": {"message": "Incorrect API key: KEY"}}'),
    "404": (404, '{"error": {"message": "no such model"}}'),
    "402": (402, '{"error": {"message": "Payment Required"}}'),
    "quota": (429, '{"error": {"message": "check your plan", "code": "insufficient_quota"}}'),
    "quota in 200": (200, '{"error": {"code": 429, "type": "insufficient_quota", "message": "no"}}'),
    "credit": (400, '{"error": {"message": "Your credit balance is too low"}}'),
    "max_tokens": (400, '{"error": {"message": "Unsupported parameter: \'max_tokens\' is not supported"}}'),
    "temperature": (400, '{"error": {"message": "\'temperature\' does not support 0.0 with this model"}}'),
    "extra field": (422, '{"detail": [{"type": "extra_forbidden", "loc": ["body", "stream"]}]}'),
    "pause": (429, '{"error": {"message": "wait"}}'),
    "long pause": (429, '{"error": {"message": "come back tomorrow"}}'), "moved": (301, "")}


def problem(i):
    """A problem that the mock can solve."""
    a, b = 3 + i % 89, 2 + i // 89
    return {"id": f"p-{i}", "problem": f"Ann has {a} pens. Bo has {b} more. How many have they in case {i}?",
            "answer": str(2 * a + b)}


def annotation(prompt, fault=None):
    """The text that a good teacher would reply, or with a fault in what it says."""
    text, _, solutions = prompt.rpartition("Problem: ")[2].partition("\n")
    a, b = map(int, re.findall(r"\d+", text)[:2])
    questions = ["How many has Bo?", "How many have they together?"]
    if fault == "repeats":
        questions[1] = questions[0]
    if "Solution 1" in solutions:
        return "\n".join(f"Question {k}: {q}" for k, q in enumerate(questions, 1))
    total = 2 * a + b + (fault == "wrong answer")
    lines = [f"Bo has {a}+{b} = <<{a}+{b}={a + b + (fault == 'wrong equation')}>>{a + b} pens.",
             f"They have {a}+{a + b} = <<{a}+{a + b}={2 * a + b}>>{total} pens."]
    if "Question 1" in prompt:
        lines = [f"Question {k}: {q}\nSolution {k}: {s}" for k, (q, s) in enumerate(zip(questions, lines), 1)]
        if fault == "short labels":
            lines = [line.replace("Question ", "Q").replace("Solution ", "A") for line in lines]
        if fault == "chatter":
            lines = ["Sure! **Here is** the dialogue:", "", *lines]
    return "\n".join([*lines, f"Answer: {total}"])


def completion(prompt, fault):
    """The body of a response in which the model has its say, as text."""
    message = {"role": "assistant", "content": annotation(prompt, fault)}
    finish = {"cut off": "length", "filtered": "content_filter", "finish error": "error",
              "finish abort": "abort"}
    reply = {"model": "mock-1", "choices": [{"message": message, "finish_reason": finish.get(fault, "stop")}],
             "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": 40}}
    if fault == "no usage":
        del reply["usage"]
    if fault == "thoughts":
        message["reasoning_content"] = message["content"]
    if fault in ("silent", "nothing yet", "thoughts", "refusal"):
        message["content"] = None
    if fault == "refusal":
        message["refusal"] = "I cannot help with that."
    if fault == "nothing yet":
        reply["choices"][0]["finish_reason"] = None
    text = json.dumps(reply)
    if fault == "broken JSON":
        text = text[:-9]
    if fault == "raw newlines":
        text = text.replace("\\n", "\n")
    if fault == "DONE":
        text = f"data: {text}\n\ndata: [DONE]\n"
    return " \n" * 50 + text if fault == "leading space" else text


class Mock:
    """The server's state: what came in and went out."""

    def __init__(self, args):
        self.args, self.rng, self.outage = args, random.Random(args.seed), None
        self.asked, self.said, self.good = Counter(), Counter(), Counter()  # of each problem
        self.faults, self.keys, self.targets, self.streams = Counter(), set(), set(), set()
        self.connections = self.in_flight = self.most_in_flight = 0

    def log(self):
        return {"asked": self.asked, "said": self.said, "good": self.good, "faults": self.faults,
                "connections": self.connections, "requests": sum(self.asked.values()),
                "keys": sorted(self.keys), "targets": sorted(self.targets),
                "streams": sorted(map(str, self.streams)), "most_in_flight": self.most_in_flight}

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                target = head.split()[1]
                if head.startswith("GET"):
                    if "/outage/" in target:
                        self.outage = target.rpartition("/outage/")[2].replace("%20", " ") or None
                    self.send(writer, 200, json.dumps(self.log()))
                else:
                    length = re.search(r"(?i)content-length: (\d+)", head)
                    key = re.search(r"(?i)authorization: (?:bearer )?(\S+.*)", head)
                    self.keys |= {key[1].strip()} if key else set()
                    self.targets.add(target)
                    body = json.loads(await reader.readexactly(int(length[1])))
                    self.in_flight += 1
                    self.most_in_flight = max(self.in_flight, self.most_in_flight)
                    stays_open = await self.complete(writer, body, key[1].strip() if key else "")
                    self.in_flight -= 1
                    if not stays_open:
                        break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def send(self, writer, status, content, headers="", fault=None):
        content = content.encode()
        if fault == "gzip":
            content, headers = gzip.compress(content), "Content-Encoding: gzip\r\n"
        if fault == "chunked":
            content = b"".join(b"%x\r\n%b\r\n" % (len(content[i:i + 100]), content[i:i + 100])
                               for i in range(0, len(content) + 100, 100))
            headers = "Transfer-Encoding: chunked\r\n"
        else:
            headers += f"Content-Length: {len(content) + 20 * (fault == 'half')}\r\n"
        head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n{headers}\r\n"
        writer.write(head.encode() + content)

    async def complete(self, writer, body, key):
        """Answer a request, well or not; returns whether the connection stays open."""
        prompt, args = body["messages"][-1]["content"], self.args
        text = prompt.rpartition("Problem: ")[2].partition("\n")[0]
        self.asked[text] += 1
        self.streams.add(body.get("stream"))
        if args.refuse and re.search(args.refuse, text):
            self.send(writer, 400, '{"error": {"message": "maximum context length exceeded"}}')
            return True
        fault = self.outage
        if not fault and self.rng.random() < args.faults:
            fault = self.rng.choice(args.only or FAULTS)
        self.faults[fault] += 1
        if args.latency:
            await asyncio.sleep(args.latency)
        if fault == "stall":
            await asyncio.sleep(args.stall)
            return False
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "drip":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(100):
                writer.write(b" ")
                await asyncio.sleep(0.1)
            return False
        if failure := (FAILURES | FOR_ALL).get(fault):
            after = {"429 seconds": "1", "429 date": formatdate(time() + 1, usegmt=True), "pause": "500",
                     "long pause": "86400"}.get(fault)
            headers = f"Retry-After: {after}\r\n" if after else ""
            if fault == "moved":
                headers = "Location: /v2/chat/completions\r\n"
            self.send(writer, failure[0], failure[1].replace("KEY", key), headers)
            return True
        self.send(writer, 200, completion(prompt, fault), fault=fault)
        self.said[text] += fault in (None, *UNFIT, *ADORNED)
        self.good[text] += fault in (None, *ADORNED)
        return fault != "half"


async def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--latency", type=float, default=0.0, help="seconds")
    p.add_argument("--faults", type=float, default=0.0, help="share of the requests")
    p.add_argument("--only", nargs="*", choices=(*FAULTS, *FOR_ALL, "drip"))
    p.add_argument("--stall", type=float, default=60.0, help="seconds")
    p.add_argument("--refuse", metavar="PATTERN", help="problems that are refused at once")
    p.add_argument("--seed", type=int, default=0)
    mock = Mock(p.parse_args())
    server = await asyncio.start_server(mock.serve, "127.0.0.1", 0, limit=1 << 20, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

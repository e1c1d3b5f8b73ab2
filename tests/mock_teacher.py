"""A server that speaks as much of /v1/chat/completions as the tests and the bench of the LLM teacher need, and fails on demand.

    python tests/mock_teacher.py --latency 0.05 --faults 0.5

prints its port. It annotates problems of `problem(i)`; GET /log tells how often each was asked for and answered well. With
--faults a share of the requests meets one of FAULTS, drawn by --seed.
"""
import argparse
import asyncio
import json
import random
import re
from collections import Counter
from email.utils import formatdate
from time import time

FAULTS = ("reset", "stall", "half", "429 seconds", "429 date", "500", "503 echo", "broken JSON", "HTML", "no choices", "no usage",
          "wrong model", "wrong answer", "wrong equation", "cut off", "empty", "chatter")


def problem(i):
    """A problem that the mock can solve."""
    a, b = 3 + i % 89, 2 + i // 89
    return {"id": f"p-{i}", "problem": f"Ann has {a} pens. Bo has {b} more. How many have they in case {i}?", "answer": str(2 * a + b)}


def annotation(prompt, fault=None):
    """The text that a good teacher would reply, or with a fault in what it says."""
    text, _, solutions = prompt.rpartition("Problem: ")[2].partition("\n")
    a, b = map(int, re.findall(r"\d+", text)[:2])
    questions = "How many has Bo?", "How many have they together?"
    if "Solution 1" in solutions:
        return "\n".join(f"Question {k}: {q}" for k, q in enumerate(questions, 1))
    total = 2 * a + b + (fault == "wrong answer")
    lines = [f"Bo has {a}+{b} = <<{a}+{b}={a + b + (fault == 'wrong equation')}>>{a + b} pens.",
             f"They have {a}+{a + b} = <<{a}+{a + b}={2 * a + b}>>{total} pens."]
    if "Question 1" in prompt:
        lines = [f"Question {k}: {q}\nSolution {k}: {s}" for k, (q, s) in enumerate(zip(questions, lines), 1)]
    if fault == "chatter":
        lines = ["Sure! **Here is** the dialogue:", "", *lines] if "Question 1" in prompt else lines
    return "\n".join([*lines, f"Answer: {total}"]) if fault != "empty" else ""


class Mock:
    def __init__(self, args):
        self.args, self.rng = args, random.Random(args.seed)
        self.asked, self.good, self.faults, self.connections, self.keys = Counter(), Counter(), Counter(), 0, set()

    def log(self):
        return {"asked": self.asked, "good": self.good, "faults": self.faults, "connections": self.connections,
                "requests": sum(self.asked.values()), "keys": sorted(self.keys)}

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                body = json.loads(await reader.readexactly(int(length[1]))) if length else None
                key = re.search(r"(?i)authorization: bearer (\S+)", head)
                self.keys |= {key[1]} if key else set()
                if body is None:
                    self.send(writer, json.dumps(self.log()))
                elif not await self.complete(writer, body, key[1] if key else ""):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def send(self, writer, content, status="200 OK", headers="", cut=0):
        content = content.encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode()
                     + content[:len(content) - cut])

    async def complete(self, writer, body, key):
        """Answer a request, well or not; returns whether the connection stays open."""
        prompt, args = body["messages"][-1]["content"], self.args
        text = prompt.rpartition("Problem: ")[2].partition("\n")[0]
        self.asked[text] += 1
        if args.refuse and re.search(args.refuse, text):
            self.send(writer, '{"error": {"message": "maximum context length exceeded"}}', "400 Bad Request")
            return True
        fault = self.rng.choice(args.only or FAULTS) if self.rng.random() < args.faults else None
        self.faults[fault] += 1
        if args.latency:
            await asyncio.sleep(args.latency)
        if fault == "stall":
            await asyncio.sleep(args.stall)
            return False
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault in ("429 seconds", "429 date"):
            after = "1" if fault == "429 seconds" else formatdate(time() + 1, usegmt=True)
            self.send(writer, '{"error": {"message": "slow down"}}', "429 Too Many Requests", f"Retry-After: {after}\r\n")
        elif fault == "500":
            self.send(writer, '{"error": {"message": "out of memory"}}', "500 Internal Server Error")
        elif fault == "503 echo":
            self.send(writer, json.dumps({"error": {"message": f"bad key {key}"}}), "503 Service Unavailable")
        elif fault == "401":
            self.send(writer, json.dumps({"error": {"message": f"Incorrect API key: {key}"}}), "401 Unauthorized")
        elif fault == "HTML":
            self.send(writer, "<html><body><h1>Welcome</h1></body></html>")
        elif fault == "no choices":
            self.send(writer, '{"choices": []}')
        elif fault == "wrong model":
            self.send(writer, '{"error": {"message": "no such model"}}', "404 Not Found")
        else:
            reply = {"model": "mock-1", "choices": [{"message": {"role": "assistant", "content": annotation(prompt, fault)},
                                                     "finish_reason": "length" if fault == "cut off" else "stop"}],
                     "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": 40}}
            if fault == "no usage":
                del reply["usage"]
            content = json.dumps(reply)
            self.send(writer, content[:-9] if fault == "broken JSON" else content, cut=20 * (fault == "half"))
            if fault in (None, "no usage", "chatter"):
                self.good[text] += 1
            return fault != "half"
        return True


async def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--latency", type=float, default=0.0, help="seconds")
    p.add_argument("--faults", type=float, default=0.0, help="share of the requests")
    p.add_argument("--only", nargs="*", choices=(*FAULTS, "401"))
    p.add_argument("--stall", type=float, default=60.0, help="seconds")
    p.add_argument("--refuse", metavar="PATTERN", help="problems that are refused at once")
    p.add_argument("--seed", type=int, default=0)
    mock = Mock(p.parse_args())
    server = await asyncio.start_server(mock.serve, "127.0.0.1", 0, limit=1 << 20, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

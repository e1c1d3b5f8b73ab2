"""How fast annotate.py converts, and how busy its LLM teacher keeps a server.

    python tests/bench_annotate.py

prints rows converted per second, and the requests per second of a bare client, which sends the same bytes
over as many connections and looks at nothing, beside those of `annotate.py teacher`; the server is a mock.
"""
import asyncio
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import annotate  # noqa: E402
import data  # noqa: E402
import mock_teacher  # noqa: E402

PARALLEL, PROBLEMS, ROUNDS = 64, 1000, 3


def call(*argv):
    """Run a command of annotate.py here; returns its seconds, start-up and imports not counted."""
    args = annotate.parse_args(list(map(str, argv)))
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        args.run(args)
    return time.perf_counter() - start


def bench_conversion(folder, n=7473):
    rows = [{"question": f"Ann has {i} pens and buys {i} more. How many has she?",
             "answer": f"How many? ** So {i}+{i} = <<{i}+{i}={2 * i}>>{2 * i}.\nNow? ** So.\n#### {2 * i}"}
            for i in range(n)]
    (folder / "gsm8k.jsonl").write_bytes(data.to_jsonl(rows))
    seconds = statistics.median(
        call("gsm8k", folder / "gsm8k.jsonl", "--out", folder / f"converted{k}") for k in range(ROUNDS))
    print(f"convert: {n:,} rows in {seconds:.2f} s, {n / seconds:,.0f} rows/s")


async def bare_client(port, body):
    """Send the same request again and again; returns the seconds."""
    message = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    left = iter(range(PROBLEMS))

    async def worker():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(message.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", head)[1]))
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(PARALLEL)))
    return time.perf_counter() - start


def bench_teacher(folder, latency):
    server = subprocess.Popen([sys.executable, mock_teacher.__file__, "--latency", str(latency)],
                              stdout=subprocess.PIPE, text=True)
    try:
        port, path = int(server.stdout.readline()), folder / "problems.jsonl"
        problems = [mock_teacher.problem(i) for i in range(PROBLEMS)]
        path.write_bytes(data.to_jsonl(problems))
        prompt = annotate.fill_prompt(annotate.default_prompt("socratic"), problems[0]["problem"], [])
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]})
        shares = []
        for k in range(ROUNDS):
            bare = asyncio.run(bare_client(port, body))
            teacher = call("teacher", path, "--url", f"http://127.0.0.1:{port}", "--model", "m",
                           "--parallel", PARALLEL, "--out", folder / f"teacher{k}-{latency}")
            shares.append(bare / teacher)
            print(f"latency {1000 * latency:g} ms, {PARALLEL} in parallel: bare client "
                  f"{PROBLEMS / bare:,.0f} requests/s, teacher {PROBLEMS / teacher:,.0f}, "
                  f"share {100 * shares[-1]:.0f} %", flush=True)
        print(f"latency {1000 * latency:g} ms: median share {100 * statistics.median(shares):.0f} %")
    finally:
        server.kill()


def main():
    with tempfile.TemporaryDirectory() as folder:
        bench_conversion(Path(folder))
        for latency in 1.0, 0.1:  # of the server, seconds
            bench_teacher(Path(folder), latency)


if __name__ == "__main__":
    main()

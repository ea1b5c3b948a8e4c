"""A stand-in for a serving engine, over real HTTP: it streams ids that are a function of the prompt, or fails as told.

    python standin_server.py PORT [FAULT]

It serves as engines do: one step at a time for all requests that are there, one token for each of them in a step.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

STEP_S = 0.004


def token(prompt: list[int], number: int) -> int:
    return (sum(prompt) * 31 + number * 7) % 251


class Server:
    def __init__(self, fault: str) -> None:
        self.fault, self.tick, self.served = fault, asyncio.Condition(), 0

    async def steps(self) -> None:
        while True:
            await asyncio.sleep(STEP_S)
            async with self.tick:
                self.tick.notify_all()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length")]
        length = int(lengths[0]) if lengths else 0
        body = json.loads(await reader.readexactly(length)) if length else {}
        if head.startswith("GET"):  # some health address
            self.reply(writer, 503 if self.fault == "never-ready" else 200)
        elif self.fault == "key" and "authorization: bearer right" not in head.lower():
            self.reply(writer, 401, b"no")
        elif self.fault in ("500", "429", "400"):
            self.reply(writer, int(self.fault), b"told to fail")
        else:
            await self.stream(writer, body)
        await writer.drain()
        writer.close()

    def reply(self, writer: asyncio.StreamWriter, status: int, body: bytes = b"") -> None:
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body)

    async def stream(self, writer: asyncio.StreamWriter, body: dict) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        count = body.get("max_tokens", body.get("n_predict", 2)) - (self.fault == "short")
        for number in range(count):
            async with self.tick:
                await self.tick.wait()
            if self.fault == "hang" and number == 2:
                await asyncio.sleep(3600)
            if self.fault == "dies" and number == 2:
                os._exit(3)
            if self.fault == "breaks" and number == 2:
                writer.transport.abort()
                return
            choice = {"finish_reason": "length" if number == count - 1 else None}
            if self.fault != "no-ids":
                choice["token_ids"] = [token(body["prompt"], number)]
            data = {"choices": [choice], "tokens": choice.get("token_ids", [])}  # OpenAI's place, and llama.cpp's own
            if self.fault == "error-event":
                data = {"error": {"message": "told to fail"}}
            writer.write(b"data: " + json.dumps(data).encode() + b"\n\n")
            await writer.drain()
        writer.write(b"data: [DONE]\n\n")


async def main(port: int, fault: str) -> None:
    server = Server(fault)
    if fault == "child":  # a worker in a session of its own, as engines have them
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
        print("worker", worker.pid, flush=True)
    async with await asyncio.start_server(server.answer, "127.0.0.1", port):
        await server.steps()


if __name__ == "__main__":
    wish = sys.argv[2] if len(sys.argv) > 2 else ""
    if wish == "exits":
        print("no such model", file=sys.stderr)
        sys.exit(2)
    if wish == "stuck":
        time.sleep(3600)
    asyncio.run(main(int(sys.argv[1]), wish))

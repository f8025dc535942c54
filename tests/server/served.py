"""The real server as a process of its own, and plain HTTP to ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from tests.cli.command import COMMAND, environment
from tests.waiting import PATIENCE, wait_until


@dataclass(slots=True)
class Served:
    """A running ``localmoe serve``; ``url`` ends without a slash."""

    process: subprocess.Popen[bytes]
    log: IO[str]
    url: str = ""

    @property
    def lines(self) -> list[str]:
        """What it has said on stderr."""
        self.log.seek(0)
        return self.log.read().splitlines()

    @property
    def worker(self) -> int:
        """Process id of its engine; 0 if there is none."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for pid in " ".join(path.read_text() for path in children).split():
            with contextlib.suppress(OSError):
                if b"engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return 0

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers (names in lower case), and the document, or the text if it is none."""
        connection = self.connect()
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, path, data, named)
            answer = connection.getresponse()
            text = answer.read().decode()
            answered = {name.lower(): value for name, value in answer.getheaders()}
        with contextlib.suppress(ValueError):
            return answer.status, answered, json.loads(text)
        return answer.status, answered, text

    def post(self, path: str, **body: object) -> Any:
        """The document that answers; the status has to be 200."""
        status, _, document = self.ask("POST", path, body)
        assert status == 200, document
        return document

    def chat(self, text: str, **more: object) -> Any:
        """A chat completion of one question, greedy."""
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", messages=messages, **{"temperature": 0} | more)

    def end(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def serving(
    home: Path, *args: str | Path, env: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """``localmoe serve ARGS --port 0``, listening; ``env`` in place of a home's own."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(
            [*COMMAND, "serve", *map(str, args), "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment(home) if env is None else env,
            cwd=home,
        ) as process,
    ):
        served = Served(process, log)
        try:

            def is_up() -> bool:
                found = [line for line in served.lines if "listening on http" in line]
                served.url = found[0].rpartition(" ")[2] if found else ""
                return bool(found) or process.poll() is not None

            wait_until(is_up)
            assert served.url, served.lines
            yield served
        finally:
            process.kill()


def events_of(text: str) -> list[Any]:
    """The documents of a stream of ``data:`` lines, without [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]

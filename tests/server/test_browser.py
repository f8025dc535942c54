"""What a hostile page does in a real browser to a server on the same machine: nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.needs import missing
from tests.server.served import Served
from tests.waiting import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
HOSTILE = "evil.example"  # resolves to this machine in the browser, as after a DNS rebinding
BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
PAGE = """<!doctype html><pre id=out>unfinished</pre><iframe name=frame></iframe>
<form id=form target=frame method=post enctype=text/plain action="SERVER/v1/chat/completions">
<input name='{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "x": "' value='"}'>
</form>
<script>
const body = BODY, chat = "SERVER/v1/chat/completions";
const ways = {
  read: () => fetch("SERVER/v1/models"),
  metrics: () => fetch("SERVER/metrics"),
  simple: () => fetch(chat, {method: "POST", headers: {"content-type": "text/plain"}, body}),
  blind: () => fetch(chat, {method: "POST", mode: "no-cors", body}),
  preflight: () =>
    fetch(chat, {method: "POST", headers: {"content-type": "application/json"}, body}),
  keyed: () => fetch("SERVER/v1/models", {headers: {authorization: "Bearer x"}}),
};
(async () => {
  const found = {};
  for (const [name, way] of Object.entries(ways))
    found[name] = await way().then(async r => r.type + " " + (await r.text()), e => e.name);
  document.getElementById("form").submit();
  await new Promise(done => { frames[0].onload = done; setTimeout(done, 1500); });
  document.getElementById("out").textContent = "<<" + JSON.stringify(found) + ">>";
})();
</script>"""


@pytest.fixture
def page(nano: Served) -> Iterator[str]:
    """The address of a hostile site's page, which knows where the server is."""
    text = PAGE.replace("SERVER", nano.url).replace("BODY", json.dumps(BODY))

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://{HOSTILE}:{site.server_port}/"
        site.shutdown()


def shown(home: Path, url: str) -> str:
    """The document at that address, after its scripts have run."""
    if CHROMIUM is None:
        missing("no Chromium", expected=False)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}",
        f"--host-resolver-rules=MAP {HOSTILE} 127.0.0.1", "--timeout=60000",
        "--virtual-time-budget=20000", "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.stdout


def written(served: Served) -> list[str]:
    """How many tokens the model has written, as the server counts them."""
    return re.findall(
        r"^localmoe_tokens_predicted_total .*", served.ask("GET", "/metrics")[2], re.M
    )


def test_a_hostile_page_gets_nothing(nano: Served, page: str, tmp_path: Path) -> None:
    """A page of another site reads something of the server, or makes the model work."""
    before = written(nano)
    text = shown(tmp_path, page)
    found = re.search(r"&lt;&lt;(.*)&gt;&gt;", text)
    assert found, text[-2000:]
    answers = json.loads(found[1].replace("&quot;", '"'))
    assert answers == {
        **dict.fromkeys(("read", "metrics", "simple", "preflight", "keyed"), "TypeError"),
        "blind": "opaque ",
    }
    refused = [line for line in nano.lines if "chat/completions 403" in line]
    assert len(refused) >= 3  # simple, blind, the form
    assert written(nano) == before


def test_a_name_that_was_bound_to_this_machine_is_none_of_ours(
    nano: Served, tmp_path: Path
) -> None:
    """After DNS rebinding a page is of the server's own origin, and reads what it likes."""
    port = urlsplit(nano.url).port
    text = shown(tmp_path, f"http://{HOSTILE}:{port}/v1/models")
    assert "does not go by the name evil.example" in text
    assert "nano" not in text

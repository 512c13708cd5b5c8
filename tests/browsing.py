"""Pages in a headless Chromium that reaches nothing but this machine."""

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from paper import browser as chromium

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # browsers ask for it on their own, for the page that only forwards
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder while it is served from this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextlib.contextmanager
def launched() -> Iterator:
    """A Chromium; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    try:
        program = chromium()
    except SystemExit as error:
        pytest.skip(str(error))
    closed = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", closed])
        yield browser
        browser.close()


def visit(browser, address, *, size, scheme):
    """Open a page; returns it with the list that collects what goes wrong."""
    wrong: list[str] = []
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    shown = context.new_page()
    host = urlparse(address).netloc
    shown.on("request", lambda r: leaves(r.url, host) and wrong.append(f"leaves this machine: {r.url}"))
    shown.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
    shown.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status}: {r.url}"))
    shown.on("console", lambda m: m.type == "error" and wrong.append(f"console: {m.text}"))
    shown.on("pageerror", lambda e: wrong.append(f"error: {e}"))
    shown.on("dialog", lambda d: (wrong.append(f"dialog: {d.message}"), d.dismiss()))
    shown.goto(address, wait_until="networkidle")
    return shown, wrong


def leaves(url: str, host: str) -> bool:
    parts = urlparse(url)
    return parts.scheme not in ("data", "blob", "about") and parts.netloc != host

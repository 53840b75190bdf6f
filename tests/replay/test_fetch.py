# SPDX-License-Identifier: Apache-2.0
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bodocache.errors import ConfigError, TraceError
from bodocache.replay import fetch as fetch_module
from bodocache.replay.fetch import NAMED, NamedTrace, fetch

CONTENT = b'{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [0]}\n' * 5000


class Server(ThreadingHTTPServer):
    """Serves ``body`` at every path but /absent, and remembers what was asked."""

    body = CONTENT
    declared_nbytes = len(CONTENT)

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/trace.jsonl"

    def handle_error(self, request, client_address):
        """Say nothing: a client that hangs up in the middle is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/absent" else 200)
        self.send_header("Content-Length", str(self.server.declared_nbytes))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def named(server, monkeypatch):
    trace = NamedTrace(server.url, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "MIT", "x")
    monkeypatch.setitem(NAMED, "small", trace)
    return trace


def test_trace_is_fetched_and_reported_on(named, tmp_path):
    told = []
    fetched = fetch("small", tmp_path / "new", progress=lambda *done: told.append(done))
    assert fetched.path == tmp_path / "new" / "small.jsonl"
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.downloaded, fetched.trace) == (True, named)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert list(fetched.path.parent.iterdir()) == [fetched.path]


def test_trace_that_is_there_is_not_downloaded_again(server, named, tmp_path):
    fetch("small", tmp_path)
    assert fetch("small", tmp_path).downloaded is False
    assert len(server.asked) == 1


def test_other_file_in_the_way_is_kept(server, named, tmp_path):
    (tmp_path / "small.jsonl").write_text("mine")
    with pytest.raises(TraceError, match=r"already there: sha256 .* move it away"):
        fetch("small", tmp_path)
    assert (tmp_path / "small.jsonl").read_text() == "mine"
    assert not server.asked


@pytest.mark.parametrize("body", [CONTENT[:-1] + b"x", CONTENT[:-1], CONTENT + b"x", b""], ids=len)
def test_wrong_checksum_leaves_nothing_behind(server, named, tmp_path, body):
    server.body, server.declared_nbytes = body, len(body)
    with pytest.raises(TraceError, match=f"sha256 .*, expected {named.sha256}"):
        fetch("small", tmp_path)
    assert not list(tmp_path.iterdir())


def test_endless_file_is_cut_off(server, named, tmp_path):
    server.body, server.declared_nbytes = CONTENT * 50, len(CONTENT) * 50
    told = []
    with pytest.raises(TraceError, match="sha256"):
        fetch("small", tmp_path, progress=lambda *done: told.append(done))
    assert told[-1][0] == len(CONTENT) + 1


def test_connection_that_breaks_off_leaves_nothing_behind(server, named, tmp_path):
    server.declared_nbytes = len(CONTENT) + 1000
    server.body = CONTENT[:1000]
    with pytest.raises(TraceError, match=r"sha256|cannot be fetched"):
        fetch("small", tmp_path)
    assert not list(tmp_path.iterdir())


def test_absent_page_is_a_clear_error(server, named, tmp_path):
    with pytest.raises(TraceError, match=r"/absent -> .*cannot be fetched: HTTP Error 404"):
        fetch("small", tmp_path, url=server.url.replace("/trace.jsonl", "/absent"))


def test_redirect_to_a_file_is_refused(server, named, tmp_path):
    with pytest.raises(TraceError, match="cannot be fetched"):
        fetch("small", tmp_path, url=server.url.replace("/trace.jsonl", "/elsewhere"))


def test_silent_server_runs_into_the_timeout(named, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(TraceError, match="timed out"):
            fetch("small", tmp_path, url=url, timeout_s=0.05)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "trace.jsonl", "http:///x"])
def test_only_http_urls_are_taken(tmp_path, url):
    with pytest.raises(ConfigError, match="expected http or https"):
        fetch("mooncake-conversation", tmp_path, url=url)


def test_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"'mooncake'.*one of: mooncake-conversation"):
        fetch("mooncake", tmp_path)


def test_every_named_trace_is_whole():
    for trace in fetch_module.NAMED.values():
        assert trace.url.startswith("https://")
        assert len(bytes.fromhex(trace.sha256)) == 32
        assert trace.nbytes > 0
        assert trace.licence

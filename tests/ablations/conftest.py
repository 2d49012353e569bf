"""A publisher of data files on this machine, for all tests that download."""

import functools
import http.server
import threading

import pytest


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """The folder that is served and its address, with an empty cache and no data of the system's."""
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("RECURVE_DATA", str(tmp_path / "own"))
    yield served, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()

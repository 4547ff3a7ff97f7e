"""Small downloads: what is allowed, how much, and every reason for a failure."""

import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from vit_jax import web
from vit_jax.errors import UserError
from vit_jax.prediction import inputs as inputs_module
from vit_jax.prediction.inputs import inputs

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def png():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.asked.append(self.path)
        if path == "/busy.png" and self.server.asked.count(self.path) == 1:
            self.send_error(503)
        elif path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "http://elsewhere.example/a.png")
            self.end_headers()
        elif path in ("/first.png", "/loop.png"):
            self.send_response(301)
            self.send_header("Location", {"/first.png": "/image.png"}.get(path, path))
            self.end_headers()
        elif path in ("/image.png", "/busy.png"):
            self.answer(png())
        elif path == "/half.png":
            self.answer(png()[:50], announced=len(png()))
        elif path == "/page":
            self.answer(b"<!DOCTYPE html><p>Sign in")
        else:
            self.send_error(404)

    def answer(self, content, announced=0):
        self.send_response(200)
        self.send_header("Content-Length", str(announced or len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("VIT_JAX_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(web, "RETRY", web.RETRY.new(backoff_factor=0))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def test_an_image_at_an_address(address, server):
    (found,) = inputs(f"{address}/image.png?key=secret", 3)
    assert found.name == f"{address}/image.png?key=secret"
    assert found.read() == png()
    (found,) = inputs([f"{address}/busy.png"], 3)
    assert found.read() == png()
    assert server.asked[1:] == ["/busy.png"] * 2
    (found,) = inputs(f"{address}/first.png", 3)
    assert found.read() == png()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent.png?key=secret", "/absent.png cannot be downloaded: 404 Not Found"),
        ("/half.png", "/half.png cannot be downloaded: .*(bytes read|more expected)"),
        ("/moved.png", "/moved.png cannot be downloaded: http:// is not secure, expec"),
        ("/loop.png", "/loop.png cannot be downloaded: too many redirections"),
        ("/page", "/page: the server sent a web page, not an image"),
    ],
)
def test_each_failure_has_its_reason(path, message, address):
    (found,) = inputs(f"{address}{path}", 3)
    with pytest.raises(UserError, match=message) as error:
        found.read()
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_large_files_are_not_downloaded(address, monkeypatch):
    monkeypatch.setattr(inputs_module, "MOST_BYTES", len(png()))
    (found,) = inputs(f"{address}/image.png", 3)
    assert found.read() == png()
    monkeypatch.setattr(inputs_module, "MOST_BYTES", len(png()) - 1)
    with pytest.raises(UserError, match=r"it has more than 0.0 MiB; fetch it by other"):
        found.read()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host.example/a.png", "http:// is not secure, expected https://"),
        ("https://[", "is not an address"),
    ],
)
def test_addresses_that_are_not_allowed(url, message, server):
    (found,) = inputs(url, 3)
    with pytest.raises(UserError, match=message):
        found.read()


def test_without_network_access_nothing_is_asked(address, server, monkeypatch):
    monkeypatch.setenv("VIT_JAX_OFFLINE", "1")
    (found,) = inputs(f"{address}/image.png", 3)
    with pytest.raises(UserError, match="VIT_JAX_OFFLINE or HF_HUB_OFFLINE is set"):
        found.read()
    assert server.asked == []

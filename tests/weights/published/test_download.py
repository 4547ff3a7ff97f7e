import concurrent.futures
import dataclasses
import hashlib
import http.server
import io
import json
import logging
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import save

from vit_jax import web
from vit_jax.cache import cache_dir
from vit_jax.checkpoints.description import Description
from vit_jax.config import default_config, to_plain
from vit_jax.data.preprocessing import Preprocessing
from vit_jax.errors import UserError
from vit_jax.models import Architecture
from vit_jax.weights.formats.layout import unflatten
from vit_jax.weights.loading import load_weights
from vit_jax.weights.published import download, transfer, zoo
from vit_jax.weights.published.download import fetch, resolve
from vit_jax.weights.published.families import Mirror, Published
from vit_jax.weights.published.names import find
from vit_jax.weights.saving import save_weights


def npz(count=300_000):
    """Makes an archive larger than the pieces that are read from a socket."""
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez(file, cls=rng.standard_normal(count).astype(np.float32))
    return file.getvalue()


NPZ = npz()
SHA256 = hashlib.sha256(NPZ).hexdigest()
SAFETENSORS = save({"cls": np.arange(9, dtype=np.float32)})
GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
TORCH = (GOLDEN / "torch_zip.pth").read_bytes()
LEGACY = (GOLDEN / "torch_legacy.pth").read_bytes()
HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


@dataclasses.dataclass
class File:
    """The server's behaviour at a path."""

    content: bytes = NPZ
    statuses: list = dataclasses.field(default_factory=list)  # of the first responses
    drops: list = dataclasses.field(
        default_factory=list
    )  # bytes after which to hang up
    ranges: bool = True
    etag: str = '"one"'
    headers: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # delay before the content
    announced: int = 0  # Content-Length, if not the true one


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        file = self.server.files.get(self.path, File(statuses=[404] * 99))
        status = file.statuses.pop(0) if file.statuses else 200
        if status != 200:
            self.answer(status, file.headers | {"Content-Length": "0"})
            return
        asked, headers = self.headers.get("Range"), dict(file.headers)
        content, length = file.content, len(file.content)
        same = self.headers.get("If-Range") in (None, file.etag)
        if asked and file.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= length:
                self.answer(416, {"Content-Length": "0"})
                return
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{length - 1}/{length}"
        if file.etag:
            headers["ETag"] = file.etag
        headers["Content-Length"] = str(file.announced or len(content))
        self.answer(status, headers)
        time.sleep(file.seconds)
        if file.drops:
            content = content[: file.drops.pop(0)]
            self.close_connection = True
        self.wfile.write(content)
        if file.announced:
            self.close_connection = True

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = {}, []

    def put(self, path, **what):
        """Adds a file with this behaviour; returns its address."""
        self.files[path] = File(**what)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def asked(self, path):
        return [headers for found, headers in self.requests if found == path]

    def handle_error(self, request, client_address):
        pass  # a client that hung up


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path, caplog):
    """Sets an empty cache, no proxy, no token, and no delay between retries."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("VIT_JAX_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "_RETRY", transfer._RETRY.new(backoff_factor=0))
    caplog.set_level(logging.INFO, "vit_jax")


def row(*urls, sha256=None, name="model"):
    return Published(name, tuple(Mirror(url, sha256) for url in urls))


def left(cache):
    """Lists the files that a user sees in the cache."""
    return sorted(
        path.name
        for path in cache.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    )


def test_a_file_is_downloaded_once(server, tmp_path, caplog):
    url = server.put("/models/a.npz")
    path = fetch(url)
    assert path == tmp_path / "cache" / f"127.0.0.1_{server.server_port}/models/a.npz"
    assert path.read_bytes() == NPZ
    assert fetch(url) == path
    assert len(server.requests) == 1
    assert left(tmp_path) == ["a.npz"]
    assert f"#sha256={SHA256}" in caplog.text


def test_the_second_mirror_is_used_if_the_first_refuses(server, caplog):
    first = server.put("/first/a.npz", statuses=[403])
    second = server.put("/second/a.npz")
    assert fetch(row(first, second)).read_bytes() == NPZ
    assert f"download failed: {first}: 403 Forbidden" in caplog.text
    assert f"downloaded a.npz from {second}" in caplog.text


def test_one_message_reports_the_failures_of_all_mirrors(server, tmp_path):
    urls = [
        server.put("/one/a.npz", statuses=[403]),
        server.put("/two/a.npz", statuses=[404]),
        server.put("/three/a.npz", content=HTML),
        server.put("/four/a.npz", content=NPZ[:1000] + b"changed" + NPZ[1007:]),
        "http://127.0.0.1:9/a.npz",
    ]
    with pytest.raises(UserError) as caught:
        fetch(row(*urls, sha256=SHA256))
    message = str(caught.value)
    assert message.startswith("model could not be downloaded:\n")
    for url, status in zip(
        urls,
        (
            "403 Forbidden",
            "404 Not Found",
            "received an HTML or XML page",
            "its SHA-256 is ",
            "no response: ",
        ),
        strict=True,
    ):
        assert f"  {url}: {status}" in message
    by_hand = tmp_path / "cache" / f"127.0.0.1_{server.server_port}" / "one" / "a.npz"
    assert f"belongs at {by_hand} (its SHA-256 is {SHA256})" in message
    assert left(tmp_path) == []
    by_hand.write_bytes(NPZ)  # which the message recommends
    assert fetch(row(*urls, sha256=SHA256)) == by_hand


def test_a_broken_connection_is_resumed(server):
    url = server.put("/a.npz", drops=[500_000, 400_000])
    assert fetch(url).read_bytes() == NPZ
    first, second, third = server.asked("/a.npz")
    assert "Range" not in first
    assert second["If-Range"] == third["If-Range"] == '"one"'
    starts = [int(headers["Range"].strip("bytes=-")) for headers in (second, third)]
    assert 0 < starts[0] < starts[1] < len(NPZ)


def test_a_download_is_resumed_by_a_later_call(server, monkeypatch, tmp_path):
    url = server.put("/a.npz", drops=[300_000] * 9)
    with monkeypatch.context() as patched:
        patched.setattr(transfer, "_RETRY", transfer._RETRY.new(total=0))
        with pytest.raises(UserError, match="interrupted: "):
            fetch(url)
    assert left(tmp_path) == ["a.npz.partial", "a.npz.partial.json"]
    server.files["/a.npz"] = File()
    assert fetch(url).read_bytes() == NPZ
    assert server.asked("/a.npz")[-1]["Range"].startswith("bytes=")
    assert left(tmp_path) == ["a.npz"]


def test_a_download_without_progress_is_given_up(server):
    url = server.put("/a.npz", drops=[0] * 99)
    with pytest.raises(UserError, match="interrupted: "):
        fetch(url)
    assert len(server.requests) == 1 + transfer._RETRY.total


@pytest.mark.parametrize(
    "changes", [{"ranges": False}, {"etag": ""}, {"etag": 'W/"one"'}]
)
def test_a_download_that_cannot_be_resumed_starts_again(server, changes):
    url = server.put("/a.npz", drops=[300_000], **changes)
    assert fetch(url).read_bytes() == NPZ
    url = server.put("/b.npz", drops=[300_000] * 99, **changes)
    # Receiving the same bytes again does not count as progress.
    with pytest.raises(UserError, match="interrupted: "):
        fetch(url)


def left_by_another_process(url, content, etag, length=None):
    path = cache_dir() / download._cache_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.partial").write_bytes(content)
    note = transfer._Note(etag, length or len(NPZ))
    note_path = path.with_name(f"{path.name}.partial.json")
    note_path.write_text(json.dumps(note._asdict()))
    return note_path


def test_another_file_at_the_same_address_starts_again(server):
    url = server.put("/a.npz", etag='"two"')
    left_by_another_process(url, b"\0" * 300_000, '"one"')
    assert fetch(url).read_bytes() == NPZ
    assert server.asked("/a.npz")[0]["If-Range"] == '"one"'


@pytest.mark.parametrize("note", ["", "[]", '{"x": 1}', '{"checksums": {"no": ""}}'])
def test_a_damaged_note_is_ignored(server, note):
    url = server.put("/a.npz")
    left_by_another_process(url, b"\0" * 100, '"one"').write_text(note)
    assert fetch(url).read_bytes() == NPZ


def test_a_partial_file_longer_than_the_file_starts_again(server):
    url = server.put("/a.npz")
    left_by_another_process(url, NPZ + b"more", '"one"', len(NPZ) + 99)
    assert fetch(url).read_bytes() == NPZ


def test_a_complete_partial_file_needs_only_its_checks(server):
    url = server.put("/a.npz")
    left_by_another_process(url, NPZ, '"one"')
    assert fetch(url).read_bytes() == NPZ
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("a.npz", HTML, "an HTML or XML page, such as a server's error message"),
        ("a.npz", b"", "an empty file"),
        ("a.npz", NPZ[:-50], "a damaged archive"),
        ("a.safetensors", NPZ, "a NumPy archive (.npz) of 1 arrays"),
        ("config.json", HTML, "an HTML or XML page"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        ("download", HTML, "an HTML or XML page"),
    ],
)
def test_a_file_that_does_not_fit_its_name_is_refused(
    server, tmp_path, name, content, status
):
    with pytest.raises(UserError) as caught:
        fetch(server.put(f"/{name}", content=content))
    assert f"/{name}: received {status}" in str(caught.value)
    assert ", expected " in str(caught.value)
    assert left(tmp_path) == []


def test_a_wrong_length_is_refused(server, tmp_path):
    url = server.put("/a.npz", announced=len(NPZ) + 5, etag="")
    with pytest.raises(UserError, match="interrupted: "):
        fetch(url)
    url = server.put("/b.npz", announced=10)
    left_by_another_process(url, NPZ[:100], '"one"')
    with pytest.raises(UserError, match=f"110 bytes received, expected {len(NPZ):,}"):
        fetch(url)
    assert not [name for name in left(tmp_path) if name.startswith("b.npz")]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Linked-ETag": f'"{"0" * 64}"'},
        {"x-goog-hash": "crc32c=AAAAAA==,md5=AAAAAAAAAAAAAAAAAAAAAA=="},
    ],
)
def test_the_servers_own_checksum_is_checked(server, headers):
    with pytest.raises(UserError, match=r"(SHA-256|MD5) is .*, expected 0{32}"):
        fetch(server.put("/a.npz", headers=headers))


def test_an_address_may_end_in_a_checksum(server):
    url = server.put("/a.npz")
    with pytest.raises(UserError, match=f"SHA-256 is {SHA256}, expected 000"):
        resolve(f"{url}#sha256={'0' * 64}")
    path = resolve(f"{url}#sha256={SHA256.upper()}").path
    with pytest.raises(UserError, match="Remove it to download it again"):
        resolve(f"{url}#sha256={'0' * 64}")
    assert path.is_file()
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        resolve(f"{url}#sha256=abc")


def test_the_beginning_of_a_checksum_is_compared(server):
    url = server.put("/a.npz")
    assert fetch(row(url, sha256=SHA256[:8])).is_file()
    with pytest.raises(UserError, match="its SHA-256 begins with 00000000"):
        fetch(row(server.put("/b.npz"), sha256="00000000"))


def test_a_cached_file_must_have_the_checksum_in_the_table(server):
    url, whole = server.put("/a.npz"), npz(10)
    path = fetch(row(url, sha256=SHA256[:8]))
    path.write_bytes(whole)
    for known in (SHA256[:8], SHA256):
        with pytest.raises(UserError) as caught:
            fetch(row(url, sha256=known))
        message = str(caught.value)
        assert message.startswith(f"{path} is not the file that {url} should be: its ")
        assert f"{hashlib.sha256(whole).hexdigest()}, expected {known}" in message
        assert message.endswith("Remove it to download it again.")
    assert fetch(row(url)) == path
    assert path.read_bytes() == whole
    assert len(server.requests) == 1
    path.unlink()
    assert fetch(row(url, sha256=SHA256[:8])).read_bytes() == NPZ


def test_an_md5_in_the_table_is_compared(server, tmp_path):
    url = server.put("/model.npz")
    digest = hashlib.md5(NPZ).hexdigest()
    mirrors = [Mirror(url, md5=md5) for md5 in (digest[:6], "000000")]
    right, wrong = (Published("model", (mirror,)) for mirror in mirrors)
    with pytest.raises(UserError, match=f"its MD5 is {digest}, expected 000000"):
        fetch(wrong)
    path = fetch(right)
    assert path.read_bytes() == NPZ
    with pytest.raises(UserError, match=f"its MD5 is {digest}, expected 000000"):
        fetch(wrong)
    path.unlink()
    server.files.clear()
    with pytest.raises(UserError, match=f"its MD5 begins with {digest[:6]}"):
        fetch(right)


def test_an_address_in_the_table_is_checked_with_its_checksum():
    url = find("deit_base_patch16_224").mirrors[1].url
    cached(url).write_bytes(NPZ)
    for source in (url, f"{url}#sha256={'0' * 64}"):
        with pytest.raises(UserError, match=f"{SHA256}, expected (b5f2ef4d|0{{64}})"):
            resolve(source)
    assert resolve(f"{url}#sha256={SHA256}").path.read_bytes() == NPZ


def test_every_place_for_a_file_is_listed_with_its_checksum(
    server, monkeypatch, tmp_path
):
    urls = [server.put(f"/{i}/a.npz", statuses=[404] * 9) for i in range(3)]
    known = (None, SHA256[:8], SHA256)
    published = Published("model", tuple(map(Mirror, urls, known)))
    folder = tmp_path / "cache" / f"127.0.0.1_{server.server_port}"
    words = (
        "its checksum is unknown",
        f"its SHA-256 begins with {SHA256[:8]}",
        f"its SHA-256 is {SHA256}",
    )
    with pytest.raises(UserError) as failed:
        fetch(published)
    monkeypatch.setenv("VIT_JAX_OFFLINE", "1")
    with pytest.raises(UserError) as offline:
        fetch(published)
    for caught in (failed, offline):
        assert str(caught.value).splitlines()[-3:] == [
            f"  {url} belongs at {folder}/{i}/a.npz ({word})"
            for i, (url, word) in enumerate(zip(urls, words, strict=True))
        ]
    (folder / "2/a.npz").write_bytes(NPZ)
    assert fetch(published) == folder / "2/a.npz"


def test_transient_errors_are_retried(server):
    url = server.put("/a.npz", statuses=[503, 500, 429])
    assert fetch(url).read_bytes() == NPZ
    url = server.put("/b.npz", statuses=[503] * 9)
    with pytest.raises(UserError, match="503 Service Unavailable"):
        fetch(url)


def test_a_slow_server_is_given_up(server, monkeypatch):
    monkeypatch.setattr(web, "TIMEOUT", (1, 0.05))
    monkeypatch.setattr(transfer, "_RETRY", transfer._RETRY.new(total=1))
    with pytest.raises(UserError, match="timed out"):
        fetch(server.put("/a.npz", seconds=0.3))


def test_redirects_are_followed_and_must_stay_secure(server, monkeypatch):
    target = server.put("/b.npz")
    url = server.put("/a.npz", statuses=[302], headers={"Location": target})
    assert fetch(url).name == "a.npz"
    monkeypatch.setattr(web, "_LOCAL", ("127.0.0.1",))
    elsewhere = target.replace("127.0.0.1", "localhost")
    url = server.put("/c.npz", statuses=[302], headers={"Location": elsewhere})
    with pytest.raises(UserError, match="http:// is not secure"):
        fetch(url)
    with pytest.raises(UserError, match="http:// is not secure"):
        fetch("http://example.org/a.npz")


@pytest.mark.parametrize(
    ("location", "status"),
    [
        ("http://[bad", "redirects to an invalid address (Invalid IPv6 URL)"),
        ("//[::1", "redirects to an invalid address (Invalid IPv6 URL)"),
        ("https://127.0.0.1:port/a.npz", "no response: "),
        ("ftp://127.0.0.1/a.npz", "no response: "),
        ("http://\xff[/", "redirects to an invalid address ("),
    ],
)
def test_an_invalid_redirect_counts_as_a_failed_mirror(
    server, tmp_path, location, status
):
    first = server.put("/1/a.npz", statuses=[302], headers={"Location": location})
    with pytest.raises(UserError) as caught:
        fetch(first)
    assert f"  {first}: {status}" in str(caught.value)
    assert left(tmp_path) == []
    server.files["/1/a.npz"].statuses.append(302)
    assert fetch(row(first, server.put("/2/a.npz"))).read_bytes() == NPZ


def changed(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.npz", changed(NPZ, 700_000), "the checksum of 'cls.npy' does not match"),
        ("a.npz", changed(NPZ, 140), "the header of its array"),
        ("download", changed(NPZ, 700_000), "the checksum of 'cls.npy' does not match"),
        ("a.safetensors", SAFETENSORS[:-1], ""),
        ("a.safetensors", SAFETENSORS + b"\0", ""),
        ("a.pth", changed(TORCH, 3300), "the checksum of 'torch_zip/data/0' does not"),
        ("a.pth", LEGACY[:-1], "its storage"),
    ],
)
def test_a_damaged_file_does_not_get_into_the_cache(
    server, tmp_path, caplog, name, content, reason
):
    damaged = server.put(f"/1/{name}", content=content)
    with pytest.raises(UserError) as caught:
        fetch(damaged)
    assert f"{damaged}: the received file cannot be read: {reason}" in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert left(tmp_path) == []
    whole = server.put("/2/a.npz")
    assert fetch(row(damaged, whole)).read_bytes() == NPZ
    assert f"failed: {damaged}: the received file cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.pth", TORCH), ("a.bin", LEGACY), ("a.safetensors", SAFETENSORS)],
)
def test_undamaged_files_of_every_kind_are_downloaded(server, name, content):
    assert fetch(server.put(f"/{name}", content=content)).read_bytes() == content


@pytest.mark.parametrize("name", ["VIT_JAX_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_only_the_cache_is_used(server, monkeypatch, name):
    url, other = server.put("/a.npz"), server.put("/b.npz")
    path = fetch(url)
    monkeypatch.setenv(name, "1")
    assert fetch(url) == path
    with pytest.raises(
        UserError, match="not in the cache, and downloads are dis"
    ) as error:
        fetch(other)
    assert other in str(error.value)
    assert len(server.requests) == 1


def test_threads_that_want_the_same_file_download_it_once(server):
    url = server.put("/a.npz", seconds=0.1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [url] * 4))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == NPZ
    assert len(server.requests) == 1


def test_processes_that_want_the_same_file_download_it_once(server, tmp_path):
    url = server.put("/a.npz", seconds=0.5)
    path = tmp_path / "a.npz"
    program = (
        "import pathlib, sys; from vit_jax.weights.published.transfer import transfer; "
        "transfer(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, url, str(path)]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert path.read_bytes() == NPZ
    assert len(server.requests) == 1


def test_an_unwritable_cache_gives_one_clear_message(server, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder belongs")
    with pytest.raises(
        UserError, match=r"cache .* cannot be written: .* VIT_JAX_CACHE"
    ):
        fetch(server.put("/a.npz"))


def test_a_full_disk_gives_one_clear_message(server, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "_new_note", full)
    with pytest.raises(UserError, match="No space left on device"):
        fetch(server.put("/a.npz"))


def test_addresses_that_differ_only_in_the_query_are_two_files(server):
    one, two = server.put("/get.npz?id=1"), server.put("/get.npz?id=2")
    assert fetch(one) != fetch(two)
    assert fetch(one).name == "get.npz"


@pytest.mark.parametrize(
    "url",
    ["https://host/../../x.npz", "https://host/", "https://[x/y", "hf:a/b/../../../x"],
)
def test_no_address_leads_out_of_the_cache(url):
    with pytest.raises(UserError, match=r"is not (an|the) address"):
        resolve(url)


def test_any_text_that_is_not_a_name_is_refused():
    for text in ("a" * 999, "https:" + "a" * 999, "", "~nobody here/x", "\0"):
        with pytest.raises(UserError):
            resolve(text)


def test_addresses_of_googles_buckets(monkeypatch):
    monkeypatch.setenv("VIT_JAX_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"storage\.googleapis\.com/vit_models/sam/x.npz"
    ):
        resolve("gs://vit_models/sam/x.npz")


@pytest.fixture
def hub(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")

    def put(repository, revision="main", **files):
        for name, content in files.items():
            name = name.replace("__", ".")
            server.put(f"/{repository}/resolve/{revision}/{name}", content=content)

    return put


def safetensors(**arrays):
    return save(arrays)


TENSOR = np.zeros(3, np.float32)


def test_the_hub_gives_weights_with_their_companions(hub, server, tmp_path):
    hub("me/vit", model__safetensors=safetensors(a=TENSOR), config__json=b'{"a": 1}')
    path, published = resolve("hf:me/vit")
    assert path.parent == tmp_path / "cache/huggingface.co/me/vit/resolve/main"
    assert sorted(left(path.parent)) == ["config.json", "model.safetensors"]
    assert published.name == "hf:me/vit"
    asked = len(server.requests)
    assert resolve("hf:me/vit").path == path
    assert len(server.requests) == asked


def test_the_hub_gives_a_revision_and_a_file(hub):
    hub("me/vit", "v2", weights__npz=NPZ)
    assert resolve("hf:me/vit@v2/weights.npz").path.read_bytes() == NPZ


def test_the_hub_gives_shards(hub):
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
    hub(
        "me/big",
        **{
            "model__safetensors__index__json": json.dumps(index).encode(),
            "m-1__safetensors": safetensors(a=TENSOR),
            "m-2__safetensors": safetensors(b=TENSOR),
        },
    )
    path = resolve("hf:me/big").path
    assert path.name == "model.safetensors.index.json"
    assert {"m-1.safetensors", "m-2.safetensors"} < set(left(path.parent))
    path.with_name("m-2.safetensors").unlink()
    resolve("hf:me/big")
    assert path.with_name("m-2.safetensors").is_file()


@pytest.mark.parametrize("index", [{"weight_map": {"a": "../../x"}}, {}, []])
def test_an_index_may_only_name_files_beside_it(hub, index):
    hub("me/bad", model__safetensors__index__json=json.dumps(index).encode())
    with pytest.raises(UserError, match="not an index of shards"):
        resolve("hf:me/bad")


def test_the_token_is_sent_only_to_the_hub(hub, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub("me/vit", model__safetensors=safetensors(a=TENSOR))
    resolve("hf:me/vit")
    fetch(server.put("/a.npz"))
    sent = [headers.get("Authorization") for _, headers in server.requests]
    assert sent == ["Bearer secret"] * (len(sent) - 1) + [None]


def test_the_message_for_a_private_model_names_the_token(hub, server):
    for name in ("config.json", "model.safetensors"):
        server.put(f"/me/secret/resolve/main/{name}", statuses=[401])
    with pytest.raises(UserError, match=r"401 Unauthorized \(private.*HF_TOKEN"):
        resolve("hf:me/secret")


def test_paths_are_not_downloaded(tmp_path):
    path = tmp_path / "ViT-B_16.npz"
    with pytest.raises(UserError, match=r"published at https://storage.*ViT-B_16.npz"):
        resolve(path)
    with pytest.raises(UserError, match="there is nothing at"):
        resolve(f"file://{path}")
    path.write_bytes(NPZ)
    for source in (path, str(path), f"file://{path}"):
        assert resolve(source) == (path, None)


def test_a_published_name_is_downloaded(server, monkeypatch):
    url = server.put("/B_16.npz")
    known = dataclasses.replace(zoo.MODELS["sam/ViT-B_16"], mirrors=(Mirror(url),))
    monkeypatch.setitem(zoo.MODELS, "sam/ViT-B_16", known)
    path, published = resolve("sam/ViT-B_16")
    assert path.read_bytes() == NPZ
    assert published is known


NOT_FREE = "has a licence that does not allow every use: CC-BY-NC 4.0 (no commercial"


def test_a_licence_that_is_not_free_is_said(server, monkeypatch, tmp_path, caplog):
    url = server.put("/mae.npz", content=NPZ)
    known = zoo.MODELS["vit_base_patch16_224.mae"]
    here = dataclasses.replace(known, mirrors=(Mirror(url),))
    monkeypatch.setitem(zoo.MODELS, known.name, here)
    monkeypatch.setattr(download, "published_at", lambda _: here)
    local = tmp_path / "mae_pretrain_vit_base.pth"
    local.write_bytes(NPZ)
    by_name = f"{local.name}, by its name the published file,"
    for source, named in (
        (known.name, known.name),
        (url, known.name),
        (local, by_name),
    ):
        caplog.clear()
        resolve(source)
        (said,) = [r for r in caplog.records if "licence" in r.message]
        assert said.levelname == "WARNING"
        assert said.message.startswith(f"{named} {NOT_FREE}")


def test_nothing_is_said_about_a_free_licence(server, monkeypatch, caplog):
    url = server.put("/B_16.npz")
    known = dataclasses.replace(zoo.MODELS["sam/ViT-B_16"], mirrors=(Mirror(url),))
    monkeypatch.setitem(zoo.MODELS, "sam/ViT-B_16", known)
    resolve("sam/ViT-B_16")
    assert "licence" not in caplog.text


def test_a_failure_names_similar_weights_on_other_hosts(server):
    url = server.put("/L_16.npz", statuses=[403])
    name = "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0"
    with pytest.raises(UserError, match=r"vit_large_patch16_224.augreg_in21k\b"):
        fetch(dataclasses.replace(zoo.MODELS[name], mirrors=(Mirror(url),)))


@pytest.fixture
def make_weights(random_params):
    """Returns a function that writes a model of width 64 and two blocks to a path."""
    sizes = {"width": 64, "depth": 2, "mlp_dim": 32, "num_heads": 1, "num_classes": 3}
    architecture = Architecture(
        **sizes, patch_size=(4, 4), image_size=(8, 8), gelu="exact"
    )
    config, preprocessing = to_plain(default_config()), Preprocessing((8, 8))
    description = Description(architecture, preprocessing, (), config, 0)
    formats = {".npz": "google", ".safetensors": "timm"}

    def make(path):
        params = unflatten(random_params(architecture))
        return save_weights(description, params, path, formats[path.suffix])

    return make


def cached(url):
    """Returns the place in the cache for a file that is fetched by hand."""
    path = cache_dir() / download._cache_path(url)
    path.parent.mkdir(parents=True)
    return path


def test_another_model_in_the_cache_is_not_taken_for_the_named_one(make_weights):
    path = cached(find("B/16").mirrors[0].url)
    make_weights(path)
    with pytest.raises(UserError) as caught:
        load_weights("B/16")
    message = str(caught.value)
    assert message.startswith(f"{path} holds another model than B_16-i21k-300ep")
    assert "  width: 64 in the file, 768 expected\n" in message
    assert load_weights(path).description.architecture.width == 64  # by its path


def test_another_model_at_a_published_address_is_refused(hub, make_weights, tmp_path):
    name = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    content = make_weights(tmp_path / "x.safetensors").read_bytes()
    hub(f"timm/{name}", model__safetensors=content)
    for source in (name, f"hf:timm/{name}"):
        with pytest.raises(UserError, match="width: 64 in the file, 384 expected"):
            load_weights(source)
    hub("timm/mine", model__safetensors=content)
    assert load_weights("hf:timm/mine").description.architecture.width == 64


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_and_nowhere_else(server, monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    shown = []
    for i, stream in enumerate((Terminal(), io.StringIO())):
        out = io.StringIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            patched.setattr(sys, "stdout", out)
            fetch(server.put(f"/{i}/weights.npz"))
        assert out.getvalue() == ""
        shown.append(stream.getvalue())
    assert "weights.npz" in shown[0]
    assert "1.2/1.2 MB" in shown[0]
    assert shown[1] == ""


def test_secrets_in_an_address_are_not_shown(server):
    url = server.put("/a.npz?key=hidden", statuses=[403])
    with pytest.raises(UserError) as caught:
        fetch(url.replace("http://", "http://me:password@"))
    assert "hidden" not in str(caught.value)
    assert "password" not in str(caught.value)

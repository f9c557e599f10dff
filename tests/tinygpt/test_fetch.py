"""Downloads against a server in a thread that breaks off, stalls, redirects and lies."""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tinygpt import UsageError
from tinygpt.data import fetch as module
from tinygpt.data.fetch import DATASETS, FetchError, Remote, fetch, hub_url

BODY = bytes(range(256)) * 2000
REMOTE = Remote("story.txt", len(BODY), hashlib.sha256(BODY).hexdigest())


class Server(ThreadingHTTPServer):
    """Answers each request as the next item of ``script`` says ("ok" when it has run out)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.released = [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        how = server.script.pop(0) if server.script else "ok"
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if isinstance(how, int):
            self.send_error(how)
        elif how == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
        else:
            self.send_body(how, wanted)

    def send_body(self, how, wanted):
        start = int(wanted[6:].rstrip("-")) if wanted and how != "no range" else 0
        body = BODY[start:]
        if how == "wrong bytes":
            body = b"x" * len(body)
        elif how == "another file":
            body = b"<html>please log in</html>"
        self.send_response(206 if start else 200)
        if start:
            first = start + (how == "wrong range")
            self.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        if how == "too long":
            body += b"more"
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: {"break": 100_000, "stall": 100_000, "silence": 0}.get(how)])
        self.wfile.flush()
        if how in ("stall", "silence"):
            self.server.released.wait(10)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def get(server, tmp_path):
    def get(*script, **options):
        server.script[:] = script
        options = {"timeout": 5.0, "attempts": 3, "pause": 0.001, "progress": False, **options}
        return fetch(server.url + "/story.txt", tmp_path / "data" / "story.txt", REMOTE, **options)

    return get


def part_of(tmp_path):
    return tmp_path / "data" / "story.txt.part"


def test_a_file_arrives_whole_and_is_not_asked_for_twice(get, server, tmp_path):
    path = get()
    assert path.read_bytes() == BODY and not part_of(tmp_path).exists()
    assert get() == path
    assert len(server.asked) == 1


def test_a_connection_that_breaks_off_is_resumed_where_it_was(get, server):
    assert get("break", "break").read_bytes() == BODY
    assert [r for _, r in server.asked] == [None, "bytes=100000-", "bytes=200000-"]


@pytest.mark.slow
def test_a_stalled_connection_is_dropped_and_resumed(get, server):
    assert get("stall", timeout=0.1).read_bytes() == BODY
    assert server.asked[1][1] == "bytes=100000-"


def test_a_killed_download_resumes_in_the_next_call(get, server, tmp_path):
    part_of(tmp_path).parent.mkdir()
    part_of(tmp_path).write_bytes(BODY[:1234])
    assert get().read_bytes() == BODY
    assert server.asked == [("/story.txt", "bytes=1234-")]


def test_a_complete_part_is_only_checked_and_renamed(get, server, tmp_path):
    part_of(tmp_path).parent.mkdir()
    part_of(tmp_path).write_bytes(BODY)
    assert get().read_bytes() == BODY
    assert server.asked == []


def test_a_server_without_ranges_sends_the_whole_again(get):
    assert get("break", "no range").read_bytes() == BODY


def test_redirects_are_followed_with_the_range_kept(get, server):
    assert get("break", "redirect").read_bytes() == BODY
    assert server.asked[-1] == ("/elsewhere", "bytes=100000-")


def test_redirects_in_a_circle_end_in_one_line(get):
    with pytest.raises(FetchError, match="circle"):
        get(*["redirect"] * 30)


def test_server_errors_are_tried_again(get):
    assert get(503, 429).read_bytes() == BODY


def test_a_missing_file_is_not_tried_again(get, server):
    with pytest.raises(FetchError, match="404"):
        get(404)
    assert len(server.asked) == 1


def test_wrong_bytes_never_get_the_final_name(get, tmp_path):
    with pytest.raises(FetchError, match="checksum is wrong"):
        get("wrong bytes")
    assert list((tmp_path / "data").iterdir()) == []


def test_wrong_bytes_left_by_an_earlier_call_are_fetched_anew(get, server, tmp_path):
    part_of(tmp_path).parent.mkdir()
    part_of(tmp_path).write_bytes(b"y" * 500)
    assert get().read_bytes() == BODY
    assert [r for _, r in server.asked] == ["bytes=500-", None]


def test_a_part_longer_than_the_file_is_thrown_away(get, server, tmp_path):
    part_of(tmp_path).parent.mkdir()
    part_of(tmp_path).write_bytes(BODY + b"z")
    assert get().read_bytes() == BODY
    assert server.asked[0][1] is None


def test_a_refused_range_starts_over(get, tmp_path):
    part_of(tmp_path).parent.mkdir()
    part_of(tmp_path).write_bytes(BODY[:10])
    assert get(416).read_bytes() == BODY


@pytest.mark.parametrize(
    ("how", "message"),
    [("another file", "not the published file"), ("too long", "sent more than 512,000")],
)
def test_another_file_is_refused_while_it_arrives(get, how, message):
    with pytest.raises(FetchError, match=message):
        get(how)


def test_another_range_than_asked_for_is_refused(get):
    with pytest.raises(FetchError, match="got others"):
        get("break", "wrong range")


@pytest.mark.slow
def test_a_server_that_stays_silent_ends_in_one_line(get, server, tmp_path):
    with pytest.raises(FetchError, match=r"stopped sending \(what came is kept") as error:
        get("stall", "silence", "silence", timeout=1.0, attempts=2)
    assert "\n" not in str(error.value)
    assert part_of(tmp_path).read_bytes() == BODY[:100_000] and len(server.asked) == 3


def test_nobody_listening_is_one_line_that_names_the_ways_round(get, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(FetchError, match=r"HF_ENDPOINT.*--data stories") as error:
        get(attempts=2)
    assert "\n" not in str(error.value)


def test_an_unknown_host_asks_whether_the_machine_is_offline(monkeypatch, tmp_path):
    def no_network(request, timeout):
        raise module.urllib.error.URLError(module.socket.gaierror(-2, "Name not known"))

    monkeypatch.setattr(module.urllib.request, "urlopen", no_network)
    with pytest.raises(FetchError, match=r"cannot find hub\.test; is this machine offline\?"):
        fetch("https://hub.test/x", tmp_path / "x", REMOTE, attempts=1, progress=False)


def test_a_file_of_the_users_own_is_not_overwritten(get, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "story.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FetchError, match="move it out of the way"):
        get()


def test_a_full_disk_is_not_taken_for_a_broken_connection(get, monkeypatch):
    class Full(io.BytesIO):
        def write(self, block):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_open_part", lambda part, mode: Full())
    with pytest.raises(FetchError, match="No space left"):
        get()


def test_the_mirror_is_used_and_a_bad_one_is_named(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.test/")
    assert hub_url("a/b", "c.txt") == "https://mirror.test/datasets/a/b/resolve/main/c.txt"
    monkeypatch.setenv("HF_ENDPOINT", "mirror.test")
    with pytest.raises(FetchError, match=r"HF_ENDPOINT is 'mirror\.test'"):
        hub_url("a/b", "c.txt")


def test_the_command_fetches_the_file_it_was_asked_for(server, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    remotes = (Remote("S-valid.txt", REMOTE.size, REMOTE.sha256), Remote("S-train.txt", 1, "0"))
    monkeypatch.setitem(DATASETS, "tinystories", ("who/what", remotes))
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = parser.parse_args(["tinystories", "--only", "valid", "--out", str(tmp_path)])
    assert module.main(args) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "S-valid.txt")
    assert server.asked == [("/datasets/who/what/resolve/main/S-valid.txt", None)]


def test_shakespeare_lies_elsewhere_than_on_the_hub(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(module, "fetch", lambda url, target, *_, **__: asked.append(url) or target)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.main(parser.parse_args(["shakespeare", "--out", str(tmp_path)])) == 0
    assert asked == [DATASETS["shakespeare"][1][0].address]
    assert capsys.readouterr().out == f"{tmp_path / 'tinyshakespeare.txt'}\n"
    with pytest.raises(UsageError, match="one file"):
        module.main(parser.parse_args(["shakespeare", "--only", "train"]))

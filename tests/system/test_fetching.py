from __future__ import annotations

import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from textseg.errors import DataError
from textseg.system import fetching
from textseg.system.fetching import RemoteFile, fetch_file, unpack_zip

CONTENT = bytes(range(256)) * 8192  # 2 MiB
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's script says, one entry for each request; the last one for all that follow."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range"))
        script = self.server.script
        (script.pop(0) if len(script) > 1 else script[0])(self)

    def log_message(self, *arguments: object) -> None: ...

    @property
    def wanted(self) -> int:
        return int(self.headers.get("Range", "bytes=0-")[6:-1])

    def give(self, status: int, body: bytes, **headers: object) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = [ranged]
        self.asked: list[str | None] = []

    def file(self, size: int | None = len(CONTENT), content: bytes = CONTENT) -> RemoteFile:
        return RemoteFile("scan.zip", f"http://127.0.0.1:{self.server_port}/x", hashlib.md5(content).hexdigest(), size)


def ranged(request: Handler) -> None:
    start = request.wanted
    request.give(
        206 if start else 200, CONTENT[start:], Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    )


def whole(request: Handler) -> None:
    request.give(200, CONTENT)


def wrong(request: Handler) -> None:
    request.give(200, b"x" * len(CONTENT))


def other_part(request: Handler) -> None:
    request.give(206, CONTENT[7:], Content_Range=f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}")


def status(code: int) -> Answer:
    return lambda request: request.give(code, b"no")


def dropping(count: int, *, ranges: bool = True) -> Answer:
    def answer(request: Handler) -> None:
        start = request.wanted if ranges else 0
        request.give(206 if start else 200, CONTENT[start : start + count], Content_Length=len(CONTENT) - start,
                     Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")  # fmt: skip

    return answer


def endless(request: Handler) -> None:
    """No length, and it just stops."""
    request.send_response(200)
    request.end_headers()
    request.wfile.write(CONTENT[: len(CONTENT) // 2])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "PAUSE_SECONDS", 0.0)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ([ranged], len(CONTENT)),
        ([ranged], None),
        ([dropping(300_000), dropping(300_000), ranged], len(CONTENT)),
        ([dropping(300_000), whole], len(CONTENT)),  # ignores the range
        ([dropping(300_000), other_part, whole], len(CONTENT)),
        ([dropping(300_000), status(416), whole], len(CONTENT)),
        ([status(500), status(503), status(429), whole], len(CONTENT)),
        ([endless, ranged], len(CONTENT)),
        ([dropping(700_000), dropping(0), dropping(0), ranged], None),
    ],
)
def test_a_hostile_server_gives_the_file_in_the_end(
    server: Server, tmp_path: Path, script: list[Answer], size: int | None
) -> None:
    server.script, reports = script, []
    path = fetch_file(
        server.file(size), tmp_path, progress=lambda name, done, total: reports.append((name, done, total))
    )
    assert path == tmp_path / "scan.zip"
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["scan.zip"]
    assert reports[-1] == ("scan.zip", len(CONTENT), len(CONTENT))


def test_a_dropped_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.script = [dropping(1_500_000), ranged]
    fetch_file(server.file(), tmp_path)
    assert server.asked[0] is None
    start = int((server.asked[1] or "")[6:-1])
    assert 0 < start <= 1_500_000


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        fetch_file(server.file(), tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([wrong], "gave other bytes than the published ones: MD5 .* They were deleted"),
        ([status(404)], "the server answers 404"),
        ([status(503)], "the server answers 503, 6 times in a row"),
        ([dropping(0)], "6 times in a row. Try again later"),
        ([lambda request: request.give(200, b"a web page")], "has 10 bytes, and 'scan.zip' must have 2097152"),
    ],
)
def test_what_can_not_be_fetched_is_said_and_leaves_nothing_under_its_name(
    server: Server, tmp_path: Path, script: list[Answer], message: str
) -> None:
    server.script = script
    with pytest.raises(DataError, match=message):
        fetch_file(server.file(), tmp_path)
    assert "scan.zip" not in leftovers(tmp_path)
    server.script = [ranged]
    assert fetch_file(server.file(), tmp_path).read_bytes() == CONTENT


def test_a_short_body_of_unknown_length_is_deleted(server: Server, tmp_path: Path) -> None:
    server.script = [endless]
    with pytest.raises(DataError, match="gave other bytes"):
        fetch_file(server.file(size=None), tmp_path)
    assert leftovers(tmp_path) == []


def test_a_damaged_beginning_is_fetched_again_from_the_start(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".scan.zip.part").write_bytes(b"y" * 1000)
    assert fetch_file(server.file(), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_where_the_received_bytes_are_kept_is_not_followed(
    server: Server, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "theirs").write_bytes(b"precious")
    link(tmp_path / "theirs", tmp_path / ".scan.zip.part")
    assert fetch_file(server.file(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None]
    assert (tmp_path / "theirs").read_bytes() == b"precious"


def test_another_file_of_that_name_is_not_touched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "scan.zip").write_bytes(b"mine")
    with pytest.raises(DataError, match="is not the published file: .* Move it away"):
        fetch_file(server.file(), tmp_path)
    assert (tmp_path / "scan.zip").read_bytes() == b"mine"


def test_no_server_at_all(server: Server, tmp_path: Path) -> None:
    remote = RemoteFile("scan.zip", "http://127.0.0.1:9/x", "0" * 32)
    with pytest.raises(DataError, match=r"the connection failed \(ConnectionError\)"):
        fetch_file(remote, tmp_path)


def test_no_room(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs 1000000000.0 GB more"):
        fetch_file(server.file(10**18), tmp_path)
    assert server.asked == []


def test_a_killed_download_leaves_nothing_wrong_and_goes_on(server: Server, tmp_path: Path) -> None:
    def slow(request: Handler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT[: 3 << 19])
        request.wfile.flush()
        time.sleep(60)

    server.script = [slow, ranged]
    remote = server.file()
    code = (
        "from textseg.system.fetching import *; from pathlib import Path; "
        f"fetch_file({remote!r}, Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    part = tmp_path / ".scan.zip.part"
    while not part.exists() or part.stat().st_size < 1 << 20:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "scan.zip").exists()
    assert fetch_file(remote, tmp_path).read_bytes() == CONTENT
    assert server.asked[1] not in (None, "bytes=0-")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_unpacking_places_what_is_wanted_and_may_be_repeated(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"images/1_t1.mha": b"1", "images/x.txt": b"2", "__MACOSX/._1_t1.mha": b"3"})
    for _ in range(2):
        files = unpack_zip(path, tmp_path / "out", renamed=lambda m: m.name if m.suffix == ".mha" else None)
        assert files == [tmp_path / "out" / "1_t1.mha"]
    assert leftovers(tmp_path / "out") == ["1_t1.mha"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_a_path_out_of_the_folder_unpacks_nothing(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack_zip(path, tmp_path / "out")
    assert leftovers(tmp_path) == ["a.zip"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="leads out"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "out")


def test_a_damaged_archive_unpacks_nothing(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a": os.urandom(1000), "b": os.urandom(1000)})
    damaged = bytearray(path.read_bytes())
    damaged[1500] ^= 255
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="no sound archive"):
        unpack_zip(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    path.write_bytes(bytes(damaged[:1200]))
    with pytest.raises(DataError, match="no sound archive"):
        unpack_zip(path, tmp_path / "out")


def test_a_file_that_differs_is_not_overwritten(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"a": b"1", "b": b"2"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_bytes(b"mine")
    with pytest.raises(DataError, match="Move it away"):
        unpack_zip(path, tmp_path / "out")
    assert leftovers(tmp_path / "out") == ["b"]
    assert (tmp_path / "out" / "b").read_bytes() == b"mine"


def test_links_in_the_target_folder_are_not_followed(tmp_path: Path) -> None:
    path, elsewhere = archive(tmp_path / "a.zip", {"sub/a": b"1", "b": b"2"}), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    for link, target in (("sub", elsewhere), ("b", elsewhere / "file")):
        (tmp_path / "out" / link).symlink_to(target)
        with pytest.raises(DataError, match=r"is a link, and nothing is written through links\. Remove the link"):
            unpack_zip(path, tmp_path / "out")
        (tmp_path / "out" / link).unlink()
    (tmp_path / "linked").symlink_to(elsewhere)
    with pytest.raises(DataError, match="is a link"):
        unpack_zip(path, tmp_path / "linked")
    with pytest.raises(DataError, match="leads out of"):
        unpack_zip(path, tmp_path / "out", renamed=lambda member: f"../{member.name}")
    assert [item.read_bytes() for item in elsewhere.iterdir()] == [b"precious"]


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "a.zip", {"zeros": bytes(1 << 20)})
    assert unpack_zip(path, tmp_path / "small")[0].stat().st_size == 1 << 20
    monkeypatch.setattr(fetching, "PLAUSIBLE_SIZE", 1000)
    with pytest.raises(DataError, match=r"has 0\.0 MB and would unpack to 1 MB, more than 200 times as much"):
        unpack_zip(path, tmp_path / "out")
    monkeypatch.setattr(fetching, "PLAUSIBLE_RATIO", 2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"The content of .*a\.zip' needs 0\.0 GB more"):
        unpack_zip(path, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []

"""Download the published data sets: resumed where they broke off, checked by SHA-256.

``tinygpt data fetch tinystories`` brings the two TinyStories files (Eldan & Li, 2023,
arXiv:2305.07759; CDLA-Sharing-1.0) from the Hugging Face hub, or from a mirror that the
environment variable ``HF_ENDPOINT`` names; ``tinygpt data fetch shakespeare`` the 1.1 MB of
tinyshakespeare (Karpathy, 2015), on which nanoGPT's CPU example learns. Bytes go to ``NAME.part``;
only when the checksum is right does that become ``NAME``, so a file that is there is a file that is
whole.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygpt import Error, UsageError
from tinygpt.files import sha256_of
from tinygpt.progress import bar

HUB = "https://huggingface.co"
_BLOCK = 1 << 18


class FetchError(Error):
    """A download that cannot be finished; the message is one line that says what to do."""


@dataclass(frozen=True)
class Remote:
    """One published file: its name on the hub, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str
    address: str = ""  # where it lies, if not on the hub


# The sums of the first release come from the hub's own history, those of V2 from third parties.
DATASETS: dict[str, tuple[str, tuple[Remote, ...]]] = {
    "shakespeare": (
        "",
        (
            Remote(
                "tinyshakespeare.txt",
                1_115_394,
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
                "input.txt",
            ),
        ),
    ),
    "tinystories": (
        "roneneldan/TinyStories",
        (
            Remote(
                "TinyStories-valid.txt",
                19_447_282,
                "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
            ),
            Remote(
                "TinyStories-train.txt",
                1_924_281_556,
                "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
            ),
        ),
    ),
    "tinystories-v2": (
        "roneneldan/TinyStories",
        (
            Remote(
                "TinyStoriesV2-GPT4-valid.txt",
                22_502_601,
                "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
            ),
            Remote(
                "TinyStoriesV2-GPT4-train.txt",
                2_227_753_162,
                "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
            ),
        ),
    ),
}


def hub_url(repository: str, name: str) -> str:
    """The address of a data set's file on the hub, or on the mirror ``HF_ENDPOINT`` names."""
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise FetchError(f"HF_ENDPOINT is {endpoint!r}; expected an address such as {HUB}")
    return f"{endpoint}/datasets/{repository}/resolve/main/{name}"


def fetch(
    url: str,
    target: Path,
    remote: Remote,
    *,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
    progress: bool = True,
) -> Path:
    """Download ``url`` to ``target`` and return it; a finished, correct file is left alone.

    A connection that breaks off, or sends nothing for ``timeout`` seconds, is opened again from
    the byte it had reached (HTTP ``Range``). ``attempts`` counts failures in a row that brought
    no new byte; the pauses between them double from ``pause`` seconds.

    Raises FetchError when the server is out of reach, answers with an error or with another
    file than ``remote`` describes, or when the bytes on disk fail their checksum.
    """
    if target.exists():
        if target.stat().st_size == remote.size and sha256_of(target) == remote.sha256:
            return target
        raise FetchError(f"{target} exists but is not the published file; move it out of the way")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    resumed = part.exists() and part.stat().st_size > 0
    _download(url, part, remote, timeout, attempts, pause, progress)
    if sha256_of(part) != remote.sha256:
        part.unlink()
        if not resumed:
            raise FetchError(
                f"{url}: the checksum is wrong (SHA-256 {remote.sha256[:12]}… expected); "
                "the bytes were discarded: try again, or another mirror by HF_ENDPOINT"
            )
        # The wrong bytes may be those an earlier call left behind: once more, from nothing.
        return fetch(
            url, target, remote, timeout=timeout, attempts=attempts, pause=pause, progress=progress
        )
    os.replace(part, target)
    return target


def _download(
    url: str,
    part: Path,
    remote: Remote,
    timeout: float,
    attempts: int,
    pause: float,
    progress: bool,
) -> None:
    """Bring ``part`` to ``remote.size`` bytes, connecting as often as that takes."""
    have = part.stat().st_size if part.exists() else 0
    if have > remote.size:
        part.unlink()
        have = 0
    with bar(
        remote.size, "B", initial=have, unit_scale=True, desc=remote.name, disable=not progress
    ) as received:
        failures = 0
        while have < remote.size:
            try:
                _receive(url, part, remote, timeout, received)
                problem: Exception | str = "the connection broke off"
            except urllib.error.HTTPError as error:
                if error.code == 416:  # the server has fewer bytes than lie here: start over
                    part.unlink(missing_ok=True)
                    received.reset()
                elif error.code not in (408, 429) and error.code < 500:
                    raise FetchError(f"{url}: {_http_advice(error)}") from error
                problem = f"HTTP status {error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                problem = error
            now = part.stat().st_size if part.exists() else 0
            failures = 0 if now > have else failures + 1
            have = now
            if failures >= attempts:
                raise FetchError(_network_advice(url, part, problem, remote)) from None
            if failures:
                time.sleep(min(pause * 2 ** (failures - 1), 30.0))


def _receive(url: str, part: Path, remote: Remote, timeout: float, received: Any) -> None:
    """One connection: append what the server sends to ``part``, from where it ends."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "tinygpt", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as response:
        resumes = response.status == 206 and _starts_at(response) == have
        if response.status == 206 and not resumes:
            raise FetchError(f"{url}: asked for bytes from {have}, got others; delete {part}")
        start = have if resumes else 0  # status 200: the server ignores Range and sends it whole
        length = response.headers.get("Content-Length")
        if length is not None and start + int(length) != remote.size:
            raise FetchError(
                f"{url}: the server offers {start + int(length):,} bytes, expected "
                f"{remote.size:,}; it is not the published file: try another HF_ENDPOINT"
            )
        received.reset()
        received.update(start)
        with _open_part(part, "ab" if resumes else "wb") as file:
            # read1 returns what one receive brought: a stall costs one timeout, never the block.
            while block := response.read1(_BLOCK):
                start += len(block)
                if start > remote.size:
                    raise FetchError(f"{url}: the server sent more than {remote.size:,} bytes")
                _write(file, block, part)
                received.update(len(block))


def _open_part(part: Path, mode: str) -> Any:
    try:
        return part.open(mode)
    except OSError as error:
        raise FetchError(f"cannot write {part}: {error.strerror}") from error


def _write(file: Any, block: bytes, part: Path) -> None:
    try:
        file.write(block)
        file.flush()
    except OSError as error:  # a full disk, most often; not to be taken for a broken connection
        raise FetchError(f"cannot write {part}: {error.strerror}") from error


def _starts_at(response: Any) -> int:
    """The first byte of a partial answer, from ``Content-Range: bytes START-END/SIZE``."""
    value = response.headers.get("Content-Range", "")
    digits = value.removeprefix("bytes ").partition("-")[0]
    return int(digits) if digits.isdigit() else -1


def _http_advice(error: urllib.error.HTTPError) -> str:
    if error.code in (301, 302, 303, 307, 308):
        return "the server redirects in a circle; try another mirror by HF_ENDPOINT"
    return f"HTTP status {error.code} {error.reason}; check HF_ENDPOINT and the file's name"


def _network_advice(url: str, part: Path, problem: Exception | str, remote: Remote) -> str:
    """One line for a network that failed for good: what happened, and what to do instead."""
    reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
    if isinstance(reason, socket.gaierror):
        what = f"cannot find {url.split('/')[2]}; is this machine offline?"
    elif isinstance(reason, TimeoutError):
        what = f"{url}: the server stopped sending"
    else:
        what = f"{url}: {getattr(reason, 'strerror', None) or reason}"
    kept = "what came is kept and the same command resumes; " if part.exists() else ""
    mirror = "" if remote.address else "HF_ENDPOINT names a mirror; "
    return f"{what} ({kept}{mirror}the embedded stories, train --data stories, need no download)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tinygpt data fetch``."""
    names = sorted(DATASETS)
    parser.add_argument(
        "name", choices=names, metavar=" | ".join(names), help="the data set to download"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("data"), help="folder (default: data)"
    )
    parser.add_argument(
        "--only", choices=("train", "valid"), help="download just this file (default: both)"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds without a byte (default: 30)"
    )


def main(args: argparse.Namespace) -> int:
    """Run ``tinygpt data fetch``: print each file's path on standard output."""
    repository, files = DATASETS[args.name]
    if args.only and len(files) == 1:
        raise UsageError(f"--only: {args.name} is one file, {files[0].name}; leave it out")
    for remote in files:
        if args.only is None or f"-{args.only}." in remote.name:
            url = remote.address or hub_url(repository, remote.name)
            print(fetch(url, args.out / remote.name, remote, timeout=args.timeout))
    return 0

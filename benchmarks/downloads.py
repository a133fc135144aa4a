"""Our downloader beside curl, aria2c and the hub's own client: the same file from the same local server, in turn.

The server is nginx on the loopback address, plain and with a delay and a cap for each connection (through a relay of
our own, which waits before each answer's first byte). aria2c and the hub's client are left out where they are not
installed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import CHECKOUT, ENVIRONMENT, Failed, table
from reconciler.host.digest import Digest
from tests.support.processes import free_port, wait_until

DELAY = 0.06  # seconds before an answer
COMMIT = "a" * 40
NGINX = """
{user}worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access; sendfile on; etag on;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{plain}; root {folder}/www; }}
  server {{ listen 127.0.0.1:{capped}; root {folder}/www; limit_rate {cap}; }}
}}
"""


# A child's peak memory is never told as less than what its parent had when it forked: so a small one starts it.
LAUNCH = """
import json, os, sys, time
begin = time.perf_counter()
if not (pid := os.fork()):
    os.dup2(2, 1)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
wall = time.perf_counter() - begin
print(json.dumps([os.waitstatus_to_exitcode(status), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


@dataclass(frozen=True)
class Cost:
    """Of one download: wall and CPU seconds, peak resident MiB."""

    wall: float
    cpu: float
    memory: float


class Server:
    """nginx with one file of random bytes, at `plain`; `far` is the same with a delay and a cap."""

    def __init__(self, folder: Path, size: int, cap: int) -> None:
        self.size, self._folder = size, folder
        (folder / "www").mkdir()
        hasher = hashlib.sha256()
        with (folder / "www" / "model.gguf").open("wb") as out:
            for _ in range(size >> 20):
                piece = os.urandom(1 << 20)
                hasher.update(piece)
                out.write(piece)
        self.sha256 = hasher.hexdigest()
        self.port, self._capped, self._far = free_port(), free_port(), free_port()
        config, user = folder / "nginx.conf", "user root; " if os.getuid() == 0 else ""
        config.write_text(NGINX.format(user=user, folder=folder, plain=self.port, capped=self._capped, cap=cap))
        nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if nginx is None:
            raise Failed("nginx is not installed")
        relay = [sys.executable, "-m", "benchmarks.downloads", "--relay", str(self._far), str(self._capped)]
        hub = [sys.executable, "-m", "benchmarks.downloads", "--hub", str(free_port()), self.plain, self.far]
        hub += [str(size), self.sha256]
        self.hub = f"http://127.0.0.1:{hub[4]}"
        self._processes = [
            subprocess.Popen(argv, cwd=CHECKOUT, env=ENVIRONMENT)
            for argv in ([nginx, "-c", str(config), "-e", str(folder / "errors")], relay, hub)
        ]
        for port in (self.port, self._far, int(hub[4])):
            _wait_for_port(port)

    @property
    def plain(self) -> str:
        return f"http://127.0.0.1:{self.port}/model.gguf"

    @property
    def far(self) -> str:
        return f"http://127.0.0.1:{self._far}/model.gguf"

    def sent(self) -> int:
        """Body bytes of all answers that have ended."""
        lines = (self._folder / "access").read_text().splitlines()
        return sum(int(found[1]) for line in lines if (found := re.search(r'" 20[06] (\d+) "', line)))

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(10)


def _wait_for_port(port: int) -> None:
    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, 20, f"port {port} answers")


@contextmanager
def serving(size: int, cap: int) -> Iterator[tuple[Server, Path]]:
    with tempfile.TemporaryDirectory(prefix="downloads-") as name:
        server = Server(Path(name), size, cap)
        try:
            yield server, Path(name)
        finally:
            server.stop()


def ours(url: str, target: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.downloads", "--one", url, "--to", str(target)]


def others(server: Server, url: str, target: Path) -> dict[str, list[str]]:
    """The same download by other programs."""
    found = {"curl": ["curl", "-sSf", "-o", str(target), url]}
    if shutil.which("aria2c"):
        four = ["-x4", "-s4", "-k1M", "--file-allocation=none", "--allow-overwrite=true", "-q"]
        checked = f"--checksum=sha-256={server.sha256}"
        found["aria2c, 4 connections, sha256"] = [
            "aria2c",
            *four,
            checked,
            f"-d{target.parent}",
            f"-o{target.name}",
            url,
        ]
    hub = Path(sys.executable).with_name("hf")
    if hub.exists():
        repository = "bench/far" if url == server.far else "bench/near"
        found["hf download"] = [
            str(hub),
            "download",
            repository,
            "model.gguf",
            "--local-dir",
            str(target.parent / "hf"),
        ]
    return found


def cost(argv: Sequence[str], server: Server) -> Cost:
    """Run one download to its end. Raises Failed when it fails."""
    hub = {"HF_ENDPOINT": server.hub, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    hub |= {"HF_HOME": str(server._folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-SIc", LAUNCH, *argv], cwd=CHECKOUT, env=ENVIRONMENT | hub, capture_output=True, text=True
    )
    code, wall, cpu, memory = json.loads(done.stdout)
    if code:
        raise Failed(f"{argv[0]}: exit code {code}\n{done.stderr[-2000:]}")
    return Cost(wall, cpu, memory / 1024)


def compare(server: Server, folder: Path, url: str, rounds: int) -> list[list[str]]:
    """Each program in turn, `rounds` times: medians."""
    samples: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        target = folder / "got" / "model"
        for name, argv in {
            "ours, 4 connections, sha256 and CRC": ours(url, target),
            **others(server, url, target),
        }.items():
            shutil.rmtree(target.parent, ignore_errors=True)
            target.parent.mkdir()
            samples.setdefault(name, []).append(cost(argv, server))
    return [
        [
            name,
            f"{median(c.wall for c in costs):.2f}",
            f"{server.size / 1e6 / median(c.wall for c in costs):.0f}",
            f"{median(c.cpu for c in costs):.2f}",
            f"{median(c.memory for c in costs):.0f}",
        ]
        for name, costs in samples.items()
    ]


def killed(server: Server, folder: Path, rounds: int) -> tuple[int, int]:
    """Kill our download with -9 in its middle and let another finish it: the most bytes sent twice, and kills."""
    worst = kills = 0
    for at in range(rounds):
        target = folder / "killed" / "model"
        shutil.rmtree(target.parent, ignore_errors=True)
        before = server.sent()
        process = subprocess.Popen(ours(server.far, target), cwd=CHECKOUT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        _wait_for(target, server.size * (at + 1) // (rounds + 1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        cost(ours(server.far, target), server)
        time.sleep(0.5)  # until the server has noted the requests that were cut off
        worst = max(worst, server.sent() - before - server.size)
    return worst, kills


def _wait_for(path: Path, size: int) -> None:
    """Until so many bytes of a file are there; it has holes."""
    wait_until(lambda: path.exists() and path.stat().st_blocks * 512 > size, 60, "so much is there")


def run(quick: bool) -> str:
    size, rounds = (128 << 20, 1) if quick else (1 << 30, 3)
    far_size = (64 << 20) if quick else (256 << 20)
    head = ["program", "wall s", "MB/s", "CPU s", "peak RSS MiB"]
    with serving(size, 20_000_000) as (server, folder):
        plain = compare(server, folder, server.plain, rounds)
        hashing, proving = _hashing(hashlib.sha256(), server, folder), _hashing(Digest(), server, folder)
    with serving(far_size, 20_000_000) as (server, folder):
        far = compare(server, folder, server.far, rounds)
        twice, kills = killed(server, folder, 2 if quick else 5)
    cpu = float(plain[0][3]) / (size / 1e9)
    return "\n\n".join(
        [
            f"{size >> 20} MiB over the loopback address, medians of {rounds}:",
            table(head, plain),
            f"{far_size >> 20} MiB with {DELAY * 1000:.0f} ms before each answer and 20 MB/s for each connection:",
            table(head, far),
            f"Sent twice after kill -9, as the server counts (what waited in the kernel included): at most "
            f"{twice / 2**20:.1f} MiB in {kills} kills. The whole costs us {cpu:.2f} CPU seconds per GB. "
            f"Of that {proving:.2f} prove the bytes (sha256, and CRC-32 by blocks), where sha256 alone takes "
            f"{hashing:.2f}; they are never read a second time.",
        ]
    )


def _hashing(hasher: Any, server: Server, folder: Path) -> float:
    """CPU seconds per GB over the file in the page cache."""
    begin = time.process_time()
    with (folder / "www" / "model.gguf").open("rb") as data:
        while piece := data.read(1 << 20):
            hasher.update(piece)
    return (time.process_time() - begin) / (server.size / 1e9)


# --- the programs that run beside -----------------------------------------------------------------------------------


async def one(url: str, target: Path) -> None:
    """One download by our own downloader, as the controller would do it."""
    from reconciler.host.effects import Effects
    from reconciler.host.fetch import Fetch
    from reconciler.host.files import Files

    effects = Effects()
    fetch = Fetch(Files(effects), effects)
    begin = time.perf_counter()
    got = await fetch.get(url, target, lambda done, total: None)
    await fetch.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"seconds": time.perf_counter() - begin, "size": got.size, "sha256": got.sha256}
    print(json.dumps(figures | {"cpu": usage.ru_utime + usage.ru_stime, "rss_kib": usage.ru_maxrss}))


async def relay(port: int, behind: int) -> None:
    """Pass connections on, each answer's first bytes later by DELAY."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", behind)

        async def there() -> None:
            while data := await reader.read(1 << 16):
                await asyncio.sleep(DELAY)
                far_writer.write(data)
            far_writer.close()

        async def back() -> None:
            while data := await far_reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
            writer.close()

        try:
            await asyncio.gather(there(), back())
        except OSError:
            pass
        finally:
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", port, limit=1 << 20)
    await server.serve_forever()


async def hub(port: int, near: str, far: str, size: int, sha256: str) -> None:
    """As much of a model hub as its client asks for; the file itself lies with nginx."""
    from aiohttp import web

    async def info(request: web.Request) -> web.Response:
        blob = {"sha256": sha256, "size": size, "pointerSize": 134}
        file = {"rfilename": "model.gguf", "size": size, "blobId": "0" * 40, "lfs": blob}
        name = f"bench/{request.match_info['name']}"
        return web.json_response({"id": name, "sha": COMMIT, "private": False, "siblings": [file], "tags": []})

    async def resolve(request: web.Request) -> web.Response:
        where = far if request.match_info["name"] == "far" else near
        facts: dict[str, Any] = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(size)}
        return web.Response(status=302, headers=facts | {"Location": where.replace("127.0.0.1", "localhost")})

    app = web.Application()
    app.router.add_get("/api/models/bench/{name}", info)
    app.router.add_get("/api/models/bench/{name}/revision/{revision}", info)
    app.router.add_route("*", "/bench/{name}/resolve/{revision}/model.gguf", resolve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller downloads, to see that it works")
    parser.add_argument("--one", metavar="URL", help="only bring this file with our own downloader, and tell the cost")
    parser.add_argument("--to", type=Path, default=Path("model.part"), help="where --one puts it")
    parser.add_argument("--relay", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hub", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        asyncio.run(one(arguments.one, arguments.to))
    elif arguments.relay:
        asyncio.run(relay(*arguments.relay))
    elif arguments.hub:
        port, near, far, size, sha256 = arguments.hub
        asyncio.run(hub(int(port), near, far, int(size), sha256))
    else:
        try:
            print(run(arguments.quick))
        except AssertionError as failed:
            sys.exit(f"failed: {failed}")


if __name__ == "__main__":
    main()

"""Whole archives (tar with gzip, xz, bzip2 or nothing; zip) that nobody vouches for, unpacked into a new folder.

What an archive is, its first bytes say and not its name. No member is written outside of the folder: no absolute path,
no `..`, no path through a link; links lead to what is inside; what is neither file, folder nor link is refused. Number
and sizes are bounded by constants, by the archive's own size and by the disk. Owner, times and special bits are not
taken over; whether a file may be executed is.
"""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from reconciler.core.plan import human_bytes
from reconciler.host.files import disk_faults, require_room
from reconciler.sources.archive import MOST_RATIO, RATIO_FROM, Unfit
from reconciler.sources.names import printable

MOST_MEMBERS = 20_000
MOST_BYTES = 16 << 30
MOST_LINK = 4096  # bytes of where a link leads
CHUNK = 1 << 20

_SORTS = ((b"\x1f\x8b", "gz"), (b"\xfd7zXZ\x00", "xz"), (b"BZh", "bz2"), (b"PK\x03\x04", "zip"))
_ODD = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OverflowError,
    NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(slots=True)
class _Tree:
    """A folder that is being filled. Links are made last, so that nothing can be written through one."""

    root: Path
    most: int  # bytes
    stop: threading.Event
    files: int = 0
    size: int = 0
    links: dict[PurePosixPath, str] = field(default_factory=dict)

    def count(self) -> None:
        self.files += 1
        if self.files > MOST_MEMBERS:
            raise Unfit(f"it has more than {MOST_MEMBERS} members")

    def folder(self, path: PurePosixPath) -> None:
        with disk_faults(self.root / path):
            try:
                (self.root / path).mkdir(parents=True, exist_ok=True, mode=0o755)
            except (FileExistsError, NotADirectoryError) as error:
                raise Unfit(f"{printable(str(path))} is a file and a folder in it") from error

    def file(self, path: PurePosixPath, data: IO[bytes], executable: bool) -> None:
        target = self.root / path
        self.folder(path.parent)
        if target.exists() or path in self.links:
            raise Unfit(f"it has {printable(str(path))} twice")
        with disk_faults(target):
            out = target.open("xb")
        with out:
            while piece := data.read(CHUNK):
                if self.stop.is_set():
                    raise Unfit("it was stopped")
                self.size += len(piece)
                if self.size > self.most:
                    raise Unfit(f"it unpacks to more than {human_bytes(self.most)}")
                with disk_faults(target):
                    out.write(piece)
            with disk_faults(target):
                os.fchmod(out.fileno(), 0o755 if executable else 0o644)
                out.flush()
                os.fsync(out.fileno())

    def link(self, path: PurePosixPath, to: str) -> None:
        inner = PurePosixPath(os.path.normpath(path.parent / to))
        if to.startswith("/") or not to or ".." in inner.parts:
            raise Unfit(f"the link {printable(str(path))} leads out of it")
        if path in self.links or (self.root / path).exists():
            raise Unfit(f"it has {printable(str(path))} twice")
        self.links[path] = to

    def finish(self) -> None:
        """Make the links, and see that each leads to something inside, over however many others."""
        for path, to in self.links.items():
            self.folder(path.parent)
            if (self.root / path).is_symlink() or (self.root / path).exists():
                raise Unfit(f"{printable(str(path))} is a link and a folder in it")
            with disk_faults(self.root / path):
                (self.root / path).symlink_to(to)
        whole = self.root.resolve()
        for path in self.links:
            try:
                end = (self.root / path).resolve(strict=True)
            except (OSError, RuntimeError) as error:  # a ring, or nothing there
                raise Unfit(f"the link {printable(str(path))} leads nowhere") from error
            if not end.is_relative_to(whole):
                raise Unfit(f"the link {printable(str(path))} leads out of it")


def unpack(archive: Path, target: Path, stop: threading.Event) -> None:
    """Fill the folder `target`, which is made if need be, with what is in an archive. Blocks: call it in a thread.

    Raises Unfit where it is no archive, damaged or not to be trusted, or Fault where the disk has no room; then what
    was written so far is for the caller to remove. `stop` ends it early.
    """
    with archive.open("rb") as data:
        begins = data.read(262 + 8)
    sort = next((name for magic, name in _SORTS if begins.startswith(magic)), "")
    if not sort and begins[257:262] == b"ustar":
        sort = "tar"
    if not sort:
        what = "it is a web page, and no archive" if _page(begins) else "it is no archive (.tar.gz, .tar.xz, .zip)"
        raise Unfit(what)
    packed = archive.stat().st_size
    tree = _Tree(target, min(MOST_BYTES, max(RATIO_FROM, MOST_RATIO * packed)), stop)
    tree.folder(PurePosixPath("."))
    with _unfit():
        if sort == "zip":
            _unzip(archive, tree)
        else:
            _untar(archive, tree)
        tree.finish()


@contextmanager
def _unfit() -> Iterator[None]:
    try:
        yield
    except _ODD as error:
        raise Unfit(f"it is damaged: {error or type(error).__name__}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's fault, which is told otherwise
            raise
        raise Unfit(f"it is damaged: {error}") from error


def _page(begins: bytes) -> bool:
    return begins.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml")


def _untar(archive: Path, tree: _Tree) -> None:
    with tarfile.open(archive, "r:*") as opened:
        for member in opened:
            tree.count()
            if (path := _inside(member.name)) is None:
                continue
            if member.isdir():
                tree.folder(path)
            elif member.issym():
                tree.link(path, member.linkname)
            elif member.islnk():
                _hard_link(path, member, tree)
            elif member.isreg():
                data = opened.extractfile(member)
                assert data is not None  # of a regular file there always is some
                tree.file(path, data, bool(member.mode & 0o111))
            else:
                raise Unfit(f"{printable(member.name)} is neither file, folder nor link")
        _to_the_end(opened, tree)


def _to_the_end(opened: tarfile.TarFile, tree: _Tree) -> None:
    """Read what follows the last member: only at its end does a packed stream prove that it is whole."""
    assert opened.fileobj is not None
    rest = 0
    while piece := opened.fileobj.read(CHUNK):
        rest += len(piece)
        if rest > tree.most:
            raise Unfit(f"it unpacks to more than {human_bytes(tree.most)}")


def _hard_link(path: PurePosixPath, member: tarfile.TarInfo, tree: _Tree) -> None:
    """A second name of a file that came before: a copy, so that nothing shares its bytes."""
    source = _inside(member.linkname)
    if source is None or not (tree.root / source).is_file():
        raise Unfit(f"the link {printable(member.name)} leads to nothing that came before it")
    with (tree.root / source).open("rb") as data:
        tree.file(path, data, bool((tree.root / source).stat().st_mode & 0o111))


def _unzip(archive: Path, tree: _Tree) -> None:
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        total = sum(info.file_size for info in infos)
        if total > tree.most:
            raise Unfit(f"it would unpack to {human_bytes(total)}, more than {human_bytes(tree.most)}")
        require_room(tree.root, total)
        for info in infos:
            tree.count()
            mode = info.external_attr >> 16
            path = _inside(info.filename)
            if info.flag_bits & 1:
                raise Unfit(f"{printable(info.filename)} is encrypted")
            if path is None:
                continue
            if info.is_dir():
                tree.folder(path)
                continue
            with opened.open(info) as data:
                if stat.S_ISLNK(mode):
                    tree.link(path, data.read(MOST_LINK).decode())
                elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                    tree.file(path, data, bool(mode & 0o111))
                else:
                    raise Unfit(f"{printable(info.filename)} is neither file, folder nor link")


def _inside(name: str) -> PurePosixPath | None:
    """A member's path below the folder; None for the folder itself. Raises Unfit for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or (name[1:2] == ":"):
        raise Unfit(f"{printable(name)} leads out of it")
    return path if path.parts else None

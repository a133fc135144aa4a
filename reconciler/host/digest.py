"""What is known of bytes once they have passed by: sha256, size, and a CRC-32 of each block."""

from __future__ import annotations

import hashlib
import zlib

BLOCK = 16 << 20  # bytes of which each has a CRC-32 of its own


class Digest:
    """Fed in order; `blocks` are the CRC-32 of each 16 MiB as eight hex digits, the last one of what is left."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256, self._crc = hashlib.sha256(), 0
        self._done: list[str] = []

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        self._sha256.update(piece)
        view = memoryview(piece)
        while view:
            head = view[: BLOCK - self.size % BLOCK]
            self._crc = zlib.crc32(head, self._crc)
            self.size += len(head)
            view = view[len(head) :]
            if self.size % BLOCK == 0:
                self._done.append(f"{self._crc:08x}")
                self._crc = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def blocks(self) -> tuple[str, ...]:
        return (*self._done, f"{self._crc:08x}") if self.size % BLOCK else tuple(self._done)

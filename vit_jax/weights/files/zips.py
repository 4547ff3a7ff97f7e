"""Zip archives whose directory is checked before anything of them is read."""

import collections
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from vit_jax.weights.files.contents import (
    Unreadable,
    aligned_bytes,
    check_expansion,
    quoted,
    shortened,
)

# Of the largest published model it takes a tenth.
_LARGEST_DIRECTORY = 1 << 20
# Weights hardly shrink; a hundredfold is a bomb (deflate can do a thousandfold).
_MOST_EXPANSION = 100
# Fits into a core's cache: what is read is still there when its checksum is taken.
_CHUNK = 1 << 18
_ENCRYPTED = 1
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Member:
    """One file of an archive: its `name` and its uncompressed `size` in bytes."""

    def __init__(self, file: BinaryIO, info: zipfile.ZipInfo, end: int):
        self.name = info.filename
        self.size = info.file_size
        self._file = file
        self._info = info
        self._start = _data_start(file, info, end)
        self._verified = False

    def head(self, count: int) -> bytes:
        """The first bytes, at most `count`; not checked against the checksum."""
        buffer = bytearray(min(count, self.size))
        self._stream(0).fill(memoryview(buffer))
        return bytes(buffer)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The bytes from `start` to `stop`, aligned, read once and not copied.

        Raises:
          Unreadable: the archive is shorter, or the member's checksum differs.
        """
        stop = self.size if stop is None else stop
        out = aligned_bytes(stop - start)
        view = out.data
        if self._verified and self._info.compress_type == zipfile.ZIP_STORED:
            self._stream(start).fill(view)
            return out
        stream = self._stream(0)
        checksum = stream.skip(start, 0)
        for at in range(0, len(view), _CHUNK):
            part = view[at : at + _CHUNK]
            stream.fill(part)
            checksum = zlib.crc32(part, checksum)
        checksum = stream.skip(self.size - stop, checksum)
        # PyTorch notes 0 when it was told to take none.
        if self._info.CRC and checksum != self._info.CRC:
            raise Unreadable(
                f"the checksum of {quoted(self.name)} does not match its content"
            )
        self._verified = True
        return out

    def _stream(self, at: int) -> "_Stored | _Deflated":
        self._file.seek(self._start + at)
        if self._info.compress_type == zipfile.ZIP_STORED:
            return _Stored(self._file, self.name)
        return _Deflated(self._file, self.name, self._info.compress_size)


def read_members(file: BinaryIO) -> dict[str, Member]:
    """The members of an archive by name; directories are left out.

    Raises:
      Unreadable: the archive is damaged, holds a name twice or a name that leads out of
        the archive, is encrypted, packed in an unknown way or far too strongly.
    """
    infos = read_directory(file)
    size = file.seek(0, 2)
    counts = collections.Counter(info.filename for info in infos)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise Unreadable(f"it holds more than once: {shortened(twice)}")
    for info in infos:
        _check(info)
    packed = sum(info.compress_size for info in infos)
    if packed > size:
        raise Unreadable(
            f"its members claim {packed:,} bytes of a file of {size:,}; it was cut off "
            "or its directory is damaged"
        )
    check_expansion(sum(info.file_size for info in infos), size, _MOST_EXPANSION)
    return {info.filename: Member(file, info, size) for info in infos}


def read_directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """What the directory lists of files; Unreadable if there is none."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:  # type: ignore[arg-type]
            return [info for info in archive.infolist() if not info.is_dir()]
    # What the standard library raises on damaged directories.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
        ValueError,
        IndexError,
        OverflowError,
        struct.error,
    ) as error:
        raise Unreadable(f"its directory is damaged ({error})") from error


class _Bounded:
    """A file of which no directory larger than any honest one can be read."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if count > _LARGEST_DIRECTORY:
            raise ValueError(f"{count:,} bytes long")
        return self._file.read(count)


class _Stored:
    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name = file, name

    def fill(self, view: memoryview) -> None:
        while view:
            count = self._file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise Unreadable(f"the file ends within {quoted(self._name)}")
            view = view[count:]

    def skip(self, count: int, checksum: int) -> int:
        """The checksum after `count` more bytes."""
        scratch = memoryview(bytearray(min(count, _CHUNK)))
        while count:
            part = scratch[:count]
            self.fill(part)
            checksum = zlib.crc32(part, checksum)
            count -= len(part)
        return checksum


class _Deflated(_Stored):
    def __init__(self, file: BinaryIO, name: str, packed: int):
        super().__init__(file, name)
        self._packed = packed
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def fill(self, view: memoryview) -> None:
        while view:
            data = self._inflater.unconsumed_tail
            if not data:
                data = self._file.read(min(_CHUNK, self._packed))
                self._packed -= len(data)
            try:
                part = self._inflater.decompress(data, len(view))
            except zlib.error as error:
                raise Unreadable(f"{quoted(self._name)} cannot be unpacked") from error
            if not part and (self._inflater.eof or not data):
                raise Unreadable(f"{quoted(self._name)} ends too early")
            view[: len(part)] = part
            view = view[len(part) :]


def _check(info: zipfile.ZipInfo) -> None:
    name = info.filename
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise Unreadable(
            f"it holds {quoted(name)}, a path that leads out of it",
            "Do not trust it; use another copy",
        )
    if info.flag_bits & _ENCRYPTED:
        raise Unreadable(
            f"{quoted(name)} is encrypted", "Unpack it, and pass what it held"
        )
    if info.compress_type not in _COMPRESSIONS:
        raise Unreadable(
            f"{quoted(name)} is packed in a way (zip method {info.compress_type}) that "
            "weights never are"
        )
    if (
        info.compress_type == zipfile.ZIP_STORED
        and info.file_size != info.compress_size
    ):
        raise Unreadable(f"its directory gives {quoted(name)} two different sizes")


def _data_start(file: BinaryIO, info: zipfile.ZipInfo, end: int) -> int:
    """Where a member's data begins, behind its local header."""
    damaged = Unreadable(
        f"{quoted(info.filename)} is not where its directory says; it was cut off or "
        "damaged"
    )
    if not 0 <= info.header_offset <= end - _LOCAL_HEADER.size:
        raise damaged
    file.seek(info.header_offset)
    mark, *_, name_length, extra_length = _LOCAL_HEADER.unpack(
        file.read(_LOCAL_HEADER.size)
    )
    name = file.read(name_length)
    start = file.tell() + extra_length
    if mark != b"PK\x03\x04" or name != _raw_name(info):
        raise damaged
    if start + info.compress_size > end:
        raise damaged
    return start


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    utf8 = info.flag_bits & 0x800
    return info.orig_filename.encode("utf-8" if utf8 else "cp437")

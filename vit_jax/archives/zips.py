"""A zip reader that checks the archive's directory before it reads any member."""

import collections
import struct
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from vit_jax.archives.unreadable import Unreadable
from vit_jax.words import quoted, shortened

# The highest compression ratio of deflate.
MOST_INFLATED = 1032
# Weights hardly compress; a ratio of 100 is a zip bomb.
_MOST_EXPANSION = 100
_ALWAYS_ALLOWED = 32 << 20  # bytes
# In bytes; the directory of the largest published model takes a tenth of this.
_LARGEST_DIRECTORY = 1 << 20
# JAX on a CPU uses an array without copying if its address is a multiple of this.
_ALIGNMENT = 64
# In bytes; fits into a core's cache, so that the checksum reads from the cache.
_CHUNK = 1 << 18
_ENCRYPTED = 1
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Member:
    """One file of an archive.

    Attributes:
      name: path within the archive.
      size: uncompressed size in bytes.
      packed: compressed size in bytes.
      checksum: CRC-32 of the uncompressed bytes.
    """

    def __init__(self, file: BinaryIO, info: zipfile.ZipInfo, end: int):
        self.name = info.filename
        self.size = info.file_size
        self.packed = info.compress_size
        self.checksum = info.CRC
        self._file = file
        self._info = info
        self._start = _data_start(file, info, end)
        self._verified = False

    def head(self, count: int) -> bytes:
        """Reads at most the first `count` bytes, without comparing the checksum."""
        buffer = bytearray(min(count, self.size))
        self._stream(0).fill(memoryview(buffer))
        return bytes(buffer)

    def read(
        self, start: int = 0, stop: int | None = None, *, check: bool = True
    ) -> np.ndarray:
        """Reads the bytes from `start` to `stop`, aligned, once and without a copy.

        Args:
          start: the first byte.
          stop: one past the last byte; the end by default.
          check: compare the checksum, unless that was done before.

        Raises:
          Unreadable: the archive is cut off, or the member's checksum does not match.
        """
        stop = self.size if stop is None else stop
        out = aligned_bytes(stop - start)
        view = out.data
        checked = self._verified or not check
        if checked and self._info.compress_type == zipfile.ZIP_STORED:
            self._stream(start).fill(view)
            return out
        stream = self._stream(0)
        checksum = stream.skip(start, 0)
        for at in range(0, len(view), _CHUNK):
            part = view[at : at + _CHUNK]
            stream.fill(part)
            checksum = zlib.crc32(part, checksum)
        checksum = stream.skip(self.size - stop, checksum)
        if check and checksum != self.checksum:
            raise Unreadable(
                f"the checksum of {quoted(self.name)} does not match its content"
            )
        self._verified |= check
        return out

    def _stream(self, at: int) -> "_Stored | _Deflated":
        self._file.seek(self._start + at)
        if self._info.compress_type == zipfile.ZIP_STORED:
            return _Stored(self._file, self.name)
        return _Deflated(self._file, self.name, self.packed)


def read_members(
    file: BinaryIO, most_expansion: float = _MOST_EXPANSION
) -> dict[str, Member]:
    """Reads the directory of an archive: its files by name, without folders.

    Args:
      file: the archive; it must stay open while members are read.
      most_expansion: the `most` of `check_expansion`.

    Raises:
      Unreadable: the archive is damaged, holds a name twice or a path that leads out of
        the archive, is encrypted, uses an unknown compression method, or expands too
        far.
    """
    infos = read_directory(file)
    size = file.seek(0, 2)
    counts = collections.Counter(info.filename for info in infos)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise Unreadable(f"it holds more than once: {shortened(twice, quoted)}")
    for info in infos:
        _check(info)
    packed = sum(info.compress_size for info in infos)
    if packed > size:
        raise Unreadable(
            f"its members claim {packed:,} bytes, but the file has {size:,}; it was "
            "cut off or its directory is damaged"
        )
    check_expansion(sum(info.file_size for info in infos), size, most_expansion)
    return {info.filename: Member(file, info, size) for info in infos}


def read_directory(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """Lists the files of an archive.

    Raises:
      Unreadable: its directory is damaged.
    """
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:  # type: ignore[arg-type]
            infos = archive.infolist()
            # Not is_dir(): it fails on an empty name, which a damaged directory has.
            return [info for info in infos if not info.filename.endswith("/")]
    # The standard library raises any of these on damaged directories.
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


def check_expansion(declared: int, held: int, most: float) -> None:
    """Rejects data that expands to more than `most` times its size and 32 MiB.

    Args:
      declared: uncompressed size in bytes.
      held: compressed size in bytes.
      most: the highest ratio of the two that is accepted.

    Raises:
      Unreadable: both limits are exceeded.
    """
    if declared > max(_ALWAYS_ALLOWED, most * held):
        raise Unreadable(
            f"{held:,} bytes claim to expand to {declared:,}; weights never compress "
            "that far",
            "Do not trust it; use another copy",
        )


def aligned_bytes(count: int) -> np.ndarray:
    """Allocates uninitialised bytes, aligned so that JAX need not copy them."""
    block = np.empty(count + _ALIGNMENT, np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + count]


class _Bounded:
    """A file that refuses to read a directory larger than any honest one."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        if count > _LARGEST_DIRECTORY:
            most = f"{_LARGEST_DIRECTORY:,}"
            raise ValueError(f"a directory of {count:,} bytes, expected at most {most}")
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
        """Reads over `count` bytes; returns the checksum with these included."""
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
            f"it holds {quoted(name)}, a path that leads out of the archive",
            "Do not trust it; use another copy",
        )
    if info.flag_bits & _ENCRYPTED:
        raise Unreadable(
            f"{quoted(name)} is encrypted", "Unpack the archive and pass its content"
        )
    if info.compress_type not in _COMPRESSIONS:
        raise Unreadable(
            f"{quoted(name)} is compressed with zip method {info.compress_type}, which "
            "NumPy and PyTorch never use"
        )
    if (
        info.compress_type == zipfile.ZIP_STORED
        and info.file_size != info.compress_size
    ):
        raise Unreadable(f"its directory gives {quoted(name)} two different sizes")


def _data_start(file: BinaryIO, info: zipfile.ZipInfo, end: int) -> int:
    """Returns the offset of a member's data, which follows its local header."""
    damaged = Unreadable(
        f"{quoted(info.filename)} is not where the directory says; the file was cut "
        "off or damaged"
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

"""Members of zip archives: partial reads, checksums, and expansion limits."""

import io
import zipfile

import pytest

from vit_jax.archives.unreadable import Unreadable
from vit_jax.archives.zips import read_members

CONTENT = bytes(range(256)) * 4000  # several chunks


@pytest.fixture(params=[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def file(request):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", request.param) as archive:
        archive.writestr("a", CONTENT)
    return file


def test_parts_of_a_member(file):
    member = read_members(file)["a"]
    assert (member.name, member.size) == ("a", len(CONTENT))
    assert member.head(10) == CONTENT[:10]
    for check in (False, True, True):
        for start, stop in ((0, None), (0, 0), (5, 700_000), (900_000, None)):
            found = member.read(start, stop, check=check)
            assert found.tobytes() == CONTENT[start:stop]
            assert found.ctypes.data % 64 == 0 or not len(found)


def test_the_checksum_is_compared_unless_check_is_false(file):
    content = bytearray(file.getvalue())
    content[content.index(b"PK\1\2") + 16] ^= 1
    member = read_members(io.BytesIO(content))["a"]
    # An unchecked read does not mark the member as verified.
    assert member.read(5, 9, check=False).tobytes() == CONTENT[5:9]
    for start, stop in ((0, None), (5, 9)):
        with pytest.raises(Unreadable, match="checksum of 'a' does not match"):
            member.read(start, stop)
    assert member.read(5, 9, check=False).tobytes() == CONTENT[5:9]


def test_the_caller_chooses_how_far_an_archive_may_expand():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(34 << 20))
    with pytest.raises(Unreadable, match="claim to expand to 35,651,584; weights"):
        read_members(file)
    assert read_members(file, most_expansion=2000)["a"].size == 34 << 20

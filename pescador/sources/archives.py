"""Where the members of a zip archive lie, of one as NumPy writes it.

A visit to a small `.npz` takes less time than `zipfile` needs to tell what is in it. What archives
may have besides (comments, encryption, more than 4 GB, names in other letters, something before or
behind it) is left to `zipfile`.
"""

import itertools
import os
import struct
import zlib
from typing import Any, NamedTuple

__all__ = ["START", "ZipMember", "plain_members", "read_at"]

# 4.3.16, 4.3.12 and 4.3.7 of the format: https://pkware.cachefly.net/webdocs/APPNOTE/APPNOTE-6.3.10.TXT
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_STORED, _DEFLATED = 0, 8
# Of the format: the first one that has sizes of 64 bits.
_VERSION = 45
# Flags that change nothing here: how well a member was deflated, that its sizes follow it (the
# directory has them), and that its name is UTF-8.
_HARMLESS = 0x80E
# In the place of a number that has a field of 64 bits elsewhere.
_ELSEWHERE = 0xFFFFFFFF
# How many bytes of the end, and of each member, are read at once, and are decompressed.
_TAIL = 4096
_HEAD = 4096
START = 512


class ZipMember(NamedTuple):
    """A member of an archive: where its content lies, and what that begins with."""

    name: str
    offset: int
    n_bytes: int
    n_unpacked: int
    crc: int
    is_packed: bool
    start: bytes


if hasattr(os, "pread"):
    read_at = os.pread
else:

    def read_at(descriptor: int, n: int, at: int) -> bytes:
        """Return bytes of an open file, fewer at its end."""
        os.lseek(descriptor, at, os.SEEK_SET)
        return os.read(descriptor, n)


def plain_members(descriptor: int, size: int) -> list[ZipMember] | None:
    """Return the members of an archive in the order of its directory; None if `zipfile` is to."""
    tail = read_at(descriptor, _TAIL, max(0, size - _TAIL))
    end = len(tail) - _END.size
    if len(tail) != min(size, _TAIL) or end < 0:
        return None
    signature, *disks, n, n_bytes, begin, n_comment = _END.unpack_from(tail, end)
    if signature != b"PK\5\6" or disks != [0, 0, n] or n_comment:
        return None
    if begin + n_bytes != size - _END.size:
        return None
    directory = tail[end - n_bytes : end] if n_bytes <= end else read_at(descriptor, n_bytes, begin)
    members = []
    places = [(begin, begin)]
    at = 0
    for _ in range(n):
        if at + _ENTRY.size > len(directory):
            return None
        entry = _ENTRY.unpack_from(directory, at)
        at += _ENTRY.size + entry[10]
        member = _member(descriptor, entry, directory[at - entry[10] : at])
        if member is None:
            return None
        members.append(member)
        places.append((entry[-1], member.offset + member.n_bytes))
    places.sort()
    # None lies in another one, or in the directory.
    apart = all(stop <= next_one for (_, stop), (next_one, _) in itertools.pairwise(places))
    return members if apart and at == len(directory) else None


def _member(descriptor: int, entry: tuple[Any, ...], name: bytes) -> ZipMember | None:
    """Return the member of an entry of the directory, if all of it is as NumPy has it."""
    signature, _, version, flags, method, _, _, crc, n_bytes, n_unpacked, n_name = entry[:11]
    header = entry[-1]
    if signature != b"PK\1\2" or version > _VERSION or flags & ~_HARMLESS:
        return None
    # No extra fields, comment, or other disk.
    if entry[11:14] != (0, 0, 0):
        return None
    if method not in (_STORED, _DEFLATED) or _ELSEWHERE in (n_bytes, n_unpacked, header):
        return None
    if not name.isascii() or b"\0" in name or len(name) != n_name:
        return None
    local = read_at(descriptor, _HEAD, header)
    if len(local) < _LOCAL.size or local[:4] != b"PK\3\4":
        return None
    *_, n_local, n_extra = _LOCAL.unpack_from(local)
    begin = _LOCAL.size + n_local + n_extra
    if local[_LOCAL.size : _LOCAL.size + n_local] != name:
        return None
    start = local[begin : begin + n_bytes]
    if method == _DEFLATED:
        try:
            start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, START)
        except zlib.error:
            return None
    elif n_bytes != n_unpacked:
        return None
    if len(start) >= n_unpacked and (len(start) > n_unpacked or zlib.crc32(start) != crc):
        return None
    return ZipMember(
        name.decode(), header + begin, n_bytes, n_unpacked, crc, method == _DEFLATED, start
    )

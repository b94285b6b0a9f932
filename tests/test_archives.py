"""Where the members of zip archives lie."""

import io
import os
import tempfile
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pescador.sources.archives import plain_members

contents = st.builds(
    lambda start, n, times: (start + bytes(n)) * times,
    st.binary(max_size=40),
    # No content ends where one read may or may not reach.
    st.sampled_from([0, 1, 100, 600]),
    st.sampled_from([1, 3, 20]),
).filter(lambda content: not 3900 < len(content) < 4300)
members = st.lists(
    st.tuples(
        st.sampled_from(["X.npy", "y.npy", "a/b.npy", "folder/", "ключ.npy", "README"]),
        contents,
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    ),
    max_size=4,
)


@contextmanager
def opened(content):
    """A descriptor of a file with this content."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.fileno()


@given(
    members=members,
    comment=st.sampled_from([b"", b"", b"written by hand"]),
    before=st.sampled_from([b"", b"", b"#!/bin/sh\n"]),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=3),
    cut=st.sampled_from([0, 0, 0, 1, 30]),
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_what_it_says_of_an_archive_is_what_zipfile_says(members, comment, before, changes, cut):
    file = io.BytesIO()
    file.write(before)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = comment
        for name, content, method in members:
            archive.writestr(name, content, method)
    written = bytearray(file.getvalue())
    for place, value in changes:
        written[place % len(written)] = value
    del written[len(written) - cut :]
    with opened(written) as descriptor:
        found = plain_members(descriptor, len(written))
    if found is None:
        return
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        assert [it.name for it in found] == [info.filename for info in archive.infolist()]
        for it, info in zip(found, archive.infolist(), strict=True):
            assert (it.n_bytes, it.n_unpacked) == (info.compress_size, info.file_size)
            is_packed = info.compress_type == zipfile.ZIP_DEFLATED
            assert (it.crc, it.is_packed) == (info.CRC, is_packed)
            try:
                whole = archive.read(info)
            except (zipfile.BadZipFile, zlib.error):
                # Its content is damaged, behind what was read of it.
                assert len(it.start) < it.n_unpacked
                continue
            raw = bytes(written[it.offset : it.offset + it.n_bytes])
            inflate = zlib.decompressobj(-zlib.MAX_WBITS).decompress
            assert (inflate(raw)[: len(whole)] if it.is_packed else raw) == whole
            assert whole.startswith(it.start)
            assert len(it.start) >= min(len(whole), 512)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_it_knows_what_numpy_writes(tmp_path, save):
    many = {f"key {i}": np.arange(i) for i in range(100)}
    save(tmp_path / "a.npz", **many)
    size = os.path.getsize(tmp_path / "a.npz")
    with open(tmp_path / "a.npz", "rb") as file:
        found = plain_members(file.fileno(), size)
    assert found is not None
    assert [it.name for it in found] == [f"{key}.npy" for key in many]

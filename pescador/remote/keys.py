"""Keys of CURVE: who may connect, and to whom.

A key is 40 characters, as ``zmq.curve_keypair()`` returns them, or the file of
``zmq.auth.create_certificates``. `bytes` are a key, `str` and paths name files.
"""

import os
import pathlib
import re
import stat
import struct
import warnings
from collections.abc import Iterable
from typing import Any, TypeGuard

import zmq
import zmq.auth
from zmq.utils import z85

from ..exceptions import ArgumentError, PescadorWarning

_FILES = "zmq.auth.create_certificates(folder, name) makes files of keys"


def _as_key(name: str, value: Any) -> bytes:
    """Return a key; refuse what is none, without showing it: it may be secret."""
    if _is_key(value):
        return value
    raise ArgumentError(f"{name} is no key: that is bytes, 40 characters of Z85; {_FILES}")


def _is_key(value: Any) -> TypeGuard[bytes]:
    try:
        return isinstance(value, bytes) and len(value) == 40 and bool(z85.decode(value))
    except (KeyError, struct.error):
        return False


def _warn_if_open(name: str, path: Any, has_secret: bool = False) -> None:
    """Warn of what every user of this machine may write, or read if that is a secret."""
    bits = stat.S_IWOTH | (stat.S_IROTH if has_secret else 0)
    if os.name == "posix" and os.stat(path).st_mode & bits:
        what = "read or write a secret key" if has_secret else "write the keys that are trusted"
        warnings.warn(
            f"{name}={os.fspath(path)!r}: every user of this machine may {what}; "
            f"chmod {'go=' if has_secret else 'go-w'} takes that from them",
            PescadorWarning,
            stacklevel=6,
        )


def _load(name: str, path: Any) -> tuple[bytes, bytes | None]:
    if isinstance(path, str) and _is_key(path.encode()):
        raise ArgumentError(f"{name} is a key as a str, which names a file; pass bytes")
    try:
        public, secret = zmq.auth.load_certificate(os.fspath(path))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{name}={path!r} is no file of a key ({error}); {_FILES}") from error
    _warn_if_open(name, path, secret is not None)
    return public, secret


def public_of(name: str, value: Any) -> bytes:
    """Return a public key, or raise an ArgumentError."""
    if isinstance(value, str | os.PathLike):
        return _as_key(name, _load(name, value)[0])
    return _as_key(name, value)


def pair_of(name: str, value: Any) -> tuple[bytes, bytes]:
    """Return a public key and its secret one, or raise an ArgumentError."""
    if isinstance(value, str | os.PathLike):
        value = _load(name, value)
        if value[1] is None:
            raise ArgumentError(
                f"{name} names a file without a secret key; it is in the one that ends in "
                ".key_secret"
            )
    if not isinstance(value, tuple) or len(value) != 2:
        raise ArgumentError(
            f"{name} must be a file, or a pair of a public and a secret key as "
            "zmq.curve_keypair() returns it"
        )
    public, secret = (_as_key(name, each) for each in value)
    if zmq.curve_public(secret) != public:
        raise ArgumentError(f"{name} has a public key that is not that of its secret key")
    return public, secret


def clients_of(name: str, value: Any) -> frozenset[bytes]:
    """Return the public keys that may connect, or raise an ArgumentError."""
    if isinstance(value, str | os.PathLike):
        path = pathlib.Path(value)
        if path.is_dir():
            _warn_if_open(name, path)
            value = sorted(path.glob("*.key"))
        else:
            value = [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise ArgumentError(f"{name} must be public keys, files of them, or a folder of such files")
    found = frozenset(public_of(name, each) for each in value)
    if not found:
        raise ArgumentError(f"{name} has no key, so that nobody could connect")
    return found


def check_clear(names: str, has_keys: bool, insecure: bool) -> None:
    """Raise an ArgumentError where clear text is not asked for, or is beside keys."""
    if has_keys and insecure:
        raise ArgumentError(f"insecure=True is for clear text, and {names} for none: pass either")
    if not has_keys and not insecure:
        raise ArgumentError(
            f"without keys ({names}) everything would go in clear text, and everybody who reaches "
            "the address could take part; insecure=True allows that"
        )


def check_address(address: Any) -> str:
    """Return an address, or raise an ArgumentError."""
    found = re.fullmatch(r"ipc://.+|tcp://.+:(\*|[0-9]+)", str(address))
    # Of larger ports, ZeroMQ takes the last 16 bits.
    if isinstance(address, str) and found and int((found[1] or "*").replace("*", "0")) < 2**16:
        return address
    raise ArgumentError(
        f"address={address!r} must be 'tcp://host:port', with a port below 65536, or 'ipc://path'"
    )

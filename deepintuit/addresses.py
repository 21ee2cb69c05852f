"""Clips on an object store, by fsspec: what an address may be, what lies below one, and copies of objects.

In a manifest the path of such a clip is where its copy lies in the workbench, `cache/fetched/<SHA-256>/<protocol>/
<bucket>/<key>`. That says where to fetch it and what must come, so a copy that was cleared away comes back when the
clip is next opened (`worlds.at_hand`). Only addresses below those that imports named (`clips/stores.txt`) are fetched.
Credentials are fsspec's business (environment, its configuration); an address that holds one is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from deepintuit import disk
from deepintuit.errors import ConfigError, DataError, DeepIntuitError, VideoError, VideoReason

PROTOCOLS = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
"""Others name files of this machine (file, local), wrap one store in another, or let a server send us elsewhere."""
FETCHED = "fetched"
_BOUND = "DEEPINTUIT_FETCHED_GIB"
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(::|://)")
_COPY = re.compile(rf"(.*?)/cache/{FETCHED}/([0-9a-f]{{64}})/({'|'.join(PROTOCOLS)})/(.+)", re.DOTALL)
# By these a store tells one content of an object from the next.
_VERSIONS = "ETag etag checksum blob_id LastModified last_modified updated mtime created".split()
_CREDENTIALS = "See whether the store can be reached from here with the credentials of the environment, then try again"
_PIECE = 2**20


class Object(NamedTuple):
    """An object below the address that a user named (`store`). `version` tells its content from the next one; None
    where the store does not say, and where it has no such object, `there` is false."""

    address: str
    store: str
    version: str | None = None
    there: bool = True

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.address)[1]


def is_address(place: object) -> bool:
    return isinstance(place, str) and _ADDRESS.match(place) is not None and not place.startswith("file://")


def shown(text: str) -> str:
    """A text without what may be a secret in its addresses: names and passwords before a host, and queries."""
    return re.sub(r"(://[^\s'\"?#]*)[?#][^\s'\"]*", r"\1", re.sub(r"://[^\s/'\"]*@", "://", text))


def checked(address: str) -> str:
    """An address of a store that can be read, without a slash at its end. DataError for any other."""
    protocol, separator = _ADDRESS.match(address).groups()
    host = address.split("://")[-1].split("/")[0]
    container = protocol in ("az", "abfs", "abfss") and ":" not in host
    todo = f"Name a folder as PROTOCOL://BUCKET/FOLDER, by {', '.join(PROTOCOLS)}"
    if separator == "::" or "::" in address or protocol not in PROTOCOLS:
        why = "clips are read from object stores alone: other protocols may lead to files and hosts nobody named"
    elif "?" in address or "#" in address or "@" in host and not container:
        why = "it holds a user, a password or a query, and would be kept in manifests and logs"
        todo = "Leave them out, and give credentials by the environment or fsspec's configuration"
    elif not all(map(_is_name, address.partition("://")[2].rstrip("/").split("/"))):
        why = "a name between its slashes is empty, '.' or '..', too long, or has '\\' or signs that do not print"
    else:
        return address.rstrip("/")
    raise DataError(f"{shown(address)!r} cannot be read as an address of clips", why, todo)


def refuse_address(place: object, purpose: str) -> None:
    """ConfigError for an address where a folder of this machine is needed."""
    if isinstance(place, str | Path) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::.*)?:/", str(place)):
        raise ConfigError(
            f"{shown(str(place))!r} is an address, and {purpose} is a folder of this machine",
            "an object store has no locks, no rename and no file that grows, by which runs, reviews and the index live",
            "Name a folder (--workbench DIR), import clips by address (`deepintuit clips folder s3://…`), and copy the "
            "folder with fsspec when its runs have ended; docs/scale.md shows how",
        )


def objects(store: str) -> dict[str, Object]:
    """What lies below an address, by its name there. DataError where the store does not list it."""
    system, root = _system(store)
    try:
        system.invalidate_cache()
        listing = system.find(root, detail=True)
    except Exception as error:
        raise DataError(f"{store!r} cannot be listed", _said(error), _CREDENTIALS) from error
    names = {
        place.lstrip("/").removeprefix(root.strip("/")).removeprefix("/"): facts for place, facts in listing.items()
    }
    return {
        name: Object(f"{store}/{name}", store, _version(facts))
        for name, facts in sorted(names.items())
        if name and facts.get("type") != "directory"
    }


def below(store: str, name: str, location: str) -> str:
    """The name below a store that a table means by `name`, which may be a whole address. DataError where it leads
    elsewhere, or may hold a secret."""
    address = name if is_address(name) else f"{store}/{name}"
    inside = address.removeprefix(f"{store}/")
    if inside == address or "?" in inside or "#" in inside or not all(map(_is_name, inside.split("/"))):
        raise DataError(
            f"{location} names {shown(address)!r}, which is not the plain address of an object below {store!r}",
            "a table may come from anyone, and is read with the credentials of this user",
            "Name with --videos an address that its clips lie below, and leave out queries, empty names and '..'",
        )
    return inside


def allow(workbench: Path, stores: Iterable[str]) -> None:
    """Clips of these stores may be fetched into this workbench from now on."""
    allowed = _stores(workbench)
    if added := sorted({*stores} - {*allowed}):
        disk.write_text(workbench / "clips" / "stores.txt", "".join(f"{store}\n" for store in [*allowed, *added]))


def fetch(workbench: Path, address: str) -> Path:
    """A copy of an object in the cache, for a first look. VideoError where its store does not give it."""
    return _fetched(workbench, address)


def origin(path: str | os.PathLike[str]) -> str | None:
    """The address of which a path is the copy, be it there or not; None for other paths."""
    parts = _parts(path)
    return parts and parts[2]


def at_hand(path: Path) -> None:
    """The copy at `path` is there when this returns. VideoError where the store does not give the same content."""
    workbench, digest, address = _parts(path)
    if path.exists():
        with contextlib.suppress(OSError):  # another user's
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # a server tells content by the latter
        return
    if not any(address.startswith(f"{store}/") for store in _stores(workbench)):
        why = "clips of this workbench were not imported from there (clips/stores.txt)"
        raise _refused(address, VideoReason.NOT_FOUND, why, "Import the clips from their store")
    _fetched(workbench, address, digest)


def copy_of(workbench: Path, address: str, digest: str) -> Path:
    """Where the copy of an object of this SHA-256 lies, or comes to lie."""
    return workbench.joinpath("cache", FETCHED, digest, *address.replace("://", "/", 1).split("/"))


def _fetched(workbench: Path, address: str, expected: str = "") -> Path:
    if not all(map(_is_name, address.split("://")[1].split("/"))):
        why = "a name between its slashes is empty, '.' or '..', too long, or has '::', '\\' or signs that do not print"
        raise _refused(address, VideoReason.READ_FAILED, why, "Give it another name")
    folder, room = workbench / "cache" / FETCHED, _room(workbench / "cache", _gib())
    system, place = _system(address)
    with disk.naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = disk.Scratch(folder)
    try:
        copy, digest, size = scratch.path / "clip", hashlib.sha256(), 0
        with open(copy, "xb") as target:
            for piece in _pieces(system, place, address):
                size += len(piece)
                if size > room.most:
                    why = f"it has more than {room.most:,} bytes, a sixteenth of what is kept of fetched clips"
                    raise _refused(address, VideoReason.TOO_LARGE, why, f"Raise {_BOUND} (GiB), or cut it into clips")
                digest.update(piece)
                with disk.naming(folder):
                    target.write(piece)
        if expected and digest.hexdigest() != expected:
            why = "the store has another object under this name than the one that was imported"
            raise _refused(address, VideoReason.CHANGED, why, "Put that one back, or import the clips again")
        target = copy_of(workbench, address, digest.hexdigest())
        with disk.naming(target):
            room.make(size)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(copy, target)
        return target
    finally:
        scratch.remove()


def _pieces(system: Any, place: str, address: str) -> Iterator[bytes]:
    """The bytes of an object; VideoError for what the store says instead."""
    try:
        system.invalidate_cache()
        with system.open(place, "rb") as source:
            size = getattr(source, "size", None)
            while piece := source.read(_PIECE):
                size = size and size - len(piece)
                yield piece
        if size:
            raise OSError(f"it ended {size:,} bytes early")
    except FileNotFoundError as error:
        why = "its store has no object of this name any more"
        raise _refused(address, VideoReason.NOT_FOUND, why, "Put it back, or import the clips again") from error
    except PermissionError as error:
        raise _refused(address, VideoReason.NO_PERMISSION, _said(error), _CREDENTIALS) from error
    except DeepIntuitError:
        raise
    except Exception as error:
        raise _refused(address, VideoReason.READ_FAILED, _said(error), _CREDENTIALS) from error


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address and its path there. DataError where its package is not installed."""
    import fsspec  # only who has such clips waits for it

    try:
        return fsspec.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        why = "fsspec reads this protocol by another package"
        raise DataError(f"{address!r} cannot be opened", why, f"{shown(str(error))}, then try again") from error
    except Exception as error:
        raise DataError(f"{address!r} cannot be opened", _said(error), _CREDENTIALS) from error


def _parts(path: str | os.PathLike[str]) -> tuple[Path, str, str] | None:
    """Workbench, SHA-256 and address of a copy's path; None for other paths."""
    match = _COPY.fullmatch(os.path.abspath(os.fsdecode(path)))
    return (Path(match[1]), match[2], f"{match[3]}://{match[4]}") if match else None


def _stores(workbench: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return (workbench / "clips" / "stores.txt").read_text(encoding="utf-8").splitlines()
    return []


def _version(facts: dict[str, Any]) -> str | None:
    return " ".join(str(facts[name]) for name in _VERSIONS if facts.get(name)) or None


def _is_name(name: str) -> bool:
    return name.strip(".") != "" and name.isprintable() and not re.search(r"::|\\", name) and len(name.encode()) <= 255


def _said(error: Exception) -> str:
    return f"the store says: {shown(str(error)) or type(error).__name__:.500}"


def _refused(address: str, reason: VideoReason, why: str, todo: str) -> VideoError:
    return VideoError(f"{address!r} cannot be fetched", why, todo, reason)


def _gib() -> float:
    text = os.environ.get(_BOUND, "50")
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 2**33:
            return float(text)
    raise ConfigError(f"{_BOUND} is {text!r}", "it is how many GiB of fetched clips are kept", "Give a number above 0")


@functools.cache
def _room(cache: Path, gib: float) -> disk.Room:
    return disk.Room(cache, (FETCHED,), int(gib * 2**30))

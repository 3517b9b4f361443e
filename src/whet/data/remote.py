"""Files and folders of object stores and web servers, through fsspec.

Every failure there (no such key, no access, no network, no package) becomes a DataError that says what to set.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from whet.config import DatasetConfig
from whet.core.errors import DataError, Problem, WhetError
from whet.core.nearest import nearest
from whet.core.secrets import redact
from whet.data.folders import Entry

_SAME_SCHEME = {"adl": "az", "abfss": "abfs", "s3a": "s3", "s3n": "s3"}
"""Schemes that are other names of one which fsspec knows."""

_S3 = ("s3fs", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)")
_GS = ("gcsfs", "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`")
_AZ = ("adlfs", "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or a connection string)")
_OCI = ("ocifs", "check ~/.oci/config, or set OCIFS_IAM_TYPE")
_WEB = ("aiohttp", "check that the address may be read without a login")
_STORES: dict[str, tuple[str, str]] = {
    "s3": _S3,
    "gs": _GS,
    "gcs": _GS,
    **dict.fromkeys(("az", "abfs"), _AZ),
    "oci": _OCI,
    "http": _WEB,
    "https": _WEB,
}
"""Scheme -> its package, and how one is let in."""

_NOT_LET_IN = {"NoCredentialsError", "ClientAuthenticationError", "ConfigFileNotFound", "InvalidConfig"}
"""What the packages raise, beside PermissionError, where one has no access."""

_LOGGERS = ("gcsfs", "adlfs", "azure", "ocifs", "oci", "s3fs", "aiobotocore")
"""Loggers of the packages; they write tracebacks of what becomes a DataError here."""

_VERSIONS = ("etag", "md5hash", "generation", "content-md5", "digest", "last-modified", "lastmodified", "mtime")
_TIMES = ("created", "modified", "updated")
"""What file systems call the version of a file (in small letters); a time is taken where there is nothing better."""

BLOCK = 1 << 20


def is_url(path: str) -> bool:
    return "://" in path


def shown(url: str) -> str:
    """An address without what may be secret in it: a password, and a query, which may be a signature.

    >>> shown("https://me:secret@host/a.jsonl?sig=abc"), shown("abfs://box@account.dfs.core.windows.net/a")
    ('https://host/a.jsonl', 'abfs://box@account.dfs.core.windows.net/a')
    """
    without_password = re.sub(r"(?<=://)[^/@\s]*:[^/@\s]*@", "", url)
    return redact(without_password.split("?")[0] if url.startswith(("http://", "https://")) else without_password)


@dataclass(frozen=True)
class Remote:
    """A file system, and how to speak of it.

    Attributes:
        scheme: of its addresses.
        address: one of them; it may name host, account or password.
        options: given to the file system; never shown.
        where: the place of the dataset in the YAML, for errors.
    """

    scheme: str
    address: str = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    where: str

    @classmethod
    def of(cls, dataset: DatasetConfig, url: str, where: str) -> Remote:
        """The file system of an address. Raises DataError for a scheme that nothing installed knows."""
        from fsspec import get_filesystem_class

        written = url.split("://")[0].lower()
        scheme = _SAME_SCHEME.get(written, written)
        options = dataset.storage_options.get_secret_value() if dataset.storage_options else {}
        for name in _LOGGERS:
            _quieten(logging.getLogger(name))
        try:
            get_filesystem_class(scheme)
        except ValueError as error:
            found = f"'{written}://' is no kind of URL"
            raise DataError(Problem(where, found, "use s3, gs, az, oci or https")) from error
        except ImportError as error:
            raise DataError(_missing_package(scheme, where, error)) from error
        return cls(scheme, f"{scheme}://{url.split('://', 1)[1]}", options, where)

    @property
    def is_web(self) -> bool:
        return self.scheme in ("http", "https")

    def system(self) -> Any:
        from fsspec.core import url_to_fs

        with self.asking(shown(self.address)):
            return url_to_fs(self.address, **self.options)[0]

    def path(self, url: str) -> str:
        """The address as the file system writes it."""
        return str(self.system()._strip_protocol(f"{self.scheme}://{url.split('://', 1)[1]}"))

    def url(self, path: str) -> str:
        return path if "://" in path else f"{self.scheme}://{path.removeprefix('/')}"

    @contextmanager
    def asking(self, label: str, where: str | None = None) -> Iterator[None]:
        """Turn whatever a file system raises into a DataError about ``label``."""
        try:
            yield
        except WhetError:
            raise
        except Exception as error:  # each file system raises what its own library does
            place = self.where if where is None else where
            raise DataError(self._problem(label, place, error)) from error

    def _problem(self, label: str, where: str, error: Exception) -> Problem:
        cause = error.__cause__
        if isinstance(error, FileNotFoundError) and self.is_web and isinstance(cause, Exception):
            # fsspec calls a web server's every failure "not found"
            error = error if getattr(cause, "status", None) == 404 else cause
        package, access = _STORES.get(self.scheme, (self.scheme, "check how one is let in there"))
        names = {kind.__name__ for kind in type(error).__mro__}
        text = self._without_secrets(str(error).strip().split("\n")[0])
        if isinstance(error, ImportError):
            return _missing_package(self.scheme, where, error)
        if isinstance(error, FileNotFoundError):
            found = f"there is no '{label}'" + (" (no such bucket)" if "bucket" in text.lower() else "")
            return Problem(where, found, self._nearest(label) or "check the address, and whether you may list it")
        if isinstance(error, PermissionError) or names & _NOT_LET_IN or "credential" in text.lower():
            anonymous = "; for a public bucket write `storage_options: {anon: true}`" if self.scheme == "s3" else ""
            return Problem(where, f"'{label}' may not be read ({text or type(error).__name__})", access + anonymous)
        status = getattr(error, "status", None)
        if status in (401, 403):
            return Problem(where, f"'{label}' may not be read (HTTP status {status})", access)
        if isinstance(error, TypeError | ValueError) and self.options and not names & {"JSONDecodeError"}:
            found = f"'{label}' cannot be read ({text or type(error).__name__})"
            return Problem(where, found, f"check `storage_options`, which is given to {package}")
        found = f"'{label}' cannot be read ({type(error).__name__}{f': {text}' if text else ''})"
        endpoint = ", and AWS_ENDPOINT_URL where it is set" if self.scheme == "s3" else ""
        return Problem(where, found, f"check the address and the network{endpoint}")

    def _without_secrets(self, text: str) -> str:
        for value in self.options.values():
            if isinstance(value, str) and len(value) > 3:
                text = text.replace(value, "***")
        return re.sub(r"(?<=://)[^/@\s]*:[^/@\s]*@|(?<=\?)[^\s'\")]+", "***", text)

    def _nearest(self, label: str) -> str | None:
        """Names the key one may have meant."""
        if self.is_web:
            return None
        with contextlib.suppress(Exception):
            path = self.path(label)
            parent = path.rpartition("/")[0]
            names = [str(name).rstrip("/").rpartition("/")[2] for name in self.system().ls(parent, detail=False)]
            close = nearest(path.rpartition("/")[2], names)
            if close:
                return f"did you mean '{self.url(parent)}/{close}'?"
        return None


@dataclass(frozen=True)
class RemoteFile:
    """A file of a remote file system.

    Attributes:
        remote: where it is.
        path: as the file system writes it, query and all.
        label: the address without secrets.
    """

    remote: Remote
    path: str
    label: str

    @property
    def local_path(self) -> None:
        return None

    def open(self, *, seekable: bool = False) -> BinaryIO:
        """A stream of the file's bytes; one of a web server is fetched to the disk first if it must be seekable."""
        web = self.remote.is_web
        options = {"block_size": 0} if web else {}
        with self.remote.asking(self.label, where=self.label):
            inner = self.remote.system().open(self.path, "rb", **options)
        stream = io.BufferedReader(_Stream(inner, self), BLOCK)
        if not (web and seekable):
            return stream
        with stream:
            fetched = tempfile.TemporaryFile()  # noqa: SIM115 (the reader closes it)
            shutil.copyfileobj(stream, fetched, BLOCK)
        fetched.seek(0)
        return cast(BinaryIO, fetched)

    def stamp(self) -> str | None:
        """The version that the store gives (an ETag, as a rule), and the size; None if it gives none."""
        with self.remote.asking(self.label):
            system = self.remote.system()
            system.invalidate_cache()
            info = {str(key).lower(): value for key, value in system.info(self.path).items()}
        version = [(key, str(info[key])) for key in (*_VERSIONS, *_TIMES) if info.get(key)]
        return repr((self.path, info.get("size"), version)) if version else None


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a remote file system."""

    remote: Remote
    path: str

    @property
    def label(self) -> str:
        return shown(self.remote.url(self.path))

    def has(self, name: str) -> bool:
        with self.remote.asking(self.label):
            return bool(self.remote.system().isfile(f"{self.path}/{name}"))

    def inner(self, name: str) -> RemoteFolder | None:
        with self.remote.asking(self.label):
            found = self.remote.system().isdir(f"{self.path}/{name}")
        return RemoteFolder(self.remote, f"{self.path}/{name}") if found else None

    def folders(self) -> list[str]:
        with self.remote.asking(self.label):
            entries = self.remote.system().ls(self.path, detail=True)
        names = [str(entry["name"]).rstrip("/") for entry in entries if entry["type"] == "directory"]
        return sorted(name.rpartition("/")[2] for name in names if name != self.path)

    def files(self, pattern: str) -> list[Entry]:
        with self.remote.asking(self.label):
            system = self.remote.system()
            found = system.find(self.path) if pattern == "**/*" else system.glob(f"{self.path}/{pattern}")
            paths = sorted(path for path in found if pattern == "**/*" or system.isfile(path))
        entries = [Entry(path.removeprefix(self.path).lstrip("/"), self._file(path)) for path in paths]
        return [entry for entry in entries if not any(part[:1] == "." for part in PurePosixPath(entry.path).parts)]

    def read(self, name: str) -> bytes:
        """The content of a small file in it."""
        with self.remote.asking(f"{self.label}/{name}"):
            return bytes(self.remote.system().cat_file(f"{self.path}/{name}"))

    def file(self, name: str) -> RemoteFile:
        return self._file(f"{self.path}/{name}")

    def _file(self, path: str) -> RemoteFile:
        return RemoteFile(self.remote, path, shown(self.remote.url(path)))


def find_remote(dataset: DatasetConfig, url: str, where: str) -> list[RemoteFile] | RemoteFolder:
    """What an address names: files, or a folder.

    Raises:
        DataError: there is nothing, or it cannot be asked for.
    """
    remote = Remote.of(dataset, url, where)
    label = shown(url)
    if remote.is_web:
        return [RemoteFile(remote, url, label)]
    with remote.asking(label):
        system = remote.system()
        path = remote.path(url).rstrip("/")
        if any(mark in url for mark in "*?["):
            found = (str(match) for match in system.glob(path) if system.isfile(match))
            paths = sorted(match for match in found if not PurePosixPath(match).name.startswith("."))
            if not paths:
                raise DataError(Problem(where, f"no file matches '{label}'", "check the address, and the pattern"))
            return [RemoteFile(remote, path, shown(remote.url(path))) for path in paths]
        if system.info(path)["type"] == "directory":
            return RemoteFolder(remote, path)
    return [RemoteFile(remote, path, label)]


class _Stream(io.RawIOBase):
    """A remote file whose failures are DataErrors that name it."""

    def __init__(self, inner: Any, file: RemoteFile) -> None:
        self._inner, self._file = inner, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._inner.seekable())

    def readinto(self, buffer: Any) -> int:
        with self._asking():
            data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._asking():
            return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        with self._asking():
            return int(self._inner.tell())

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            super().close()

    def _asking(self) -> contextlib.AbstractContextManager[None]:
        return self._file.remote.asking(self._file.label, where=self._file.label)


def _quieten(logger: logging.Logger) -> None:
    """Keep a package's log from standard error, where Python writes what no handler takes."""
    if not logger.hasHandlers():
        logger.addHandler(logging.NullHandler())


def _missing_package(scheme: str, where: str, error: Exception) -> Problem:
    package, _ = _STORES.get(scheme, (None, ""))
    if package is None:
        return Problem(where, f"'{scheme}://' needs a package ({error})", "install it with pip")
    fix = f"pip install {package}"
    return Problem(where, f"'{scheme}://' needs the package {package}, which is not installed", fix)

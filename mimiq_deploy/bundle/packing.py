"""Writing a set of files as a folder or as an archive: whole or not at all, and reproducible."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mimiq_runtime.atomic import atomic_path
from mimiq_runtime.errors import InvalidInputError
from mimiq_runtime.output_file import check_output_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Content", "archive_stem", "check_form", "pack", "write_archive", "write_folder"]

Content = bytes | Path
"""What a file shall hold: these bytes, or those of another file."""

ARCHIVES = (".tar.gz", ".tgz", ".tar")

_OTHER_ARCHIVES = frozenset(
    {".7z", ".bz2", ".cab", ".gz", ".jar", ".lz", ".lz4", ".lzma", ".rar", ".tar", ".tbz", ".tbz2"}
    | {".tgz", ".txz", ".tzst", ".whl", ".xz", ".z", ".zip", ".zst"}
)
"""Endings, in small letters, of what somebody would expect to be one file."""

# 1980-01-01: some tools do not know of times before.
_TIME = 315532800


def pack(
    files: Mapping[str, Content],
    output: Path,
    *,
    force: bool,
    replaceable: Callable[[Path], bool],
) -> None:
    """Write files as a folder, or as an archive where the name of ``output`` ends like one.

    Args:
        files: What each file shall hold, by its path with forward slashes.
        output: Where; ``.tar.gz``, ``.tgz`` or ``.tar`` for an archive, whose files lie in a folder
            of the same name.
        force: Replace what is there.
        replaceable: Whether a folder that is there may be replaced as a whole.

    Raises:
        InvalidInputError: There is something already, it lies within a run, or it cannot be
            written.
    """
    stem = archive_stem(output)
    check_output_file(output, "--output", or_folder=True)
    if output.exists() and not _is_empty_folder(output):
        if not force:
            raise InvalidInputError(
                f"{output} exists already; give another --output, or --force to replace it."
            )
        if output.is_dir() == (stem is not None) or (output.is_dir() and not replaceable(output)):
            raise InvalidInputError(
                f"{output} is not what this command writes, and is not replaced; give another "
                "--output."
            )
    if stem is None:
        write_folder(files, output)
    else:
        write_archive({f"{stem}/{name}": content for name, content in files.items()}, output)


def archive_stem(output: Path) -> str | None:
    """The name of an archive without its ending; None for the name of a folder.

    >>> archive_stem(Path("out/model.tar.gz")), archive_stem(Path("out/model"))
    ('model', None)
    """
    for ending in ARCHIVES:
        if output.name.endswith(ending) and output.name != ending:
            return output.name.removesuffix(ending)
    return None


def check_form(output: Path) -> None:
    """Refuse a name that ends like an archive of another kind: it would become a folder.

    Raises:
        InvalidInputError: It does.
    """
    if archive_stem(output) is None and output.suffix.lower() in _OTHER_ARCHIVES:
        raise InvalidInputError(
            f"{output} ends like an archive, and only {', '.join(ARCHIVES)} are written; give one "
            "of these endings, or the name of a folder."
        )


def write_folder(files: Mapping[str, Content], folder: Path) -> None:
    """Write files into a new folder, which replaces an older one as a whole.

    Raises:
        InvalidInputError: It cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"
        ) as name:
            new, old = Path(name) / "new", Path(name) / "old"
            new.mkdir()
            for relative, content in files.items():
                with atomic_path(new / relative) as path, path.open("wb") as target:
                    _copy(content, target)
            _exchange(new, folder, old)
    except OSError as error:
        raise InvalidInputError(
            f"Cannot write {folder}: {error.strerror or error}; "
            "choose a folder that is writable and has room."
        ) from error


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Put ``new`` in the place of ``folder``, which comes back where that fails."""
    if folder.exists():
        folder.replace(old)
    try:
        new.replace(folder)
    except OSError:
        if old.exists():
            old.replace(folder)
        raise


def write_archive(files: Mapping[str, Content], path: Path) -> None:
    """Write a tar archive, compressed unless it ends in ``.tar``.

    The same files give the same bytes: sorted by path, without owner, time and name of the
    archive.

    Raises:
        InvalidInputError: It cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as target:
        if path.name.endswith(".tar"):
            _write_tar(files, target)
        else:
            with gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0) as packed:
                _write_tar(files, packed)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write_tar(files: Mapping[str, Content], target: BinaryIO | gzip.GzipFile) -> None:
    with tarfile.open(mode="w", fileobj=target, format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            content = files[name]
            member = tarfile.TarInfo(name)
            member.mtime, member.mode = _TIME, 0o644
            if isinstance(content, Path):
                member.size = content.stat().st_size
                with content.open("rb") as source:
                    archive.addfile(member, source)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _copy(content: Content, target: BinaryIO) -> None:
    if isinstance(content, Path):
        with content.open("rb") as source:
            shutil.copyfileobj(source, target)
    else:
        target.write(content)

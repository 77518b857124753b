"""Writing the files of a family so that they are in use all at once, or not at all.

A file is written beside its place and renamed. A file that replaces another gets a name with its
digest, so that the one in use stays as it is; renaming the manifest puts the new ones in use. What
was in use before goes with the next run, and so does what a killed one has left.
"""

import fcntl
import hashlib
import os
import re
import tempfile
from pathlib import Path

TEMPORARY = ".writing-"
MANIFEST = "family.toml"
DIGITS = 16


def place(path, content):
    """Writes bytes beside `path` and renames them; the disk has them when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256(path):
    """Returns a file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Writer:
    """The one writer of a family's folder."""

    def __init__(self, folder, manifest):
        """Begins to write; `manifest` is taken where the folder has none."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{folder}: another run writes there") from None
        for path in folder.rglob(TEMPORARY + "*"):
            path.unlink()
        own = folder / MANIFEST
        self.text = own.read_text() if own.exists() else manifest

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.lock)

    def add(self, name, content):
        """Writes a file that the manifest names; it is in use after the commit."""
        stem, ending = os.path.splitext(name)
        any_name = re.compile(rf'"{re.escape(stem)}(\.[0-9a-f]{{{DIGITS}}})?{re.escape(ending)}"')
        self.sweep(stem, ending)
        digest = hashlib.sha256(content).hexdigest()
        versioned = self.folder / f"{stem}.{digest[:DIGITS]}{ending}"
        is_first = not (self.folder / MANIFEST).exists()
        path = self.folder / name if is_first else versioned
        for known in (self.folder / name, versioned):
            if known.exists() and sha256(known) == digest:
                path = known
                break
        else:
            place(path, content)
        self.text = any_name.sub(f'"{path.relative_to(self.folder).as_posix()}"', self.text)

    def sweep(self, stem, ending):
        """Removes the versions of a file that are not in use."""
        own = self.folder / MANIFEST
        used = own.read_text() if own.exists() else ""
        own_name = re.escape(Path(stem).name)
        pattern = re.compile(rf"{own_name}(\.[0-9a-f]{{{DIGITS}}})?{re.escape(ending)}")
        folder = (self.folder / stem).parent
        for path in folder.iterdir() if folder.is_dir() else []:
            name = path.relative_to(self.folder).as_posix()
            if pattern.fullmatch(path.name) and f'"{name}"' not in used:
                path.unlink()

    def commit(self):
        """Signs the manifest and puts it, and so everything that was added, in use."""

        def digest(name):
            return sha256(self.folder / name)

        text = re.sub(
            r'^"([^"]+)" = "[0-9a-f]*"$',
            lambda m: f'"{m[1]}" = "{digest(m[1])}"',
            self.text,
            flags=re.M,
        )
        text = re.sub(
            r'^file = "([^"]+)"\nsha256 = "[0-9a-f]*"$',
            lambda m: f'file = "{m[1]}"\nsha256 = "{digest(m[1])}"',
            text,
            flags=re.M,
        )
        place(self.folder / MANIFEST, text.encode())

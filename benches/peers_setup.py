"""Sets up the peers' virtual environments, `.tessera/peers-*`, from `peers-*.txt`."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("pytriton", "mlserver")
# The pinned versions have wheels for these.
PYTHONS = ("3.11", "3.12")


class Unavailable(Exception):
    """A server that cannot be had, and why."""


def environment(peer):
    """Returns the folder of a peer's programs, after setting it up unless that is done."""
    requirements = ROOT / "benches" / f"peers-{peer}.txt"
    folder = ROOT / ".tessera" / f"peers-{peer}"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp = folder / "requirements.sha256"
    if not stamp.is_file() or stamp.read_text() != digest:
        print(f"setting up {folder.relative_to(ROOT)}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        run([find_python(), "-m", "venv", folder])
        run(
            [
                folder / "bin/pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--only-binary",
                ":all:",
                "--require-hashes",
                "--requirement",
                requirements,
            ]
        )
        stamp.write_text(digest)
    return folder / "bin"


def versions():
    """Returns the pinned versions of what is compared."""
    pinned = "".join((ROOT / "benches" / f"peers-{peer}.txt").read_text() for peer in PEERS)
    return sorted(set(re.findall(r"^(?:nvidia-pytriton|mlserver|onnxruntime)==\S+", pinned, re.M)))


def find_python():
    """Returns an interpreter that the pinned versions have wheels for."""
    own = getattr(sys, "_base_executable", sys.executable)
    for candidate in (own, *(shutil.which(f"python{version}") for version in PYTHONS)):
        if candidate and version_of(candidate) in PYTHONS:
            return candidate
    raise Unavailable(f"needs Python {' or '.join(PYTHONS)}")


def version_of(python):
    """Returns an interpreter's version, such as 3.11, or nothing if it does not run."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    command = [python, "-c", code]
    found = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return found.stdout.decode().strip()


def run(command):
    """Runs a command, and tells the end of what it says if it fails."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Unavailable(last_line(done.stdout.decode(errors="replace")) or str(command[0]))


def last_line(text):
    """Returns the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

"""Files of Debian packages, unpacked into the user's cache without installing anything."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

#: Where packages are unpacked to.
CACHE = Path.home() / ".cache" / "pagedkv" / "debian"


def unpacked(package: str) -> Path:
    """The root of a package's files; fetches it with apt-get if it is not there yet.
    FileNotFoundError says what to install."""
    target = CACHE / package
    if target.is_dir():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command = ["apt-get", "download", "-qq", package]
            if subprocess.run(command, cwd=folder, capture_output=True).returncode:
                subprocess.run(["apt-get", "update", "-qq"], capture_output=True)  # no lists yet
                subprocess.run(command, check=True, cwd=folder, capture_output=True)
            file = next(Path(folder).glob("*.deb"))
            root = Path(folder) / "root"
            subprocess.run(["dpkg", "-x", str(file), str(root)], check=True)
            try:
                root.rename(target)
            except OSError:  # another process was quicker
                if not target.is_dir():
                    raise
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        raise FileNotFoundError(f"the text was not found: apt-get install {package}") from error
    return target

"""Where the library is looked for: a variable, the wheel, pkg-config, the system's loader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pagedkv

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(pagedkv.lib._name)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder that holds the package alone, as a wheel without a library would."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pagedkv", tmp_path / "site" / "pagedkv", ignore=ignore)
    return tmp_path / "site"


def run(site: Path, path: str = "/nowhere", **env: str) -> subprocess.CompletedProcess[str]:
    code = "import pagedkv; print(pagedkv.lib._name)"
    kept = {k: v for k, v in os.environ.items() if k not in ("PAGEDKV_LIBRARY", "LD_LIBRARY_PATH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(site), "PATH": path, **env},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=60,
    )


needs_a_file = pytest.mark.skipif(not LIBRARY.is_file(), reason="the library has no path")


@needs_a_file
def test_the_wheels_own_library_comes_first(site: Path):
    beside = site / ".pagedkv.mesonpy.libs"
    beside.mkdir()
    shutil.copy(LIBRARY, beside / "libpagedkv.so.0.2.0")
    found = run(site)
    assert found.stdout.strip() == str(beside / "libpagedkv.so.0.2.0"), found.stderr
    found = run(site, PAGEDKV_LIBRARY=str(LIBRARY))
    assert found.stdout.strip() == str(LIBRARY)


@needs_a_file
def test_pkg_config_is_asked_next(site: Path, tmp_path: Path):
    folder, tools = tmp_path / "lib dir", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    shutil.copy(LIBRARY, folder / "libpagedkv.so")
    script = tools / "pkg-config"
    script.write_text(f'#!/bin/sh\n[ "$*" = "--variable=libdir pagedkv" ] && echo "{folder}"\n')
    script.chmod(0o755)
    found = run(site, path=str(tools))
    assert found.stdout.strip() == str(folder / "libpagedkv.so"), found.stderr


def test_a_missing_library_says_where_it_was_looked_for(site: Path):
    found = run(site, PAGEDKV_LIBRARY="/nowhere/libpagedkv.so")
    assert found.returncode == 1
    assert "LibraryNotFound" in found.stderr and "/nowhere/libpagedkv.so" in found.stderr


def test_versions_agree():
    text = (ROOT / "pyproject.toml").read_text()
    version = text.split('version = "')[1].split('"')[0]
    assert version == pagedkv.__version__ == pagedkv.library_version()
    assert f"version: '{version}'" in (ROOT / "meson.build").read_text()

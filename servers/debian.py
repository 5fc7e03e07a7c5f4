"""What is not on PyPI, from Debian's packages, unpacked into ``.venv/debian`` without root: ``python -m servers.debian``.

scripts/setup runs it. It uses apt's own settings for where packages come from and checks their signatures as apt does; if apt's lists are
missing or stale, lists of its own are fetched beside the unpacked files. Where there is no apt it says so and changes nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

UNPACKED = Path(sys.prefix) / "debian"

PGBOUNCER = ("pgbouncer", "libevent-2.1-7", "libc-ares2")


def postgresql() -> tuple[str, ...]:
    """Debian 12's PostgreSQL, unless it is installed."""
    return () if Path("/usr/lib/postgresql/15/bin/initdb").exists() else ("postgresql-15", "libpq5")


def _apt(folder: Path, *arguments: str, own_lists: bool) -> bool:
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=", "-o", f"Dir::Cache={folder}"]
    if own_lists:
        (folder / "state/lists/partial").mkdir(parents=True, exist_ok=True)
        (folder / "archives/partial").mkdir(parents=True, exist_ok=True)
        command += ["-o", f"Dir::State::lists={folder}/state/lists", "-o", "Debug::NoLocking=1"]
    return subprocess.run([*command, *arguments], cwd=folder, stdin=subprocess.DEVNULL, timeout=240).returncode == 0


def fetch(packages: tuple[str, ...], to: Path = UNPACKED) -> str | None:
    """Download packages and unpack them together; why that could not be done, or None. Nothing of them is run."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "this is not Debian (no apt-get)"
    work = to.with_name(f"{to.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    (work / "download").mkdir(parents=True)
    try:
        download = ("download", *packages)
        if not (
            _apt(work / "download", *download, own_lists=False)
            or (_apt(work / "download", "update", own_lists=True) and _apt(work / "download", *download, own_lists=True))
        ):
            return f"apt-get could not download {' '.join(packages)}"
        for file in (work / "download").glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", file, work], check=True)
        shutil.rmtree(work / "download")
        for folder in (work / "usr/lib").glob("*-linux-*"):  # the machine's name for its kind of libraries
            folder.rename(work / "usr/lib/shared")
        shutil.rmtree(to, ignore_errors=True)
        work.rename(to)
        return None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    why = fetch((*PGBOUNCER, *postgresql()))
    if why:
        print(f"servers.debian: {why}", file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())

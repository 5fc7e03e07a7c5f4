"""What is on Maven only, copied into ``.venv/kafka``: Apache Kafka and what it needs, as ``pom.xml`` says: ``python -m servers.maven``.

scripts/setup runs it. ``python -m servers.maven debezium`` brings Debezium, for benchmarks, into ``.venv/debezium``. It uses Maven's own
settings for where packages come from. Where there is no Java or no Maven it says so and changes nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

COPIED = Path(sys.prefix) / "kafka"
DEBEZIUM = Path(sys.prefix) / "debezium"

POM = Path(__file__).with_name("pom.xml")


def fetch(to: Path = COPIED, pom: Path = POM) -> str | None:
    """Resolve what ``pom`` names and copy it; why that could not be done, or None. Nothing of it is run."""
    for program in ("java", "mvn"):
        if not shutil.which(program):
            return f"there is no {program} on this machine (Java 17 or newer and Maven bring a Kafka)"
    work = to.with_name(f"{to.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={work}"]
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=400)
        if ran.returncode or not any(work.glob("*.jar")):
            return f"Maven could not bring what servers/{pom.name} names; its own words stand above"
        shutil.rmtree(to, ignore_errors=True)
        work.rename(to)
        return None
    except subprocess.TimeoutExpired:
        return f"Maven took too long to bring what servers/{pom.name} names"
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> int:
    why = fetch(DEBEZIUM, POM.with_name("debezium.xml")) if sys.argv[1:] == ["debezium"] else fetch()
    if why:
        print(f"servers.maven: {why}", file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())

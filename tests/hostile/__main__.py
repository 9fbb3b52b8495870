"""Try every hostile input against every server, and print what came of it: `make hostile`."""

import sys
import tempfile
from pathlib import Path

from tests.hostile.suite import attack

if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nexcache-hostile-") as directory:
        table = attack(Path(directory))
    sys.stdout.write(f"{table}\n")
    sys.exit(table.leaked > 0)

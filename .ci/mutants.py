"""
Mutate one file, and list the mutants that its tests do not notice (cosmic-ray; `pip install -e ".[test,mutants]"`).

    python .ci/mutants.py FILE TEST [TEST ...] [--sample 40] [--seed 0]

The mutants are made in a copy of the checkout, which is removed afterwards: cosmic-ray changes files in place. Every
mutant runs the tests once, up to the first failure, so name the few test files that are about FILE. `--sample` draws
that many mutants, the same ones for a seed. `cosmic-ray.toml` beside this file says what is mutated.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = Path(__file__).with_name("cosmic-ray.toml")


def main() -> None:
    """Parse the command line, and run cosmic-ray's stages one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the file to mutate, relative to the checkout")
    parser.add_argument("tests", nargs="+", help="test files (or ids) that should notice")
    parser.add_argument("--sample", type=int, help="number of mutants; all by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Mutate the file in a copy of the checkout and print the survivors."""
    # 1. Copy the checkout. The copy comes first on the path, before an editable install of the original.
    checkout = folder / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    listed.check_returncode()
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    (folder / "site").mkdir()
    (folder / "site" / "spatialalign_rewards").symlink_to(checkout / "rewards")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(checkout), str(folder / "site")])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a stale cache would hide a mutant of the same size and second
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    # 2. The tests must pass without a mutation; a mutant may take three times as long.
    test_command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *args.tests]
    start = time.monotonic()
    baseline = subprocess.run(test_command, cwd=checkout, capture_output=True, text=True)
    if baseline.returncode != 0:
        sys.exit(f"the tests fail without a mutation:\n{baseline.stdout[-3000:]}{baseline.stderr[-1000:]}")
    seconds = time.monotonic() - start

    # 3. List the mutants, and leave out those of the settings' filter and those not drawn.
    settings = SETTINGS.read_text(encoding="utf-8").replace("MODULE", args.file)
    settings = settings.replace("TEST_COMMAND", shlex.join(test_command)).replace(
        '"TIMEOUT"', f"{3 * seconds + 60:.0f}"
    )
    (folder / "settings.toml").write_text(settings, encoding="utf-8")
    config, session = str(folder / "settings.toml"), str(folder / "session.sqlite")
    for command in (["cosmic-ray", "init", config, session], ["cr-filter-operators", session, config]):
        subprocess.run(command, cwd=checkout, check=True)
    print(f"{draw(session, args.sample, args.seed)} mutants of {args.file}, up to {seconds:.0f} s each", flush=True)

    # 4. Run the tests on every mutant.
    subprocess.run(["cosmic-ray", "exec", config, session], cwd=checkout, check=True)
    subprocess.run(["cr-report", "--surviving-only", "--show-diff", session], cwd=checkout, check=True)


def draw(session: str, count: int | None, seed: int) -> int:
    """Skip all mutants of a session but `count`, drawn with the seed; returns how many are left."""
    with use_db(session, WorkDB.Mode.open) as database:
        place = {item.job_id: str(item.mutations) for item in database.pending_work_items}
        items = sorted(place, key=place.__getitem__)
        drawn = items if count is None else random.Random(seed).sample(items, min(count, len(items)))
        for item in set(items) - set(drawn):
            database.set_result(item, WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output="not drawn"))
    return len(drawn)


if __name__ == "__main__":
    main()

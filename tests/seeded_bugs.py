"""Tests the tests: seeds a bug, runs the tests that should see it, and expects them to fail.

    python tests/seeded_bugs.py               every bug, an hour or more
    python tests/seeded_bugs.py sgd dropout   those in files whose path holds one of these words

A bug is a file, a text in it, and what takes its place; each runs in a copy of its own. Add one
whenever you think of a mistake that somebody might make.
"""

import ast
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent


def bugs() -> list[tuple[str, str, str, str]]:
    """(file, tests, old text, new text) of every SEEDED_BUGS in a test file.

    SEEDED_BUGS = {file: (tests that should see a bug in it, [(old text, new text), ...])}: the
    tests are files under tests/, perhaps with -k and words joined by _or_.
    """
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SEEDED_BUGS":
                for file, (tests, changes) in ast.literal_eval(node.value).items():
                    found += [(file, tests, old, new) for old, new in changes]
    return found


def main() -> None:
    words = sys.argv[1:]
    missed = []
    for file, tests, old, new in bugs():
        if words and not any(word in file for word in words):
            continue
        caught = is_caught(file, old, new, tests)
        print("caught" if caught else "MISSED", file, repr(old), "->", repr(new), flush=True)
        if not caught:
            missed.append((file, old, new))
    print(f"{len(missed)} bugs were missed")
    raise SystemExit(bool(missed))


def is_caught(file, old, new, tests):
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fdl"
        skip = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=skip)
        text = (copy / file).read_text()
        if old not in text:
            raise SystemExit(f"{file}: expected the text {old!r}, got none; mend the list of bugs")
        (copy / file).write_text(text.replace(old, new))
        files, _, words = tests.partition(" -k ")
        paths = [str(copy / "tests" / test) for test in files.split()]
        chosen = ["-k", words.replace("_or_", " or ")] if words else []
        quiet = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", "-m", "", *quiet, *chosen, *paths]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    # 3: a bug that leaves a thread running can end pytest itself.
    if done.returncode not in (0, 1, 2, 3):
        raise SystemExit(
            f"{file}: pytest itself failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode != 0


if __name__ == "__main__":
    main()

"""The `gpu` tests, one process a file, several at a time: python bench/gpu_tests.py [FOLDER ..]

A kernel that faults or hangs ends its process (tests/gpu_guard.py); the file's other tests go on in a new one, up to
`LOSSES` times. pytest-xdist could not stand in: `loadfile` of xdist 3.8 runs the test that ended a worker again and
again, and `load` makes all workers wait for one file's compiler. Files are printed as they end, whole; the last line
names those that failed. Exit status: 0 if all tests passed.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Of a gpu mark, or of a fixture that has one; pytest then selects.
MENTION = re.compile(r"\bgpu\b|\bPLACES\b|\brunner\b")
LOSSES = 3  # of a file, after which its other tests are not begun: each costs a new process
NO_TESTS = 5


class Files:
    """Runs files of tests; `stop()` ends those that run."""

    def __init__(self, at_once: int, python: str = sys.executable):
        self.at_once, self.python = at_once, python
        self.failed: dict[str, str] = {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()  # of what is printed, and of all above
        self._stopped = False

    def run(self, files: list[Path]) -> int:
        """How many files had tests."""
        with concurrent.futures.ThreadPoolExecutor(self.at_once) as pool:
            return sum(pool.map(self._file, files))

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.send_signal(signal.SIGKILL)

    def _file(self, file: Path) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            begun, said = Path(folder) / "begun", Path(folder) / "said"
            losses, status = 0, self._process(file, begun, said)
            while status not in (0, 1, NO_TESTS) and not self._stopped:
                losses += 1
                if losses == LOSSES or not begun.exists():
                    break
                status = self._process(file, begun, said)
            if status == NO_TESTS and not losses:
                return False
            text = said.read_text(errors="replace").rstrip()
            if self._stopped:
                text += "\nstopped: the time is over"
            with self._lock:
                if status not in (0, NO_TESTS) or losses:
                    lost = f" (ended {losses} processes)" if losses else ""
                    self.failed[f"{file.name}{lost}"] = text
                print(f"---- {file}\n{text}\n", flush=True)
            return True

    def _process(self, file: Path, begun: Path, said: Path) -> int:
        command = [self.python, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider", str(file)]
        with open(said, "ab") as out:
            with self._lock:
                if self._stopped:
                    return 1
                process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "GPU_TESTS_BEGUN": str(begun)}
                )
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        return status


def main(folders: list[str]) -> int:
    found = sorted(file for folder in folders or ["tests"] for file in Path(folder).rglob("test_*.py"))
    files = Files(at_once=max(1, (os.cpu_count() or 1) * 3 // 4))

    def stop(*_: object) -> None:
        threading.Thread(target=files.stop).start()

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, stop)
    count = files.run([file for file in found if MENTION.search(file.read_text())])
    print(f"{count} files with gpu tests, {len(files.failed)} failed: {', '.join(sorted(files.failed)) or 'none'}")
    return 1 if files.failed or not count else 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(sys.argv[1:]))

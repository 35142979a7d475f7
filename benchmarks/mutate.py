"""Read many damaged files, and count the outcomes.

Usage:
  mutate.py [options]
  mutate.py (-h | --help)

Options:
  -h --help          Show this text.
  --count=<n>        Number of files. [default: 1000]
  --seed=<n>         Seed of the damage. [default: 0]
  --readers=<names>  Readers of `mutated_readers.READERS`, comma-separated. Left out: all.
  --data=<dir>       The project's folder of real data; a few of its files are damaged too.
  --processes=<n>    Files that are read at once. [default: 2]
  --keep=<dir>       Folder for the files with faults. [default: mutated]

A file may be read, or refused with an error that scripts print as one line. All else is a fault: another error, the end
of the process, more than 20 s of CPU time, more memory than twice that of the whole file plus 256 MB, or a command that
the reader runs.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from docopt import docopt

# Limits of CPU time and of wall time; the latter is long, since the machine may be busy.
TIME_S, WAIT_S = 20, 200
SPARE_BYTES = 256 << 20
# Most memory of a process that reads, so that a fault does not bring down the machine.
MAX_BYTES = 6 << 30
READ, REFUSED = "read", "refused"
_COMMANDS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen")


@dataclass
class Tally:
    """The outcomes: number of files by (reader, outcome), and a line for each fault."""

    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    args = docopt(__doc__, argv)
    from benchmarks.mutated_readers import READERS

    names = args["--readers"].split(",") if args["--readers"] else list(READERS)
    start = time.perf_counter()
    data = Path(args["--data"]) if args["--data"] else None
    tally = run(int(args["--count"]), int(args["--seed"]), names, data, int(args["--processes"]), Path(args["--keep"]))
    outcomes = sorted({outcome for _, outcome in tally.counts})
    print("".join(f"{cell:>14}" for cell in ("reader", *outcomes)))
    for name in names:
        print("".join(f"{cell:>14}" for cell in (name, *(tally.counts[name, outcome] for outcome in outcomes))))
    for fault in tally.faults:
        print(fault)
    print(f"{tally.counts.total()} files, {len(tally.faults)} faults, {time.perf_counter() - start:.0f} s")
    return 1 if tally.faults else 0


def run(count: int, seed: int, names: list[str], data: Path | None, processes: int, keep: Path | None) -> Tally:
    """Damage and read `count` files, equally many for each reader."""
    from benchmarks.mutated_readers import write_whole_files

    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        whole = write_whole_files(Path(folder) / "whole", data)
        jobs = []
        for number, name in enumerate(names):
            share = count // len(names) + (number < count % len(names))
            room = Path(folder) / name
            room.mkdir()
            jobs.append(pool.submit(try_reader, name, whole[name], share, seed, room, tally, keep))
        for job in jobs:
            job.result()
    return tally


def try_reader(
    name: str, whole: list[Path], count: int, seed: int, room: Path, tally: Tally, keep: Path | None
) -> None:
    """Damage and read the files of one reader."""
    from benchmarks.mutations import mutate

    rng, reading = random.Random(f"{seed} {name}"), Reading()
    try:
        needs = {path: _expect_read(reading.read(name, path), path) for path in whole}
        for number in range(count):
            origin = rng.choice(whole)
            target = room / f"{seed}-{number}-{origin.name}"
            way = mutate(origin, target, rng)
            outcome, detail, taken = reading.read(name, target)
            if outcome in (READ, REFUSED) and taken > 2 * needs[origin] + SPARE_BYTES:
                outcome, detail = "memory", f"{taken / 1e6:.0f} MB, {needs[origin] / 1e6:.0f} MB for the whole file"
            tally.counts[name, outcome] += 1
            if outcome not in (READ, REFUSED):
                tally.faults.append(f"{name} {target.name} ({way}): {outcome}: {detail}")
                if keep is not None:
                    keep.mkdir(exist_ok=True)
                    shutil.copy(target, keep)
            target.unlink(missing_ok=True)
    finally:
        reading.close()


def _expect_read(result: tuple[str, str, int], path: Path) -> int:
    outcome, detail, taken = result
    if outcome != READ:
        raise ValueError(f"{path.name} is whole and was not read: {detail}")
    return taken


class Reading:
    """A process that reads files; it is replaced when it ends or takes too long."""

    def __init__(self):
        self._process = None

    def read(self, name: str, path: Path) -> tuple[str, str, int]:
        """Return the outcome for a file, a detail, and the bytes of memory that reading took."""
        if self._process is None:
            # forked from a process that has already imported the slow modules
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["infer.run", "benchmarks.mutated_readers"])
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
            self._pipe.recv()  # its imports are done
        self._pipe.send((name, path))
        try:
            if self._pipe.poll(WAIT_S):
                return self._pipe.recv()
            outcome = "hang", f"no end in {WAIT_S} s", 0
        except EOFError:
            self._process.join()
            outcome = "crash", f"exit code {self._process.exitcode}", 0
        self.close()
        return outcome

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None


def _serve(pipe: Connection) -> None:
    from benchmarks.mutated_readers import READERS

    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    executed: list[str] = []

    def audit(event: str, args: tuple) -> None:
        # slides that only OpenSlide reads are tested in a process of their own
        if event in _COMMANDS and "openslide" not in str(args):
            executed.append(f"{event} {args!r:.200}")

    sys.addaudithook(audit)
    pipe.send("ready")
    while True:
        try:
            name, path = pipe.recv()
        except EOFError:
            return
        before, start, outcome = _reset_peak(), time.process_time(), (READ, "")
        try:
            READERS[name][0](path)
        except (ValueError, OSError, MemoryError) as error:
            outcome = REFUSED, str(error)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = type(error).__name__, f"{error!s:.200} ({where.filename}:{where.lineno})"
        if (seconds := time.process_time() - start) > TIME_S:
            outcome = "hang", f"{seconds:.0f} s"
        if executed:
            outcome = "executed", executed.pop()
        pipe.send((*outcome, max(_peak() - before, 0)))


def _reset_peak() -> int:
    """Reset the peak memory of this process, and return its present memory, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    sys.exit(main())

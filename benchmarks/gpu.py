"""Measure on a CUDA GPU: parity with the CPU, speed of the network, a slide, training steps, and then training.

Each step is a process with its own time limit. If a step fails or takes too long, the table says so, the rows so far
stay, and the next step runs. Results are gpu.md, gpu.json and gpu.log in the folder of the environment variable OUT
(logs/gpu without it); they are written again after each step.

Usage:
  gpu.py [options]

Options:
  -h --help       Show this text.
  --rehearse      Run everything on the CPU with tiny sizes, as a test of the scripts.
  --minutes=<n>   Time for all steps together; training gets the rest. [default: 12]
  --steps=<list>  Steps to run, comma-separated. [default: parity,speed,slide,steps,training]
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from docopt import docopt

ROOT = Path(__file__).resolve().parents[1]
# Seconds that each step may take, in this order.
LIMITS_S = {"parity": 90, "speed": 150, "slide": 170, "steps": 70}
TRAINING = "training"
TRAIN_SCRIPT = ROOT / "benchmarks" / "gpu_train.sh"
MIN_TRAINING_S = 20  # with less time left, training does not start
RESERVE_S = 10  # for writing the results
GRACE_S = 8  # between asking a process to stop and killing it


def main() -> int:
    args = docopt(__doc__)
    start, out = time.monotonic(), Path(os.environ.get("OUT") or "logs/gpu").absolute()
    wanted = args["--steps"].split(",")
    if unknown := sorted(set(wanted) - {*LIMITS_S, TRAINING}):
        sys.exit(f"gpu.py: --steps has no {', '.join(unknown)}; there are {', '.join(LIMITS_S)} and {TRAINING}")
    out.mkdir(parents=True, exist_ok=True)
    ends = start + 60 * float(args["--minutes"]) - RESERVE_S
    results = {"device": device_name(args["--rehearse"]), "steps": []}
    for step in wanted:
        limit = ends - time.monotonic()
        if step != TRAINING:
            limit = min(limit, LIMITS_S[step])
        results["steps"].append(run_step(step, limit, out, args["--rehearse"]))
        write(results, out)
    print((out / "gpu.md").read_text())
    return 0


def device_name(rehearse: bool) -> str:
    """Return the device and the versions that the numbers are from."""
    import torch

    if rehearse or not torch.cuda.is_available():
        return f"a rehearsal on the CPU, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def command(step: str, rows: Path, rehearse: bool) -> list[str] | None:
    """Return the command of a step; `None` if there is none."""
    if step != TRAINING:
        return [sys.executable, "-m", f"benchmarks.gpu_{step}", str(rows), *(["--rehearse"] if rehearse else [])]
    if "TRAIN_COMMAND" in os.environ:
        return shlex.split(os.environ["TRAIN_COMMAND"])
    return ["bash", str(TRAIN_SCRIPT), *(["--rehearse"] if rehearse else [])] if TRAIN_SCRIPT.exists() else None


def run_step(step: str, limit_s: float, out: Path, rehearse: bool) -> dict:
    """Run a step, and return its name, status, seconds and rows."""
    rows, start = out / f".{step}.jsonl", time.monotonic()
    rows.unlink(missing_ok=True)
    words = command(step, rows, rehearse)
    if words is None:
        status = "nothing to run: no TRAIN_COMMAND, no benchmarks/gpu_train.sh"
    elif limit_s < (MIN_TRAINING_S if step == TRAINING else 1):
        status = "no time left"
    else:
        with open(out / "gpu.log", "a", encoding="utf-8") as log:
            log.write(f"\n===== {step}: {shlex.join(words)}, at most {limit_s:.0f} s\n")
            log.flush()
            status = watched(words, limit_s, log, {"OUT": str(out), "SECONDS_LEFT": f"{max(limit_s, 0):.0f}"})
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    rows.unlink(missing_ok=True)
    seconds = time.monotonic() - start
    print(f"{step}: {status}, {seconds:.0f} s, {len(found)} rows", flush=True)
    return {"step": step, "status": status, "seconds": round(seconds, 1), "rows": found}


def watched(words: list[str], limit_s: float, log, environment: dict[str, str]) -> str:
    """Run a command, stop it and all its processes after the time limit, and return its status."""
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **environment}, start_new_session=True
    )
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
            os.killpg(process.pid, number)
            try:
                process.wait(wait_s)
                break
            except subprocess.TimeoutExpired:
                continue
        return f"stopped after {limit_s:.0f} s"
    return "done" if code == 0 else f"failed with {code}, see gpu.log"


def write(results: dict, out: Path) -> None:
    """Write gpu.json and gpu.md."""
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    steps = [{key: step[key] for key in ("step", "status", "seconds")} for step in results["steps"]]
    parts = [f"# {results['device']}", *table(steps)]
    for step in results["steps"]:
        if step["rows"]:
            parts += ["", f"## {step['step']}", *table(step["rows"])]
    (out / "gpu.md").write_text("\n".join(parts) + "\n")


def table(rows: list[dict]) -> list[str]:
    """Return the lines of a Markdown table; columns are the keys of all rows, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]


def _cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())

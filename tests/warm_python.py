"""A Python that starts at once, for many short commands: a process that has imported what is slow, and forks.

As a script it is that process (`warm_python.py SOCKET`). `python` in the folder that `WarmPython` makes asks it to run
a script of this repository, with the caller's folder, environment and output, and ends with that script's exit code.
What the script imports of ours is imported anew each time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

SLOW = """
torch torch._dynamo torch.utils.tensorboard cv2 scipy.io scipy.ndimage scipy.spatial scipy.stats skimage.measure
skimage.segmentation tifffile openslide shapely matplotlib.pyplot matplotlib.backends.backend_agg
""".split()
MAX_BYTES = 1 << 20  # of a request
ASK = f"""#!/bin/sh
exec '{sys.executable}' -ISc '
import json, os, socket, sys
if sys.argv[1:2] == ["-u"]:
    del sys.argv[1]
if not sys.argv[1:] or not (sys.argv[1] == "-m" or sys.argv[1].endswith(".py")):
    os.execv({sys.executable!r}, ["python", *sys.argv[1:]])
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["WARM_PYTHON"])
    socket.send_fds(server, [asked], [0, 1, 2])
    code = int(server.recv(16))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
' "$@"
""".replace(f"{sys.executable!r}", f'"{sys.executable}"')


class WarmPython:
    """The process, and the folder with `python` that calls it; to be used in `with`."""

    def __init__(self, folder: Path):
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "python").write_text(ASK)
        (self.bin / "python").chmod(0o755)
        self.socket = folder / "warm"
        self.environ = {
            **os.environ,
            "PYTHON_EXEC": str(self.bin / "python"),  # what torchrun starts
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "WARM_PYTHON": str(self.socket),
        }

    def __enter__(self) -> WarmPython:
        command = [sys.executable, str(Path(__file__)), str(self.socket)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environ)
        assert self.process.stdout.readline() == b"warm\n"
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


def serve(path: str) -> None:
    """Run what is asked for, each in a process of its own, until this one is ended.

    All on one processor: what starts helpers a processor then starts one, which is most of what a short command costs.
    Test processes side by side (gw0, gw1, ...) take different ones.
    """
    if hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        os.sched_setaffinity(0, {processors[-1 - number % len(processors)]})
    os.fsync = lambda file: None  # as in conftest.py
    for name in SLOW:
        importlib.import_module(name)
    gc.freeze()  # or each process would take apart what was imported here before it ends
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("warm", flush=True)
        while True:
            connection, _ = server.accept()
            with contextlib.suppress(ChildProcessError):  # processes that have answered
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork() == 0:
                server.close()
                return answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Run one script in a fork and tell its exit code; returns in the script's process only where that ends well."""
    asked, handles, *_ = socket.recv_fds(connection, MAX_BYTES, 3)
    script = os.fork()
    if script == 0:
        connection.close()
        for number, handle in enumerate(handles):
            os.dup2(handle, number)
            os.close(handle)
        return run(*json.loads(asked))
    _, status = os.waitpid(script, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def run(argv: list[str], folder: str, environ: dict[str, str]) -> None:
    """Run `SCRIPT.py ...` or `-m MODULE ...` in a folder as the only thing that this process does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    if argv[0] == "-m":
        sys.argv, sys.path[0] = argv[1:], folder
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv, str(Path(argv[0]).resolve().parent)
        runpy.run_path(str(Path(argv[0]).absolute()), run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])

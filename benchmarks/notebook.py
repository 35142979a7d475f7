"""Run a notebook, and store its output in it.

Usage:
  notebook.py <path>
  notebook.py (-h | --help)

Progress bars and times are dropped, and pictures become JPEG, so that the file is small and the same on every machine.
Needs requirements-notebook.txt. From the root: python -m benchmarks.notebook docs/first_steps.ipynb
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from docopt import docopt
from PIL import Image

from misc.extras import require
from misc.files import atomic_path

JPEG_QUALITY = 85


def execute(notebook, folder: Path) -> None:
    """Run all cells in a folder, and store their output in the notebook.

    Raises:
        ValueError: nbclient is not installed.
        nbclient.exceptions.CellExecutionError: a cell raised an error; the message names it.
    """
    client = require("nbclient", "notebook").NotebookClient(notebook, resources={"metadata": {"path": str(folder)}})
    client.execute()


def clean(notebook) -> None:
    """Drop progress bars, times and the version of Python; make pictures JPEG."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data = {"image/jpeg": _jpeg(output.data["image/png"]), "text/plain": "a picture"}


def _jpeg(png: str) -> str:
    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").save(out, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    target = Path(docopt(__doc__)["<path>"])
    nbformat = require("nbformat", "notebook")
    read = nbformat.read(target, as_version=4)
    execute(read, target.parent)
    clean(read)
    with atomic_path(target) as temporary:
        nbformat.write(read, temporary)

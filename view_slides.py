"""Look at slides and their nuclei in the browser: from the whole slide to single nuclei, from this machine alone.

Usage:
  view_slides.py [options] --results_dir=<path> --wsi_dir=<path>
  view_slides.py [options] --json=<path> --slide=<path>
  view_slides.py (-h | --help)

Options:
  -h --help                Show this text.
  --results_dir=<path>     Folder that run_infer.py wrote (its json/ is read), or any folder of JSON files of nuclei.
  --wsi_dir=<path>         Folder with the slides (or images) of the same names.
  --json=<path>            One JSON file, instead of a folder.
  --slide=<path>           Its slide.
  --compare=<path>         Second results of the same slides, shown in a second colour: a folder as --results_dir, a
                           folder of labels (.mat, .npy), or one such file.
  --heat_dir=<path>        Folder that plot_heat_map.py wrote: hot spots, and with its --score DAB densities. Left out:
                           what lies in --results_dir and the folders in it.
  --type_info_path=<path>  JSON with names and colours of the types. Left out: what the JSON of the nuclei says.
  --mpp=<um>               Micrometres per level-0 px. Left out: what JSON or slide say.
  --scale=<n>              Level-0 px per px of the JSON. Left out: what the JSON says, else as plot_heat_map.py.
  --port=<n>               Where the server listens on 127.0.0.1; 0 is any port that is free. [default: 0]
  --no_browser             Print the address of the page, and open no browser.
  --export=<folder>        Start no server: write the hot spots and regions as a page that opens from disk, for somebody
                           who has neither the slide nor Python.
  --region=<x,y,w,h>       With --export: this field of the slides, level-0 px, instead of hot spots and regions.

The first look at a slide makes an index of its nuclei in a hidden folder beside the JSON file (some 100 MB for a
million nuclei; it may be removed at any time). Nothing else is written. Other users of this machine can open the page
while the server runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from misc.cli import number, run_command
from misc.text import counted

if TYPE_CHECKING:
    from viewer.slides import Library, Options


def main(argv: list[str] | None = None) -> int:
    return run_command(__doc__, view, argv)


def view(args: dict) -> int:
    """Check the options, then serve until Ctrl-C, or export."""
    import logging

    from viewer.slides import Library

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    port, region = _port(args), _region(args)
    library = Library(parse(args))
    for entry in library.entries:
        if entry.reason:
            print(f"{entry.name}: is not shown: {entry.reason}")
    if args["--export"]:
        return export(library, Path(args["--export"]), region)
    return serve(library, port, not args["--no_browser"])


def serve(library: Library, port: int, browse: bool) -> int:
    """Answer the browser until somebody stops it."""
    import webbrowser

    from viewer.server import Server

    with Server(library, port) as server:
        print(f"{counted(len(library.entries), 'slide')} at {server.address} (Ctrl-C stops)", flush=True)
        if browse:
            webbrowser.open(server.address)
        server.serve_forever()
    return 0


def export(library: Library, folder: Path, region: tuple[int, int, int, int] | None) -> int:
    """Write the page for others, and say what is in it."""
    from misc.batch import print_failed
    from viewer.export import export_places

    written, failed = export_places(library, folder, region)
    print_failed("view_slides.py", failed)
    what = f"{counted(written, 'place')} of {counted(len(library.entries), 'slide')}"
    print(f"{what} in {folder / 'index.html'}, {len(failed)} failed")
    return 1 if failed else 0


def parse(args: dict) -> Options:
    """Turn docopt's strings into values, and check them."""
    from misc.type_info import load_type_info
    from viewer.slides import Options

    paths = {name: args[f"--{name}"] for name in ("results_dir", "wsi_dir", "json", "slide", "compare", "heat_dir")}
    for name in ("results_dir", "wsi_dir", "heat_dir"):
        if paths[name] and not Path(paths[name]).is_dir():
            raise FileNotFoundError(f"no such folder: {paths[name]} (--{name})")
    if paths["compare"] and not Path(paths["compare"]).exists():
        raise FileNotFoundError(f"no such file or folder: {paths['compare']} (--compare)")
    return Options(
        **{name: Path(path) if path else None for name, path in paths.items()},
        type_info=load_type_info(args["--type_info_path"]) if args["--type_info_path"] else None,
        mpp=number(args, "--mpp"),
        scale=number(args, "--scale"),
    )


def _port(args: dict) -> int:
    port = number(args, "--port", int, zero=True)
    if port >= 1 << 16:
        raise ValueError(f"--port is a number from 0 to 65535, got {args['--port']}")
    return port


def _region(args: dict) -> tuple[int, int, int, int] | None:
    if args["--region"] is None:
        return None
    if not args["--export"]:
        raise ValueError("--region says what to export; give --export")
    parts = args["--region"].split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--region is x,y,w,h in whole level-0 px, got {args['--region']}")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())

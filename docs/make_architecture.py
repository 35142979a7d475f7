"""The house as its own imports describe it: who imports whom, as a picture and as tables in `docs/architecture.md`.

    python docs/make_architecture.py

writes both anew; a test compares what is there with what this makes.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE, TEXT = ROOT / "docs" / "architecture.svg", ROOT / "docs" / "architecture.md"
# What each package is for, in its box.
ROLES = {
    "scripts": "what people call: parse, check, call, report",
    "viewer": "report pages, and the slide viewer",
    "run_utils": "the training run",
    "infer": "images and slides in, nuclei out",
    "dataloader": "training data",
    "metrics": "scores against truth",
    "models": "HoVer-Net: network, steps, post-processing, recipes",
    "misc": "small things of all kinds",
    "misc.slides": "reading pictures and slides",
    "misc.formats": "nuclei in and out, outlines in",
    "misc.ihc": "stains, classes, hot spots",
}
# All px. A letter of the monospaced font is 0.6 of its size wide.
WIDTH, LANE, GAP, PAD = 1240, 56, 40, 10
FONT, LETTER, LINE, TITLE, LEAST_WIDTH = 12, 7.2, 17, 30, 190
COLOURS = ("#e8eaed", "#d7e8fa", "#fde7c8", "#d9f0d3", "#e6dbf3", "#f3f3f3")  # of a layer's titles, top to bottom


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCE = {
    module_name(path): path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in (".venv", "tests")
}
SCRIPTS = sorted(name for name in SOURCE if "." not in name and SOURCE[name].name != "__init__.py")
PACKAGES = sorted({name.split(".")[0] for name in SOURCE if "." in name} - {"benchmarks", "docs", "pretrained"})
MODULES = sorted(name for name in SOURCE if "." in name and name.split(".")[0] in PACKAGES)


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(SOURCE[name].read_text(encoding="utf-8"))


@functools.cache
def imported(name: str) -> set[str]:
    """Return the modules of ours that a module imports, wherever in the file it does."""
    package = name if SOURCE[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for part in ast.walk(tree(name)):
        if isinstance(part, ast.Import):
            found |= {alias.name for alias in part.names}
        elif isinstance(part, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - part.level] if part.level else []
            origin = ".".join([*above, *([part.module] if part.module else [])])
            names = {f"{origin}.{alias.name}" for alias in part.names}
            found |= {full if full in SOURCE else origin for full in names}
    return found & set(SOURCE)


def room(name: str) -> str:
    """Return the package that a module lies in, of misc its room; nothing for a script."""
    parts = name.split(".")[:-1]
    return ".".join(parts[:2] if parts[:1] == ["misc"] else parts[:1])


def unit(name: str) -> str:
    """Return the box that a module stands in."""
    return room(name) or "scripts"


def short(name: str) -> str:
    """Return what a module is called within its box."""
    return name.removeprefix({"models": "models.hovernet"}.get(unit(name), unit(name)) + ".")


@functools.cache
def boxes() -> dict[str, list[str]]:
    """Return the modules of each box; `__init__.py` and `config.py`, which is data, are left out."""
    found = defaultdict(list)
    for name in (*SCRIPTS, *MODULES):
        if SOURCE[name].name != "__init__.py" and name not in ("config", "console"):
            found[unit(name)].append(name)
    return dict(found)


@functools.cache
def edges() -> dict[tuple[str, str], list[str]]:
    """Return which box imports from which other one, and the modules that it imports."""
    found = defaultdict(set)
    for box, names in boxes().items():
        for other in set().union(*map(imported, names)):
            if unit(other) != box:
                found[box, unit(other)].add(other)
    return {pair: sorted(found[pair]) for pair in sorted(found)}


def depths(below: dict[str, set[str]]) -> dict[str, int]:
    """Return how many steps each node lies below the top: everything stands under all that import it."""
    above = {node: {other for other in below if node in below[other]} for node in below}
    found: dict[str, int] = {}

    def depth(node: str) -> int:
        if node not in found:
            found[node] = max((1 + depth(other) for other in above[node]), default=0)
        return found[node]

    return {node: depth(node) for node in below}


def rows(box: str, names: list[str], width: float) -> list[list[str]]:
    """Return the lines of each row of a box: a module imports only from rows below its own."""
    depth = depths({name: imported(name) & set(names) - {name} for name in names})
    found = []
    for step in range(max(depth.values()) + 1):
        lines = [""]
        for name in (short(name) for name in names if depth[name] == step):
            longer = f"{lines[-1]}  {name}" if lines[-1] else name
            if len(longer) * LETTER > width - 2 * PAD:
                lines.append(name)
            else:
                lines[-1] = longer
        found.append(lines)
    return found


def layers() -> list[list[str]]:
    """Return the packages, top to bottom; the rooms of misc, which import one another, are the last layer."""
    below = {box: set() for box in boxes() if not box.startswith("misc")}
    for box, other in edges():
        if box in below and other in below and (box, other) != ("models", "run_utils"):  # the recipe: drawn dashed
            below[box].add(other)
    depth = depths(below)
    found = [[box for box in boxes() if depth.get(box) == step] for step in range(max(depth.values()) + 1)]
    return [*found, [box for box in boxes() if box.startswith("misc")]]


class Drawing:
    """An SVG that grows downwards; `places` are (x, y, width, height) of the boxes."""

    def __init__(self):
        self.parts: list[str] = []
        self.places: dict[str, tuple[int, int, int, int]] = {}

    def text(self, x: float, y: float, text: str, style: str = "", more: str = "") -> None:
        self.parts.append(f'<text x="{x:.0f}" y="{y:.0f}" class="{style}"{more}>{escape(text)}</text>')

    def layer(self, names: list[str], y: int, colour: str) -> int:
        """Draw boxes beside each other, as wide as they have modules; return where they end."""
        total, width = sum(len(boxes()[name]) for name in names), WIDTH - 2 * LANE - GAP // 2 * (len(names) - 1)
        spare = width - LEAST_WIDTH * len(names)
        widths = [LEAST_WIDTH + spare * len(boxes()[name]) // total for name in names]
        content = [rows(name, boxes()[name], wide) for name, wide in zip(names, widths, strict=True)]
        height = max(TITLE + sum(len(lines) * LINE + 4 for lines in found) for found in content)
        x = LANE
        for name, wide, found in zip(names, widths, content, strict=True):
            self.places[name] = (x, y, wide, height)
            self.box(name, found, colour)
            x += wide + GAP // 2
        return y + height

    def box(self, name: str, found: list[list[str]], colour: str) -> None:
        x, y, width, height = self.places[name]
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="box"/>')
        self.parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{TITLE - 6}" fill="{colour}" class="box"/>')
        title = {"models": "models/hovernet", "misc": "misc itself"}.get(name, name.replace(".", "/"))
        role = f' <tspan class="role">{escape(ROLES.get(name, ""))}</tspan>'
        self.parts.append(f'<text x="{x + PAD}" y="{y + 17}" class="title">{title}{role}</text>')
        y += TITLE
        for index, lines in enumerate(found):
            if index:
                self.parts.append(f'<path d="M{x} {y - 4}h{width}" class="rule"/>')
            for line in lines:
                self.text(x + PAD, y + FONT, line, "module", ' xml:space="preserve"')
                y += LINE
            y += 4

    def arrow(self, path: str, box: str, other: str, style: str = "arrow") -> None:
        what = f"{box} imports {', '.join(edges()[box, other])}"
        self.parts.append(f'<path d="{path}" class="{style}"><title>{escape(what)}</title></path>')

    def down(self, box: str, other: str) -> None:
        """Draw an arrow from a layer to the next one, at the middle of the narrower box."""
        x, y, width, height = self.places[box]
        to_x, to_y, to_width, _ = self.places[other]
        middle = x + width // 2 if width < to_width else to_x + to_width // 2
        self.arrow(f"M{middle} {y + height}V{to_y - 2}", box, other)

    def beside(self, box: str, other: str, lane: int) -> None:
        """Draw an arrow past the layers between two boxes, on the right."""
        x, y, width, height = self.places[box]
        to_x, to_y, to_width, to_height = self.places[other]
        start, end = y + height // 2, to_y + to_height // 2 - 14 * lane
        self.arrow(f"M{x + width} {start}H{WIDTH - LANE + 16 + 14 * lane}V{end}H{to_x + to_width + 2}", box, other)

    def recipe(self) -> None:
        """Draw the one exception to the order of layers, on the left."""
        x, y, _, height = self.places["models"]
        _, to_y, _, to_height = self.places["run_utils"]
        start, end = y + height // 2, to_y + to_height // 2
        self.arrow(f"M{x} {start}H{LANE - 18}V{end}H{x - 2}", "models", "run_utils", "arrow dashed")
        turned = f' transform="rotate(-90 {LANE - 24} {(start + end) // 2})" text-anchor="middle"'
        self.text(LANE - 24, (start + end) // 2, "recipe: opt", "role", turned)

    def frame(self, y: int, end: int) -> None:
        """Draw a frame around the rooms of a package, behind all else."""
        self.parts.insert(
            0, f'<rect x="{LANE - PAD}" y="{y}" width="{WIDTH - 2 * (LANE - PAD)}" height="{end - y}" class="box"/>'
        )

    def words(self, stack: list[list[str]], misc_y: int) -> None:
        """Write what scripts import from, and who imports from misc; draw an arrow for each."""
        users = [box for names in stack[:-1] for box in names if any(edges().get((box, other)) for other in stack[-1])]
        used = [other for names in stack for other in names if ("scripts", other) in edges() and "." not in other]
        x, y, width, height = self.places["scripts"]
        self.text(x + PAD, y + height + 24, f"scripts import from {', '.join(used)}", "role")
        said = f"imported by {', '.join(users)}; its rooms import from one another"
        self.parts.append(
            f'<text x="{x}" y="{misc_y + 19}" class="title">misc <tspan class="role">{said}</tspan></text>'
        )
        for start, end in ((y + height, y + height + GAP), (misc_y - GAP, misc_y)):
            self.parts.append(f'<path d="M{x + width // 2} {start}V{end - 2}" class="arrow"/>')

    def svg(self, height: int) -> str:
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">',
                STYLE,
                f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


STYLE = f"""<style>
text {{ font-family: Helvetica, Arial, sans-serif; fill: #202124; }}
.title {{ font-size: 14px; font-weight: bold; }}
.role {{ font-size: 12px; font-weight: normal; fill: #5f6368; }}
.module {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {FONT}px; }}
.box {{ stroke: #80868b; }}
rect.box:not([fill]) {{ fill: white; }}
.rule {{ stroke: #dadce0; }}
.arrow {{ stroke: #3c4043; stroke-width: 1.6; fill: none; marker-end: url(#head); }}
.dashed {{ stroke-dasharray: 5 4; }}
</style>
<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#3c4043"/></marker>"""


def picture() -> str:
    """Return the house as SVG."""
    drawing, stack = Drawing(), layers()
    drawing.text(LANE, 16, "An arrow points from the package that imports to the one that it imports from.", "role")
    drawing.text(LANE, 32, "In a box, a module imports only from the rows below its own.", "role")
    y = 44
    for names, colour in zip(stack[:-1], COLOURS, strict=False):
        y = drawing.layer(names, y, colour) + GAP
    top, y = y, drawing.layer(stack[-1], y + TITLE, COLOURS[-1])
    drawing.frame(top, y + PAD)
    place = {name: index for index, names in enumerate(stack) for name in names}
    skipping = 0
    for box, other in edges():
        if box == "scripts" or place[other] == len(stack) - 1:
            continue  # said in words: nearly all import from misc, and scripts from nearly all
        if place[other] == place[box] + 1:
            drawing.down(box, other)
        elif place[other] < place[box]:
            drawing.recipe()
        else:
            drawing.beside(box, other, skipping)
            skipping += 1
    drawing.words(stack, top)
    return drawing.svg(y + 2 * PAD)


def table_of_imports() -> str:
    """Return which package imports which modules of which other one."""
    lines = ["| from | to | modules |", "|---|---|---|"]
    for (box, other), names in edges().items():
        lines.append(f"| `{box.replace('.', '/')}` | `{other.replace('.', '/')}` | {', '.join(map(short, names))} |")
    return "\n".join(lines)


def table_of_modules(box: str) -> str:
    """Return what each module of a box does, as its docstring begins."""
    lines = ["| module | what it does |", "|---|---|"]
    for name in boxes()[box]:
        first = " ".join((ast.get_docstring(tree(name)) or "").split("\n\n")[0].split()).replace("|", "\\|")
        lines.append(f"| `{short(name)}` | {first} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """Return the text with its tables made anew; each stands between two comments, the first of which says which."""

    def made(found: re.Match) -> str:
        what = found["what"]
        table = table_of_imports() if what == "imports" else table_of_modules(what)
        return f"<!-- table: {what} -->\n{table}\n<!-- end of table -->"

    return re.sub(r"<!-- table: (?P<what>\S+) -->\n.*?<!-- end of table -->", made, text, flags=re.DOTALL)


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    TEXT.write_text(with_tables(TEXT.read_text(encoding="utf-8")), encoding="utf-8")

"""Joining rows while a slide runs: the file is the same whenever rows are joined, and whenever the run is killed."""

from __future__ import annotations

import builtins
import contextlib
import errno
import itertools
import json
import os
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from painted_tiles import ellipses, parts_that_differ, whole_pieces

import infer.wsi_join
from infer.grid import patch_grid, tile_grid
from infer.spool import Spool, SpoolError
from infer.tile_nuclei import TileNuclei
from infer.wsi_files import joined_path
from infer.wsi_join import SlideJoiner, remove_joined
from infer.wsi_plan import Plan
from misc.formats.nuclei_json import head_text, read_json

SHAPE, SIDE, MARGIN = (150, 96), 32, 8
HEAD = head_text(40, {"types": {"1": ["one", [255, 0, 0]]}})


def typed(part: TileNuclei) -> TileNuclei:
    """Give the nuclei of a tile types 0, 1 and 2, and what belongs to them."""
    types = np.arange(len(part), dtype=np.int32) % 3
    probs = np.linspace(0, 1, 3 * len(part), dtype=np.float32).reshape(-1, 3)
    nuclei = replace(part.nuclei, types=types, type_prob=np.full(len(part), 0.5), class_probs=probs)
    return replace(part, nuclei=nuclei)


@dataclass
class Slide:
    """A made-up slide, whose tiles come in rows."""

    folder: Path
    plan: Plan
    rows: dict[int, list[TileNuclei]]

    @property
    def path(self) -> Path:
        return self.folder / "json" / "a.b.json"

    @property
    def joined(self) -> Path:
        return joined_path(self.path)

    def spool(self, cache: str = "cache") -> Spool:
        return Spool(self.folder / cache, "a.b", {})

    def joiner(self, head: bytes = HEAD, cache: str = "cache") -> SlideJoiner:
        self.path.parent.mkdir(exist_ok=True)
        return SlideJoiner(self.spool(cache), self.plan, self.path, head)

    def run(self, last: int = 99, head: bytes = HEAD) -> Counter | None:
        """Do the rows that are not done, up to one; finish the slide if all are."""
        joiner = self.joiner(head)
        todo = [row for row in self.rows if row not in joiner.rows]
        for row in todo:
            if row > last:
                return None
            joiner.keep(row, self.rows[row])
        found = joiner.finish()
        joiner.spool.remove()
        return found

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def made_up() -> tuple[Plan, dict[int, list[TileNuclei]]]:
    """Five rows of three tiles that draw nuclei differently; one nucleus reaches through all of them."""
    labels = ellipses(SHAPE, 1)
    labels[20:24, 5:90] = labels[10:140, 50:54] = labels.max() + 1
    tiles = tile_grid(SHAPE, SIDE, MARGIN)
    patches = patch_grid(SHAPE, 256, 164)
    parts = [typed(part) for part in parts_that_differ(whole_pieces(labels), tiles)]
    rows = {row: parts[row * tiles.cols : (row + 1) * tiles.cols] for row in range(tiles.rows)}
    return Plan(patches, tiles, np.ones((patches.rows, patches.cols), bool)), rows


@pytest.fixture
def slide(made_up, tmp_path, monkeypatch) -> Slide:
    """A slide of which each row is joined when it comes."""
    monkeypatch.setattr(infer.wsi_join, "JOIN_BYTES", 0)
    plan, rows = made_up
    return Slide(tmp_path, plan, dict(rows))


@pytest.fixture
def whole(slide) -> tuple[bytes, Counter]:
    """The file of a slide whose rows are joined at the end, and what is in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.wsi_join, "JOIN_BYTES", 1 << 30)
        found = slide.run()
    data = slide.path.read_bytes()
    slide.path.unlink()
    return data, found


def test_rows_joined_one_by_one_and_all_at_the_end_give_the_same_file(slide, whole):
    data, found = whole
    assert slide.run() == found
    assert slide.path.read_bytes() == data
    assert slide.left() == ["a.b.json"]
    nuclei, header = read_json(slide.path)
    assert found == Counter(nuclei.types.tolist())
    assert header["types"] == {"1": ["one", [255, 0, 0]]}
    assert nuclei.ids.tolist() == list(range(1, len(nuclei) + 1))


def test_rows_and_their_tiles_come_in_any_order(slide, whole):
    rng = np.random.default_rng(0)
    for order in ([4, 3, 2, 1, 0], [1, 0, 4, 2, 3]):
        joiner = slide.joiner()
        for row in order:
            joiner.keep(row, [slide.rows[row][i] for i in rng.permutation(len(slide.rows[row]))])
        assert joiner.finish() == whole[1]
        joiner.spool.remove()
        assert slide.path.read_bytes() == whole[0]


def test_nuclei_without_types_are_counted_as_such(slide):
    for row, parts in slide.rows.items():
        slide.rows[row] = [
            replace(p, nuclei=replace(p.nuclei, types=None, type_prob=None, class_probs=None)) for p in parts
        ]
    slide.run(last=2)
    found = slide.run()
    assert found == {None: len(read_json(slide.path)[0])}


def test_p15_p20_what_waits_on_disk_is_bounded(slide, monkeypatch):
    """By what may wait, a row and the state, which is one of a row; all rows together take five."""
    row = Spool(slide.folder / "one", "a", {})
    row.write(0, slide.rows[1])
    largest = 1.5 * row.size()
    monkeypatch.setattr(infer.wsi_join, "JOIN_BYTES", int(largest))
    joiner, sizes = slide.joiner(), []
    for index, parts in slide.rows.items():
        joiner.keep(index, parts)
        sizes.append(joiner.spool.size())
    assert max(sizes) < 2 * largest
    assert slide.joined.exists()


# ---------------------------------------------------------------------------------------------- killed runs


class Killed(BaseException):
    """Nothing of the run happens from here on."""


def kill_at(patch, step: int) -> None:
    """End the run before its step-th change of a file; nothing it does to clean up happens, either."""
    steps = itertools.count()

    def counted(function):
        def call(*args, **kwargs):
            if next(steps) >= step:
                raise Killed
            return function(*args, **kwargs)

        return call

    for place, name in ((os, "replace"), (os, "fsync"), (os, "truncate"), (Path, "unlink"), (np, "savez")):
        patch.setattr(place, name, counted(getattr(place, name)))
    patch.setattr(infer.wsi_join, "nuclei_text", counted(infer.wsi_join.nuclei_text))


HEAD_2 = head_text(40, {"types": {"1": ["another", [0, 0, 255]]}, "longer": "than before"})


@pytest.mark.parametrize(("before", "head"), [(-1, HEAD), (2, HEAD_2)])
def test_killed_before_any_change_of_a_file_a_run_loses_no_row_and_gives_the_same_file(slide, whole, before, head):
    """From the first row on, and resumed with other names of types."""
    expected, write, steps = head + whole[0][len(HEAD) :], Spool.write, 0
    while True:
        slide.run(last=before)
        kept = set(slide.joiner().rows)

        def keep(self, row, parts, kept=kept):
            write(self, row, parts)
            kept.add(row)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Spool, "write", keep)
            kill_at(patch, steps)
            try:
                slide.run(head=head)
                break
            except Killed:
                steps += 1
        if not slide.path.exists():
            assert slide.joiner(head).rows.keys() >= kept
            assert slide.run(head=head) == whole[1]
            assert slide.left() == ["a.b.json"]
        assert slide.path.read_bytes() == expected, steps
        remove_joined(slide.path)
        slide.spool().remove()
        assert slide.left() == ["a.b.json"]
        slide.path.unlink()
    assert steps > 20


def test_the_text_is_on_disk_before_the_state_that_speaks_of_it(slide, monkeypatch):
    write, saved, fsync, synced = Spool.write_state, [], os.fsync, []

    def recorded(fd):
        synced.append((os.fstat(fd).st_ino, os.fstat(fd).st_size))
        fsync(fd)

    def checked(self, arrays):
        numbers = json.loads(str(arrays["progress"]))
        saved.append(numbers["head"] + numbers["text"])
        assert zlib.crc32(slide.joined.read_bytes()) == numbers["checksum"]
        assert synced[-1] == (slide.joined.stat().st_ino, saved[-1])
        assert self.rows().keys() & dict(numbers["rows"]).keys()  # rows go after it
        write(self, arrays)

    monkeypatch.setattr(Spool, "write_state", checked)
    monkeypatch.setattr(os, "fsync", recorded)
    slide.run()
    assert len(saved) == len(slide.rows)


def test_a_run_killed_again_and_again_gets_there(slide, whole):
    for runs in range(30):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            kill_at(patch, 16 + runs % 3)  # some of them remove rows that are gone
            slide.run()
        if slide.path.exists():
            break
    assert slide.path.read_bytes() == whole[0]
    assert runs > 1


def test_what_was_written_after_the_state_was_saved_is_cut_off(slide, whole):
    slide.run(last=3)
    with open(slide.joined, "ab") as out:
        out.write(b"x" * len(whole[0]))
    assert slide.joiner().rows.keys() == {0, 1, 2, 3}
    assert slide.run() == whole[1]
    assert slide.path.read_bytes() == whole[0]


def test_rows_that_were_joined_are_not_done_again(slide):
    slide.run(last=2)
    joiner = slide.joiner()
    assert joiner.rows.keys() == {0, 1, 2}
    assert [path.name for path in joiner.spool.folder.iterdir()] == ["joined.npz"]
    owned = [sum(int(part.owned.sum()) for part in parts) for parts in slide.rows.values()]
    assert list(joiner.rows.values()) == owned[:3]


def test_rows_that_a_kill_left_beside_the_state_are_removed(slide, whole, monkeypatch):
    """They counted as waiting for ever: every row was joined by itself, and the disk held twice as much."""
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "remove_rows", lambda *_: None)
        slide.run(last=3)
    assert len(list(slide.spool().folder.iterdir())) == 5
    assert [path.name for path in slide.joiner().spool.folder.iterdir()] == ["joined.npz"]
    assert slide.run() == whole[1]


def test_types_edited_meanwhile_have_their_new_names(slide, whole):
    slide.run(last=3)
    assert slide.run(head=HEAD_2) == whole[1]
    assert slide.path.read_bytes() == HEAD_2 + whole[0][len(HEAD) :]
    assert slide.left() == ["a.b.json"]


def test_another_cache_folder_takes_nothing_until_it_has_something(slide, whole):
    """The nuclei lie in the output folder, the state that goes on from them in the first cache folder."""
    slide.run(last=3)
    other = slide.joiner(cache="other")
    assert other.rows == {}
    other.spool.remove()
    assert slide.joiner().rows.keys() == {0, 1, 2, 3}
    other = slide.joiner(cache="other")
    other.keep(0, slide.rows[0])
    assert slide.joiner().rows == {}  # what they were joined to is not there any more
    assert slide.run() == whole[1]
    assert slide.path.read_bytes() == whole[0]


@pytest.mark.parametrize("last", [0, 3])  # nothing of the first row is written before the second one comes
@pytest.mark.parametrize("damage", ["state", "cut", "gone", "other"])
def test_what_was_damaged_meanwhile_is_done_again(slide, whole, caplog, damage, last):
    slide.run(last=last)
    if damage == "state":
        state = next(slide.folder.rglob("joined.npz"))
        state.write_bytes(state.read_bytes()[:-200])
    elif damage == "gone":
        slide.joined.unlink()
    else:
        data = slide.joined.read_bytes()
        slide.joined.write_bytes(data[:-1] if damage == "cut" else data.replace(b"0", b"1"))
    assert slide.run() == whole[1]
    assert slide.path.read_bytes() == whole[0]
    assert "are done again" in caplog.text
    assert ("joined.npz" if damage == "state" else ".a.b.joined") in caplog.text


@pytest.mark.parametrize("place", ["joined.npz", "000004.npz", ".a.b.joined"])
def test_a_drive_that_is_away_for_a_moment_takes_nothing(slide, whole, monkeypatch, place):
    slide.run(last=3)
    slide.spool().write(4, slide.rows[4])
    real = builtins.open

    def away(file, *args, **kwargs):
        if Path(str(file)).name == place:
            raise OSError(errno.EIO, "Input/output error", str(file))
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", away)
        with pytest.raises(OSError, match=rf"Input/output error.*{place}"):
            slide.joiner()
    assert slide.joiner().rows.keys() == {0, 1, 2, 3, 4}
    assert slide.run() == whole[1]


def test_a_file_that_another_run_cuts_is_no_result(slide, whole):
    """Truncated to its place it was filled up with zeros, and taken for finished in all later runs."""
    joiner = slide.joiner()
    for row in range(4):
        joiner.keep(row, slide.rows[row])
    os.truncate(slide.joined, slide.joined.stat().st_size - 1)
    with pytest.raises(OSError, match=r"cut it meanwhile.*joined"):
        joiner.keep(4, slide.rows[4])
    assert not slide.path.exists()
    assert slide.run() == whole[1]


def test_a_slide_of_which_a_row_is_missing_is_no_result(slide, whole):
    joiner = slide.joiner()
    for row in (0, 1, 3, 4):
        joiner.keep(row, slide.rows[row])
    with pytest.raises(SpoolError, match="not all rows"):
        joiner.finish()
    assert not slide.path.exists()
    assert slide.joiner().rows.keys() == {0, 1, 3, 4}
    assert slide.run() == whole[1]


def test_nuclei_of_a_run_with_other_options_are_not_gone_on_with(slide, whole):
    slide.run(last=3)
    Spool(slide.folder / "cache", "a.b", {"other": 1}).remove()  # such a run begins, and removes what is not its own
    assert slide.joined.exists()
    assert slide.run() == whole[1]
    assert slide.path.read_bytes() == whole[0]


@pytest.mark.parametrize("last", [0, 3])
def test_a_full_disk_takes_nothing_that_was_joined(slide, whole, monkeypatch, last):
    """What cannot be written whole is not left on the disk: other slides may still find room."""
    slide.run(last=last)
    before = slide.joined.read_bytes()

    def full(nuclei):
        yield b"some text"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer.wsi_join, "nuclei_text", full)
        with pytest.raises(OSError, match=r"No space left on device.*json/\.a\.b\.joined"):
            slide.run()
    assert slide.joined.read_bytes() == before
    assert slide.run() == whole[1]
    assert slide.path.read_bytes() == whole[0]


def test_a_disk_that_is_full_before_anything_was_joined_is_left_empty(slide, monkeypatch):
    monkeypatch.setattr(infer.wsi_join, "JOIN_BYTES", 1 << 30)

    def full(nuclei):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(infer.wsi_join, "nuclei_text", full)
    with pytest.raises(OSError, match="No space left on device"):
        slide.run()
    assert not list(slide.path.parent.iterdir())


@pytest.mark.parametrize("last", [-1, 2])
def test_a_disk_too_full_for_the_state_keeps_the_one_before(slide, whole, monkeypatch, last):
    slide.run(last=last)
    before = slide.joined.read_bytes() if slide.joined.exists() else None

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "write_state", full)
        with pytest.raises(OSError, match="No space left on device"):
            slide.run()
    assert (slide.joined.read_bytes() if slide.joined.exists() else None) == before
    assert slide.run() == whole[1]
    assert slide.path.read_bytes() == whole[0]


@pytest.mark.parametrize("last", [-1, 2])
def test_a_name_that_cannot_be_given_leaves_what_was_saved(slide, whole, monkeypatch, last):
    slide.run(last=last)
    before = slide.left()
    slide.path.mkdir()
    monkeypatch.setattr(infer.wsi_join, "JOIN_BYTES", 1 << 30)
    with pytest.raises(OSError, match=r"directory.*json/a\.b\.json"):
        slide.run()
    assert [name for name in slide.left() if name.endswith("joined")] == [n for n in before if n.endswith("joined")]
    slide.path.rmdir()
    assert slide.run() == whole[1]


def test_what_was_joined_for_a_file_that_is_there_is_removed(slide):
    """Unless it is newer: of a run with `--overwrite` that is not done."""
    slide.run()
    slide.joined.write_bytes(b"...")
    os.utime(slide.joined, ns=(0, slide.path.stat().st_mtime_ns + 10))
    remove_joined(slide.path)
    assert slide.joined.exists()
    os.utime(slide.joined, ns=(0, slide.path.stat().st_mtime_ns - 10))
    remove_joined(slide.path)
    assert not slide.joined.exists()
    assert json.loads(slide.path.read_bytes())["mag"] == 40

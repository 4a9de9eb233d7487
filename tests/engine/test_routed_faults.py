"""The routed lane goes on where linking fails, or what was linked is damaged."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraplex.server.engine import engines
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.folder_cache import Held, make, trim
from loraplex.server.engine.linker import BANK, CONFIG, MODEL, Linked, link
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import RoutedEngine
from loraplex.server.errors import BundleInvalid
from tests.engine.lanes import Answer, Model, ask, run
from tests.engine.routed_lane import COUNT, PROMPTS, check, fail_once, load, requests, routed

LONG = Sampling(temperature=0, ignore_eos=True)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    (MODEL, halve),
    (MODEL, Path.unlink),
    (CONFIG, empty),
    (CONFIG, Path.unlink),
]


def linked_folders(cache: Path) -> list[Path]:
    return [folder for folder in cache.iterdir() if folder.name[0] != "."]


def is_base(folder: Path) -> bool:
    return not (folder / BANK).stat().st_size


def step_until(lane: RoutedLane, answers: dict[int, Answer], true: Callable[[], object]) -> None:
    for _ in range(10_000):
        if true():
            return
        for output in lane.step():
            answers[output.sequence].add(output)
    raise AssertionError("the lane does not come so far")


def own_copy(lane: RoutedLane, model: Model, folder: Path) -> Path:
    """Load the adapter "four" as "mine", from a copy of its own; its file."""
    shutil.copytree(model.bundle.adapter("four"), folder)
    manifest = check_adapter(folder, model.bundle.manifest.base)
    lane.load_adapter("mine", folder, manifest)
    return folder / manifest.file


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_base_in_the_cache_is_linked_anew(
    llama: Model, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    routed(llama, tmp_path)
    (folder,) = linked_folders(tmp_path)
    damage(folder / name)
    lane = routed(llama, tmp_path)
    check(llama, run(lane, requests()), requests())


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_base_is_refused(llama: Model, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    base = Path(shutil.copytree(llama.bundle.variant("generator"), tmp_path / "base"))
    damage(base / name)
    with pytest.raises(BundleInvalid, match=name):
        RoutedLane(base, device="cpu", threads=1, cache=tmp_path / "cache")


def test_expanded_weights_that_are_gone_are_expanded_anew(llama: Model, tmp_path: Path) -> None:
    """While it serves; as those are of no use on a CPU, with a copy of the base in their place."""
    expanded = tmp_path / "expanded"

    def fill(folder: Path) -> None:
        shutil.copytree(llama.bundle.variant("generator"), folder, dirs_exist_ok=True)

    def expansion() -> Held:
        return make(expanded, "base", fill)

    lane = routed(llama, tmp_path / "linked", "four", expansion=expansion)
    check(llama, run(lane, requests(("four",))), requests(("four",)))
    for adapter in ("nine", "some"):
        shutil.rmtree(expanded)
        load(lane, llama, adapter)
        asked = requests((adapter, "four"))
        check(llama, run(lane, asked), asked)
        weights = lane._engines.current.linked.folder / "model.onnx.data"
        assert weights.samefile(expanded / "base" / "model.onnx.data")
        trim(expanded, count=0)
        assert weights.samefile(expanded / "base" / "model.onnx.data"), "the lane holds it"


@pytest.mark.parametrize(("name", "damage"), [*DAMAGES, (BANK, halve)])
def test_damaged_adapters_in_the_cache_fail_nobody_else(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: Callable[[Path], None]
) -> None:
    """What runs goes on in the engine before, and the adapters are linked anew."""
    run(routed(llama, tmp_path), requests())
    for folder in linked_folders(tmp_path):
        if not is_base(folder):
            damage(folder / name)
    monkeypatch.setattr(engines, "RETRY_SECONDS", 0.0)
    lane = routed(llama, tmp_path)
    asked = requests((None, None, "four"))
    answers = run(lane, asked)
    check(llama, answers, asked[:2])
    assert "cannot be linked" in (answers[2].error or "")
    assert lane.linked == {"four", "nine", "some"}
    check(llama, run(lane, requests()), requests())


def test_linking_is_tried_again(llama: Model, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a disk was full for a while."""
    lane = routed(llama, cache, "four")
    full = True

    def link_if_there_is_room(*arguments: Any) -> Linked:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return link(*arguments)

    monkeypatch.setattr(engines, "link", link_if_there_is_room)
    monkeypatch.setattr(engines, "RETRY_SECONDS", 1e6)
    asked = requests((None, "four", None))
    answers = run(lane, asked)
    check(llama, answers, [asked[0], asked[2]])
    assert "No space left" in (answers[1].error or "")
    assert not lane.busy, "it would try in vain as fast as it can"
    full = False
    lane._engines._again = 0.0
    check(llama, run(lane, requests(("four",))), requests(("four",)))


def test_a_broken_adapter_fails_every_request(llama: Model, cache: Path, tmp_path: Path) -> None:
    lane = routed(llama, cache, "four")
    own_copy(lane, llama, tmp_path / "mine").write_bytes(b"damaged after it was checked")
    for _ in range(2):
        asked = requests(("mine", None, "four"))
        answers = run(lane, asked)
        assert "cannot be linked" in (answers[0].error or "")
        check(llama, answers, asked[1:])
    folder = llama.bundle.adapter("four")
    lane.load_adapter("mine", folder, check_adapter(folder, llama.bundle.manifest.base))
    assert ask(lane, PROMPTS[0], "mine", COUNT).tokens == llama.expected("four", PROMPTS[0], COUNT)


@pytest.mark.parametrize("room", [True, False])
def test_an_adapter_that_breaks_answers_while_it_is_linked(
    llama: Model, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    """A sequence that has to move then fails: it does not wait for what no engine will have."""
    lane = routed(llama, cache, "some")
    file = own_copy(lane, llama, tmp_path / "mine")
    run(lane, requests((None,)))
    assert lane.linked == {"some", "mine"}
    mine = lane._known["mine"]
    file.unlink()
    load(lane, llama, "nine")
    answers = {0: Answer(), 1: Answer()}
    step_until(lane, answers, lambda: lane._engines.is_broken(mine))
    lane.submit(Submit(0, "mine", list(PROMPTS[0]), 100, LONG))
    if not room:
        fail_once(monkeypatch)
    step_until(lane, answers, lambda: not lane.busy)
    assert lane.linked == {"some", "nine"}
    if room:
        assert len(answers[0].tokens) == 100
        assert answers[0].tokens[:COUNT] == ask(routed(llama, cache), PROMPTS[0], "four", COUNT, sampling=LONG).tokens
    else:
        assert "cannot be linked" in (answers[0].error or "")


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(
    llama: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it takes more memory than there is, even by itself."""
    lane = routed(llama, cache, "four")
    run(lane, requests(("four",)))
    init = RoutedEngine.__init__

    def no_room_for_nine(engine: RoutedEngine, linked: Linked, adapters: Any, *options: Any) -> None:
        if any(adapter.name == "nine" for adapter in adapters):
            raise RuntimeError("out of memory")
        init(engine, linked, adapters, *options)

    monkeypatch.setattr(RoutedEngine, "__init__", no_room_for_nine)
    monkeypatch.setattr(engines, "RETRY_SECONDS", 1e6)
    load(lane, llama, "nine")
    asked = requests((None, "four", "nine", "four"))
    answers = run(lane, asked)
    check(llama, answers, [asked[0], asked[1], asked[3]])
    assert "out of memory" in (answers[2].error or "")
    pauses = []
    for _ in range(3):
        pauses.append(lane._engines._again - time.monotonic())
        lane._engines._again = 0.0
        run(lane, [])
    assert pauses == pytest.approx([1e6, 2e6, 4e6], rel=0.1), "each try moves what runs"
    monkeypatch.setattr(RoutedEngine, "__init__", init)
    lane._engines._again = 0.0
    check(llama, run(lane, requests(("nine", "four"))), requests(("nine", "four")))


def test_a_start_leaves_little_of_earlier_ones(llama: Model, tmp_path: Path) -> None:
    for number in range(8):
        make(tmp_path, f"old{number}", lambda _: None)
    lane = routed(llama, tmp_path)
    assert lane._engines.current.linked.folder.is_dir()
    assert len(linked_folders(tmp_path)) <= 4 + 1


def test_the_cache_stays_small_where_sequences_move(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = routed(llama, tmp_path, "four")
    for number in range(8):
        make(tmp_path, f"old{number}", lambda _: None)
    fail_once(monkeypatch)
    run(lane, requests(("four",)))
    assert lane.linked == {"four"}
    assert len(linked_folders(tmp_path)) <= 4 + 1


def test_unloaded_while_it_waits_for_more_room(
    llama: Model, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the operator, for which this machine has no room: who asked in time learns that, and does not wait on."""

    def no_room(*_: Any) -> Linked:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engines, "link_slots", no_room)
    monkeypatch.setattr(engines, "RETRY_SECONDS", 1e6)
    lane = RoutedLane(llama.bundle.variant("generator"), device="cpu", threads=1, cache=cache)
    lane._engines.operator = tmp_path
    load(lane, llama, "four")
    answers = {0: Answer()}
    lane.submit(requests(("four",))[0])
    lane.unload_adapter("four")
    step_until(lane, answers, lambda: not lane.busy)
    assert "No space left" in (answers[0].error or "")

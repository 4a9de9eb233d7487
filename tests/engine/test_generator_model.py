"""The generator lane on the compiled operator of 4-bit layers answers as the batched lane does on the same operator."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.engine.generator import GeneratorLane
from loraplex.server.engine.linear_operator import find_linear_operator
from loraplex.server.engine.messages import Sampling, Submit
from loraplex.server.errors import AdapterInvalid
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.engine.lanes import GREEDY, Model, ask, batched, build, generator, run
from tests.engine.test_parity import ADAPTERS, PROMPTS

COUNT = 16


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = find_linear_operator(tmp_path_factory.mktemp("operator"))
    if found is None:
        pytest.skip("a C++ compiler and a CPU with AVX2 are needed")
    return found


@pytest.fixture(scope="module")
def lane(int4: Model, operator: Path) -> GeneratorLane:
    return generator(int4, operator=lambda: operator)


def requests() -> list[Submit]:
    pairs = [(prompt, adapter) for prompt in PROMPTS for adapter in ADAPTERS]
    return [Submit(index, adapter, list(prompt), COUNT, GREEDY) for index, (prompt, adapter) in enumerate(pairs)]


def test_answers_are_those_of_the_batched_lane(int4: Model, operator: Path, lane: GeneratorLane) -> None:
    """All at once: sequences of the base and of three adapters take turns."""
    other = batched(int4, operator=lambda: operator)
    for index, answer in run(lane, requests()).items():
        (alone,) = run(other, [requests()[index]]).values()
        assert (answer.tokens, answer.finish, answer.error) == (alone.tokens, alone.finish, None)
    assert len({tuple(ask(lane, PROMPTS[0], adapter).tokens) for adapter in ADAPTERS}) == len(ADAPTERS)


def test_logits_are_close_to_those_of_onnxruntimes_operators(int4: Model, lane: GeneratorLane) -> None:
    """Of first tokens, which depend on no earlier choice. Both round activations to 8 bits, each in its own way."""
    stock = generator(int4)
    ours, theirs = ({adapter: first(each, adapter) for adapter in ADAPTERS} for each in (lane, stock))
    for adapter in ADAPTERS:
        away = [float(np.sqrt(np.mean((ours[adapter] - theirs[other]) ** 2))) for other in ADAPTERS]
        own = away.pop(ADAPTERS.index(adapter))
        assert own < 0.1 * theirs[adapter].std()
        assert min(away) > 5 * own, "an adapter makes more of a difference than roundings"


def first(lane: GeneratorLane, adapter: str | None) -> npt.NDArray[np.float64]:
    """Logarithms of the probabilities that the first answered token is each id, [vocabulary]."""
    sampling = Sampling(temperature=0, logprobs=VOCABULARY)
    (found,) = ask(lane, PROMPTS[0], adapter, 1, sampling=sampling).logprobs
    return np.array([value for _, value in sorted(found.top)])


def test_layers_that_the_operator_does_not_fit_keep_onnxruntimes(operator: Path, tmp_path: Path) -> None:
    """Here those of the MLP, which is no multiple of 16 wide."""
    model = build(make_checkpoint(tmp_path / "checkpoint", intermediate_size=168), tmp_path, "int4")
    ours, other = generator(model, operator=lambda: operator), batched(model, operator=lambda: operator)
    answers = {adapter: ask(ours, PROMPTS[0], adapter).tokens for adapter in ADAPTERS}
    assert answers == {adapter: ask(other, PROMPTS[0], adapter).tokens for adapter in ADAPTERS}
    assert len({tuple(tokens) for tokens in answers.values()}) == len(ADAPTERS)


def test_an_adapter_that_was_unloaded_leaves_nothing_to_the_next_of_its_name(int4: Model, lane: GeneratorLane) -> None:
    expected = {adapter: ask(lane, PROMPTS[0], adapter).tokens for adapter in ("four", "nine")}
    for source in ("four", "nine", "four"):
        folder = int4.bundle.adapter(source)
        lane.load_adapter("other", folder, check_adapter(folder, int4.bundle.manifest.base))
        assert ask(lane, PROMPTS[0], "other").tokens == expected[source]
        lane.unload_adapter("other")
        assert ask(lane, PROMPTS[0], "other").error


def test_an_adapter_needs_no_room_on_a_disk(
    int4: Model, lane: GeneratorLane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there is none"))
    folder = int4.bundle.adapter("four")
    lane.load_adapter("other", folder, check_adapter(folder, int4.bundle.manifest.base))
    assert ask(lane, PROMPTS[0], "other").tokens == ask(lane, PROMPTS[0], "four").tokens
    lane.unload_adapter("other")


def test_a_file_that_is_no_adapter_is_refused(int4: Model, lane: GeneratorLane, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(int4.bundle.adapter("four"), tmp_path / "four"))
    manifest = check_adapter(folder, int4.bundle.manifest.base)
    (folder / manifest.file).write_bytes(b"no adapter")
    with pytest.raises(AdapterInvalid, match="adapter 'broken'"):
        lane.load_adapter("broken", folder, manifest)


def test_a_library_that_cannot_be_loaded_is_done_without(int4: Model, tmp_path: Path) -> None:
    library = tmp_path / "liblinear.so"
    library.write_bytes(b"no library")
    without, stock = generator(int4, operator=lambda: library), generator(int4)
    for adapter in ADAPTERS:
        assert ask(without, PROMPTS[0], adapter).tokens == ask(stock, PROMPTS[0], adapter).tokens


def test_no_operator_is_looked_for_where_there_is_nothing_for_it(llama: Model) -> None:
    def find() -> Path:
        pytest.fail("a float32 base has no 4-bit layer")

    assert ask(generator(llama, operator=find), PROMPTS[0], "four").tokens

"""Linked graphs give PEFT's answers, leave the base's files alone, and keep adapters apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.build.paged import export_paged
from loraplex.server.bundle import sha256
from loraplex.server.engine.bank import NOBODY, merge
from loraplex.server.engine.branches import Linear
from loraplex.server.engine.fused import Layout
from loraplex.server.engine.linker import CONFIG, MODEL, Linked, link, link_slots, takes_operator
from loraplex.server.engine.routing import tag
from tests.build.generation import Runner
from tests.checkpoints import Family, make_checkpoint, reference_logits
from tests.engine.lanes import Model

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]
LONG = [0] + [8 + 11 * position % 150 for position in range(90)]


def files(model: Model, *names: str) -> list[Path]:
    return [model.bundle.adapter(name) / f"{name}.onnx_adapter" for name in names or model.peft]


def numbers(model: Model) -> dict[str | None, int]:
    """What tags the prompts of the base and of each adapter, where `files` of the model were linked."""
    return {None: 0} | {name: slot for slot, name in enumerate(model.peft, 1)}


@pytest.fixture(scope="module")
def linked(llama: Model, tmp_path_factory: pytest.TempPathFactory) -> Linked:
    return link(llama.bundle.variant("generator"), files(llama), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_logits_are_those_of_peft(family: Family, models: dict[Family, Model], tmp_path: Path) -> None:
    model = models[family]
    linked = link(model.bundle.variant("generator"), files(model), tmp_path)
    runner = Runner(linked.folder)
    for prompt in (PROMPT, LONG):
        for name, number in numbers(model).items():
            expected = reference_logits(model.checkpoint, model.peft[name] if name else None, prompt)[-1]
            tagged = tag(prompt, number, linked.vocab_size)
            np.testing.assert_allclose(runner.logits(tagged), expected, rtol=0, atol=1e-4)


def test_base_alone_is_the_plain_graph(llama: Model, tmp_path: Path) -> None:
    linked = link(llama.bundle.variant("generator"), [], tmp_path)
    graph = onnx.load(linked.folder / MODEL, load_external_data=False).graph
    assert not [value.name for value in (*graph.input, *graph.initializer) if "lora" in value.name]
    assert not [node.name for node in graph.node if "lora" in node.name or "route" in node.name]
    np.testing.assert_array_equal(
        Runner(linked.folder).logits(PROMPT), Runner(llama.bundle.variant("generator")).logits(PROMPT)
    )


def test_untouched_projections_get_no_branch(llama: Model, tmp_path: Path) -> None:
    linked = link(llama.bundle.variant("generator"), files(llama, "some"), tmp_path)
    graph = onnx.load(linked.folder / MODEL, load_external_data=False).graph
    branches = sorted(node.name for node in graph.node if node.name.endswith("/own"))
    # The adapter targets v_proj, which is packed into a layer with q and k, and up_proj.
    assert branches == [f"lora/{layer}.{first}/own" for layer in (0, 1) for first in ("attn.q_proj", "mlp.gate_proj")]
    assert not [node.name for node in graph.node if "gate_proj/MatMul/output_0/add" in node.name]


def test_layers_with_the_same_input_share_a_branch(linked: Linked) -> None:
    graph = onnx.load(linked.folder / MODEL, load_external_data=False).graph
    assert sum(node.name.endswith("/own") for node in graph.node) == 2 * 4
    assert sum(node.name.startswith("route/mask") for node in graph.node) == 3, "one mask a layout, not one a branch"


def test_weights_are_linked_and_nothing_of_the_base_changes(llama: Model, tmp_path: Path) -> None:
    base = llama.bundle.variant("generator")
    before = {file.name: sha256(file) for file in base.iterdir()}
    folder = link(base, files(llama), tmp_path / "cache").folder
    assert {file.name: sha256(file) for file in base.iterdir()} == before
    assert (folder / "model.onnx.data").samefile(base / "model.onnx.data")
    assert (folder / "tokenizer.json").samefile(base / "tokenizer.json")


def test_cache_goes_by_content(llama: Model, tmp_path: Path) -> None:
    base = llama.bundle.variant("generator")
    first = link(base, files(llama, "four", "nine"), tmp_path)
    assert link(base, files(llama, "four", "nine"), tmp_path) == first
    others = [link(base, files(llama, *names), tmp_path) for names in (("nine", "four"), ("four",), ("four", "some"))]
    assert len({linked.folder for linked in (first, *others)}) == 4
    copy = tmp_path / "copy.onnx_adapter"
    copy.write_bytes(files(llama, "nine")[0].read_bytes())
    assert link(base, [*files(llama, "four"), copy], tmp_path).folder == first.folder


def test_a_failed_link_leaves_nothing_behind(llama: Model, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx_adapter"
    broken.write_bytes(b"not an adapter")
    with pytest.raises(Exception, match="cannot be read as an adapter"):
        link(llama.bundle.variant("generator"), [broken], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_tags_keep_adapters_apart(llama: Model, linked: Linked) -> None:
    """og.Engine's prefix cache goes by token ids: it can share KV only between prompts that begin with the same id."""
    size = llama.bundle.manifest.base.vocab_size
    assert json.loads((linked.folder / CONFIG).read_text())["model"]["vocab_size"] == size
    firsts = {
        name: {tag([token, 5], number, linked.vocab_size)[0] for token in range(size)}
        for name, number in numbers(llama).items()
    }
    assert firsts[None] == set(range(size))
    assert len(set().union(*firsts.values())) == size * len(firsts)
    logits = onnx.load(linked.folder / MODEL, load_external_data=False).graph.output[0]
    assert logits.type.tensor_type.shape.dim[-1].dim_value == size, "a tag could be sampled"


def test_a_slot_goes_by_any_of_its_numbers(llama: Model, linked: Linked) -> None:
    """Slots that change hands get new numbers, which mean the same to the graph."""
    runner, size = Runner(linked.folder), llama.bundle.manifest.base.vocab_size
    for number in numbers(llama).values():
        later = tag(PROMPT, number + 5 * (linked.count + 1), size)
        np.testing.assert_array_equal(runner.logits(later), runner.logits(tag(PROMPT, number, size)))


def test_every_first_token_keeps_its_meaning(llama: Model, linked: Linked) -> None:
    runner = Runner(linked.folder)
    for first in (8, 77, 159):
        expected = reference_logits(llama.checkpoint, llama.peft["nine"], [first, 9, 10])[-1]
        tagged = tag([first, 9, 10], numbers(llama)["nine"], linked.vocab_size)
        np.testing.assert_allclose(runner.logits(tagged), expected, rtol=0, atol=1e-4, err_msg=str(first))


def test_room_for_adapters_in_a_paged_graph(tmp_path: Path) -> None:
    """Every linear layer has both halves of a branch, and the first half can run beside it."""
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", **wide)
    export_paged(checkpoint, tmp_path / "paged", precision="float16")
    operator = tmp_path / "liblora.so"
    operator.write_bytes(b"compiled")
    assert takes_operator(tmp_path / "paged")
    projections = [
        f"0.{name}_proj" for name in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
    ]
    linked = link_slots(tmp_path / "paged", dict.fromkeys(projections, 5), 6, tmp_path / "cache", operator)
    assert linked.layout is not None
    assert [(len(branch.projections), branch.ranks) for branch in linked.layout.branches] == [
        (3, 8),
        (1, 8),
        (2, 8),
        (1, 8),
    ]
    model = onnx.load(linked.folder / MODEL, load_external_data=False)
    nodes = list(model.graph.node)
    produced = {name: index for index, node in enumerate(nodes) for name in node.output}
    assert all(produced.get(name, -1) < index for index, node in enumerate(nodes) for name in node.input if name)
    own = [node for node in nodes if node.domain == "loraplex"]
    downs = [node for node in own if node.op_type == "LoraDown"]
    ups = [node for node in own if node.op_type.startswith("LoraUp")]
    assert [node.op_type for node in ups] == ["LoraUp", "LoraUp", "LoraUpGated", "LoraUp"]
    assert len(downs) == 4
    assert len(own) == 9, "and one Cut for all"
    for index, (down, up) in enumerate(zip(downs, ups, strict=True)):
        base, scratch, tiles, source = up.input
        linear = nodes[produced[base]]
        assert linear.op_type == "MatMul"
        assert (linear.input[0], scratch, list(down.input)) == (source, down.output[0], [source, tiles])
        # onnxruntime begins with the later one of two that are ready: LoraDown, which does not hold up the other.
        assert produced[base] < produced[scratch]
        for node in (down, up):
            numbers = {attribute.name: attribute.i for attribute in node.attribute}
            assert (numbers["slots"], numbers["index"]) == (6, index)
    settings = json.loads((linked.folder / CONFIG).read_text())["model"]["decoder"]["session_options"]
    assert (linked.folder / settings["custom_ops_library"]).read_bytes() == b"compiled"


class Weights:
    """Matrices of an adapter by projection."""

    def __init__(self, ranks: dict[str, int], widths: dict[str, int], rows: int, shared: bool, seed: int) -> None:
        random = np.random.default_rng(seed)
        common = random.standard_normal((rows, 16)).astype(np.float32)
        self.pairs = {
            name: (
                common[:, :rank] if shared else random.standard_normal((rows, rank)).astype(np.float32),
                random.standard_normal((rank, widths[name])).astype(np.float32),
            )
            for name, rank in ranks.items()
        }

    def find(self, projection: str) -> tuple[np.ndarray, np.ndarray] | None:
        return self.pairs.get(projection)


@settings(max_examples=60)
@given(data=st.data())
def test_merged_and_packed_weights_compute_the_same(data: st.DataObject) -> None:
    """Both layouts against the definition, for any ranks, targets and widths."""
    names = ["0.attn.q_proj", "0.attn.k_proj", "0.attn.v_proj"][: data.draw(st.integers(1, 3))]
    widths = {name: 8 * data.draw(st.integers(1, 3)) for name in names}
    ranks = [
        {name: data.draw(st.integers(1, 9)) for name in names if data.draw(st.booleans())}
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    adapters = [
        Weights(each, widths, rows=16, shared=data.draw(st.booleans()), seed=seed) for seed, each in enumerate(ranks)
    ]
    x = np.random.default_rng(9).standard_normal(16).astype(np.float32)
    merged = merge([widths], adapters)  # type: ignore[arg-type]
    most = {name: max(each.get(name, 0) for each in ranks) for name in names}
    layout = Layout.plan([Linear(onnx.NodeProto(), 16, widths)], most, slots=4)
    assert all(layout.holds(each) for each in ranks)
    if not any(adapter.pairs for adapter in adapters):
        assert merged is None
        assert layout.branches == ()
        return
    assert merged is not None
    (branch,) = layout.branches
    assert branch.ranks % 8 == 0
    assert not layout.holds({names[0]: branch.ranks + 1})
    assert not layout.holds({"1.attn.q_proj": 1})
    assert merged.down.shape[1] % 8 == 0
    assert all(owner == NOBODY for owner in merged.owners[sum(o != NOBODY for o in merged.owners) :])
    for index, adapter in enumerate(adapters):
        expected = np.concatenate(
            [
                x @ adapter.pairs[name][0] @ adapter.pairs[name][1] if name in adapter.pairs else np.zeros(widths[name])
                for name in names
            ]
        )
        mask = np.array([owner == index for owner in merged.owners])
        assert merged.ups[0] is not None
        np.testing.assert_allclose((x @ merged.down * mask) @ merged.ups[0], expected, atol=1e-3)
        memory = np.ones(layout.slot_bytes // 2, np.float16)
        layout.pack(adapter, memory)  # type: ignore[arg-type]
        packed = memory.astype(np.float32)
        (rows, columns), up_shape = branch.shapes
        low = (packed[: rows * columns].reshape(rows, columns) @ x).reshape(len(names), branch.ranks)
        parts = np.split(packed[rows * columns :].reshape(up_shape), np.cumsum(list(widths.values()))[:-1], axis=1)
        found = np.concatenate([low[module] @ part for module, part in enumerate(parts)])
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max() + 0.05)

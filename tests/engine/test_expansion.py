"""int4 weights expanded to float16 are what onnxruntime's own operator makes of them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from loraplex.build.assembly import build_base
from loraplex.server.bundle import Bundle
from loraplex.server.engine import expansion, opening
from loraplex.server.engine.expansion import DATA, dequantize, expand, expanded_bytes
from loraplex.server.engine.folder_cache import make
from loraplex.server.engine.linker import MODEL, link_slots, takes_operator
from loraplex.server.engine.messages import Routed, Start
from loraplex.server.errors import BundleInvalid
from tests.checkpoints import make_checkpoint, quiet


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("blocks", [2, 3])
def test_values_are_those_of_the_operator(bits: int, zeros: bool, blocks: int) -> None:
    """MatMulNBits of the identity is the matrix itself; an odd number of blocks pads the zero points."""
    group, outputs = 32, 24
    inputs = group * blocks
    random = np.random.default_rng(bits + blocks)
    packed = random.integers(0, 256, (outputs, blocks, group * bits // 8), np.uint8)
    scales = random.random(outputs * blocks, np.float32) / 8
    points = random.integers(0, 256, outputs * -(-blocks * bits // 8), np.uint8) if zeros else None
    feeds = {"B": packed, "scales": scales} | ({"zeros": points} if points is not None else {})
    node = helper.make_node(
        "MatMulNBits", ["A", *feeds], ["Y"], domain="com.microsoft", K=inputs, N=outputs, bits=bits, block_size=group
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("A", onnx.TensorProto.FLOAT, [inputs, inputs])],
        [helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, [inputs, outputs])],
        [numpy_helper.from_array(value, name) for name, value in feeds.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"A": np.eye(inputs, dtype=np.float32)})
    sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": group}
    for part in (slice(0, outputs), slice(5, 9)):
        found = dequantize(packed.reshape(-1), scales, points, sizes, part)
        np.testing.assert_array_equal(found.T, expected[:, part].astype(np.float16))


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4")
    shape = {"hidden_size": 256, "intermediate_size": 512}
    with quiet():
        checkpoint = make_checkpoint(folder / "checkpoint", "llama", **shape)
        return build_base(checkpoint, folder / "bundle", name="tiny", precision="int4", device="cuda").variant("paged")


def test_a_base_is_expanded_once_and_links_like_any_other(paged: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in paged.iterdir()}
    folder = expand(paged, tmp_path / "cache").folder
    stamp = (folder / "float16.data").stat().st_mtime_ns
    assert expand(paged, tmp_path / "cache").folder == folder
    assert (folder / "float16.data").stat().st_mtime_ns == stamp
    assert {file.name: file.read_bytes() for file in paged.iterdir()} == before
    graph = onnx.load(folder / MODEL, load_external_data=False).graph
    assert not [node.name for node in graph.node if node.op_type == "MatMulNBits"]
    weights = [tensor for tensor in graph.initializer if tensor.name.endswith("/float16")]
    assert sum(2 * int(np.prod(tensor.dims)) for tensor in weights) == expanded_bytes(paged)
    library = tmp_path / "liblora.so"
    library.write_bytes(b"only copied by the linker")
    linked = link_slots(folder, {"0.attn.q_proj": 4, "1.mlp.down_proj": 4}, 2, tmp_path / "linked", library)
    assert linked.layout is not None
    assert len(linked.layout.branches) == 2
    assert (linked.folder / "float16.data").samefile(folder / "float16.data")


def test_expanded_weights_are_near_those_of_the_checkpoint(paged: Path, tmp_path: Path) -> None:
    folder = expand(paged, tmp_path / "cache").folder
    checkpoint = load_file(paged.parents[2] / "checkpoint" / "model.safetensors")
    graph = onnx.load(folder / MODEL, load_external_data=False).graph
    tensor = next(each for each in graph.initializer if each.name.startswith("/model/layers.1/mlp/down_proj/"))
    place = {entry.key: entry.value for entry in tensor.external_data}
    raw = (folder / place["location"]).read_bytes()[int(place["offset"]) :][: int(place["length"])]
    found = np.frombuffer(raw, np.float16).reshape(tensor.dims).astype(np.float32)
    expected = checkpoint["model.layers.1.mlp.down_proj.weight"].astype(np.float32).T
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def copy(paged: Path, folder: Path) -> Path:
    """A copy of the paged variant that reads the same weights."""
    base = folder / "base" / "paged"
    base.mkdir(parents=True)
    (base.parent / "generator").symlink_to(paged.parent / "generator")
    for file in paged.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    return base


def test_what_cannot_be_expanded_is_refused(paged: Path, tmp_path: Path) -> None:
    model = onnx.load(paged / MODEL, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            node.input.extend([""] * (4 - len(node.input)) + ["group_index"])
    base = copy(paged, tmp_path)
    onnx.save(model, base / MODEL)
    with pytest.raises(BundleInvalid, match="--weights int4"):
        expand(base, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_base_whose_graph_is_damaged_is_refused(paged: Path, tmp_path: Path) -> None:
    base = copy(paged, tmp_path)
    halve(base / MODEL)
    for look in (expanded_bytes, takes_operator, lambda base: expand(base, tmp_path / "cache")):
        with pytest.raises(BundleInvalid, match=r"model\.onnx is not an ONNX model"):
            look(base)


def halve(file: Path) -> None:
    """As another file of its name: some are shared with the bundle."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])


def empty(file: Path) -> None:
    file.unlink()
    file.touch()


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    (MODEL, halve),
    (MODEL, empty),
    (MODEL, Path.unlink),
    (DATA, halve),
    (DATA, Path.unlink),
    ("genai_config.json", empty),
    ("tokenizer.json", Path.unlink),
    ("model.onnx.data", halve),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_weights_are_expanded_anew(
    paged: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = expand(paged, tmp_path / "cache").folder
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder / name)
    held = expand(paged, tmp_path / "cache")
    assert {file.name: file.read_bytes() for file in held.folder.iterdir()} == whole
    assert list((tmp_path / "cache").iterdir()) == [held.folder], "nobody used the damaged one"


def test_who_uses_damaged_weights_goes_on(paged: Path, tmp_path: Path) -> None:
    used = expand(paged, tmp_path / "cache")
    before = used.folder.stat().st_ino
    halve(used.folder / DATA)
    held = expand(paged, tmp_path / "cache")
    (other,) = set((tmp_path / "cache").iterdir()) - {held.folder}
    assert other.stat().st_ino == before
    del used
    expand(paged, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [held.folder]


def test_damaged_weights_that_stay_are_refused(paged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a cache that this server may only read."""
    halve(expand(paged, tmp_path / "cache").folder / DATA)
    monkeypatch.setattr(expansion, "discard", lambda _: None)
    with pytest.raises(OSError, match="damaged and cannot be deleted"):
        expand(paged, tmp_path / "cache")


def test_weights_of_earlier_bases_go(paged: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    used = make(cache, "used", lambda _: None)
    for number in range(8):
        make(cache, f"old{number}", lambda _: None)
    for folder in cache.iterdir():
        os.utime(folder, (1, 1))
    held = expand(paged, cache)
    assert {used.folder, held.folder} <= set(cache.iterdir())
    assert len(list(cache.iterdir())) <= 4 + 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing reserves room")
def test_a_full_disk_is_told_from_a_failure(paged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written: what writes to a map that finds no room is killed by the system."""

    def full(descriptor: int, offset: int, length: int) -> None:
        assert (offset, length) == (0, os.fstat(descriptor).st_size)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        expand(paged, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(opening, "choose_device", lambda _: "cuda")
    monkeypatch.setattr(opening, "find_operator", lambda _: None)
    bundle = Bundle.open(paged.parents[1])
    start = Start(
        folder=str(bundle.variant("generator")),
        base=bundle.manifest.base,
        device="cuda",
        threads=1,
        prefill_chunk=0,
        telemetry=False,
        log_level="info",
        log_format="console",
        engine="routed",
        kv_bytes=0,
        max_running=0,
        routed=Routed(
            paged=str(paged),
            adapters=[],
            cache=str(tmp_path / "cache"),
            weights="float16",
            max_linked=0,
            prefix_cache=True,
            cuda_graphs=True,
        ),
    )
    with pytest.raises(BundleInvalid, match=r"No space left on device; use --weights int4 or a --link-cache"):
        opening.open_lane(start)

"""CUDA bundles: two variants of the base, one weight file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from loraplex.build.assembly import build_bundle
from loraplex.build.builder import Precision
from loraplex.build.export import export_base
from loraplex.build.paged import export_paged
from loraplex.build.weight_file import find_stored, share_weights
from loraplex.server.bundle import Bundle, Quantization
from loraplex.server.engine.linker import link
from loraplex.server.errors import BundleInvalid
from tests.awq import make_awq
from tests.build.conftest import Built
from tests.build.generation import Runner
from tests.checkpoints import Family, make_adapter, make_checkpoint, reference_logits

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]


@pytest.fixture(scope="module")
def cuda(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The llama checkpoint as an int4 bundle for CUDA. Read only."""
    output = tmp_path_factory.mktemp("cuda") / "bundle"
    return build_bundle(built.checkpoint, built.peft, output, name="tiny", precision="int4", device="cuda")


def graph(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "model.onnx", load_external_data=False).graph


def locations(folder: Path) -> set[str]:
    return {
        entry.value for tensor in graph(folder).initializer for entry in tensor.external_data if entry.key == "location"
    }


def stored(folder: Path) -> dict[str, bytes]:
    """Weights by name. The onnx package itself refuses to read files that have two names, as linked ones do."""
    places = {tensor.name: find_stored(folder, tensor) for tensor in graph(folder).initializer}
    return {name: b"".join(place.blocks()) for name, place in places.items() if place}


def test_bundle(cuda: Bundle, built: Built) -> None:
    base = cuda.manifest.base
    assert cuda.manifest.variants == {"generator": "base/generator", "paged": "base/paged"}
    # Groups of 128 and 64 would be one to a row, which k_quant cannot pack.
    assert (base.dtype, base.quantization) == ("float16", Quantization("k_quant", 4, 32))
    assert base.projections == built.bundle.manifest.base.projections
    assert [file.parent.name for file in cuda.folder.rglob("*.data")] == ["generator"]
    assert cuda.manifest.weights is not None
    assert (cuda.folder / cuda.manifest.weights.file).stat().st_size == cuda.manifest.weights.bytes
    assert locations(cuda.variant("generator")) == {"model.onnx.data"}
    assert locations(cuda.variant("paged")) == {"../generator/model.onnx.data"}


def test_generator_variant_answers_like_peft(built: Built, tmp_path: Path) -> None:
    """On a CPU, where a graph for CUDA runs too, only slowly; float16 weights, so that PEFT can be compared with."""
    bundle = build_bundle(built.checkpoint, built.peft, tmp_path / "b", name="tiny", precision="float16", device="cuda")
    folder = tmp_path / "cpu"
    shutil.copytree(bundle.variant("generator"), folder)
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = []
    (folder / "genai_config.json").write_text(json.dumps(config))
    runner = Runner(folder, {name: bundle.adapter(name) / f"{name}.onnx_adapter" for name in built.peft})
    for name, peft in built.peft.items():
        expected = reference_logits(built.checkpoint, peft, PROMPT)[-1]
        np.testing.assert_allclose(runner.logits(PROMPT, name), expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_a_copied_bundle_is_linked(cuda: Bundle, built: Built, tmp_path: Path) -> None:
    """What cp -r, zip, git and a hub leave of it is all that is needed."""
    copy = Bundle.open(Path(shutil.copytree(cuda.folder, tmp_path / "copy")))
    linked = link(copy.variant("paged"), [copy.adapter("four") / "four.onnx_adapter"], tmp_path / "cache")
    assert locations(linked.folder) == {"model.onnx.data", "bank.data"}
    weights = copy.variant("generator") / "model.onnx.data"
    assert (linked.folder / "model.onnx.data").samefile(weights)
    # The numbers at the places that the graph names are those of the builder's own file.
    export_paged(built.checkpoint, tmp_path / "alone", precision="int4")
    alone, found = stored(tmp_path / "alone"), stored(linked.folder)
    assert alone.items() <= found.items()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2", "qwen3", "gemma2"])
@pytest.mark.parametrize(("precision", "awq"), [("float16", False), ("int4", False), ("int4", True)])
def test_everything_is_shared(family: Family, precision: Precision, awq: bool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    if awq:
        checkpoint = make_awq(checkpoint, tmp_path / "awq")
    export_base(checkpoint, tmp_path / "generator", precision=precision, device="cuda")
    export_paged(checkpoint, tmp_path / "paged", precision=precision)
    before = sum((tmp_path / name / "model.onnx.data").stat().st_size for name in ("generator", "paged"))
    found = share_weights([tmp_path / "generator", tmp_path / "paged"])
    assert found.alone == {"generator": 0, "paged": 0}
    assert found.shared > 0.7 * before / 2, "the rest is what fused layers replaced"
    linears = [
        node.name.split("/")[-2]
        for node in graph(tmp_path / "paged").node
        if node.op_type == ("MatMul" if precision == "float16" else "MatMulNBits") and "layers.0" in node.name
    ]
    qkv = ["q_proj", "k_proj", "v_proj"] if family == "qwen3" else ["qkv_proj"]
    assert linears == [*qkv, "o_proj", "gate_up_proj", "down_proj"]


def test_a_bundle_without_its_weights(cuda: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cuda.folder, tmp_path / "copy"))
    weights = copy / "base" / "generator" / "model.onnx.data"
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BundleInvalid, match=r"model\.onnx\.data has 43 bytes instead of \d+: the bundle is incomplete"):
        Bundle.open(copy)
    weights.unlink()
    with pytest.raises(BundleInvalid, match=r"model\.onnx\.data is missing: the bundle is incomplete, fetch it again"):
        Bundle.open(copy)
    with pytest.raises(BundleInvalid, match=r"takes weights from .*model\.onnx\.data, which is missing"):
        link(copy / "base" / "paged", [], tmp_path / "cache")


def test_weights_elsewhere_are_refused(cuda: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cuda.folder, tmp_path / "copy"))
    paged = copy / "base" / "paged"
    model = onnx.load(paged / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../etc/passwd"
    onnx.save(model, paged / "model.onnx")
    with pytest.raises(BundleInvalid, match=r"takes weights from \.\./\.\./\.\./etc/passwd, which is not beside it"):
        link(paged, [], tmp_path / "cache")


def test_adapters_can_be_added_to_a_ready_base(built: Built, tmp_path: Path) -> None:
    from loraplex.build.assembly import add_adapters, build_base

    base = build_base(built.checkpoint, tmp_path / "base", name="tiny", precision="float16", device="cuda")
    assert base.manifest.adapters == {}
    bundle = add_adapters(base, {"four": built.peft["four"]}, tmp_path / "bundle", sources={"four": "a test"})
    assert bundle.manifest == Bundle.open(tmp_path / "bundle").manifest
    assert list(bundle.manifest.adapters) == ["four"]
    weights = "base/generator/model.onnx.data"
    assert (bundle.folder / weights).samefile(base.folder / weights), "a copy would take the disk's time and space"
    assert Bundle.open(base.folder).manifest.adapters == {}, "the ready base is as it was"


def test_biases_are_joined(tmp_path: Path) -> None:
    """Biases of gate and up are joined with their layers."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llama", attention_bias=True, mlp_bias=True)
    awq = make_awq(checkpoint, tmp_path / "awq")
    peft = {"one": make_adapter(checkpoint, tmp_path / "one")}
    bundle = build_bundle(awq, peft, tmp_path / "bundle", name="tiny", precision="int4", device="cuda")
    names = {node.name: node.op_type for node in graph(bundle.variant("paged")).node if "layers.0/mlp" in node.name}
    assert names["/model/layers.0/mlp/gate_up_proj/Add"] == "Add"
    assert names["/model/layers.0/mlp/gate_up_proj/Split"] == "Split"
    assert not [name for name in names if "/up_proj/" in name]

"""Verification passes what is right, catches what is wrong, and says what it found."""

from __future__ import annotations

import math
import shutil
import weakref
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import PreTrainedModel

from loraplex.build.adapter import convert
from loraplex.build.assembly import build_bundle
from loraplex.build.builder import Device
from loraplex.build.errors import VerificationFailed
from loraplex.build.findings import Verification, read_findings
from loraplex.build.record import StepRecord
from loraplex.build.reference import log_softmax
from loraplex.build.twin import load_graph_twin, load_twin
from loraplex.build.verification import Effort, HeldOut, verify_bundle
from loraplex.build.weight_file import find_stored
from loraplex.server.bundle import Bundle
from tests.awq import make_awq
from tests.build.conftest import Built
from tests.checkpoints import Family, make_adapter, make_checkpoint, quiet, reference_logits

TEXTS = [" ".join(f"w{8 + (7 * step * row) % 150}" for step in range(1, 25)) for row in (1, 2, 3)]
LITTLE = Effort(prompts=2, tokens=8)


def quantized(built: Built, folder: Path, *, awq: bool = False, device: Device = "cpu") -> tuple[Bundle, Path]:
    """An int4 bundle of the llama checkpoint, with two of its adapters; and the checkpoint it was made from."""
    checkpoint = make_awq(built.checkpoint, folder / "awq") if awq else built.checkpoint
    peft = {name: built.peft[name] for name in ("four", "partial")}
    output = folder / "bundle"
    return build_bundle(checkpoint, peft, output, name="tiny", precision="int4", device=device), checkpoint


def verify(bundle: Bundle, checkpoint: Path, built: Built, failed: Path | None = None) -> Verification:
    with quiet():
        return verify_bundle(bundle, checkpoint, built.peft, held_out=HeldOut(TEXTS), effort=LITTLE, failed=failed)


class _Cells(HTMLParser):
    """The page's text, and what it would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loaded: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.loaded.append(tag)
        self.loaded += [value for key, value in attrs if key in ("src",) and value]


def test_findings(built: Built, tmp_path: Path) -> None:
    bundle, checkpoint = quantized(built, tmp_path, awq=True)
    steps = [StepRecord(name="quantize", seconds=1.5, peak_bytes=2_000_000_000, output_bytes=5_000)]
    said: list[str] = []
    with quiet():
        found = verify_bundle(
            bundle,
            checkpoint,
            built.peft,
            held_out=HeldOut(TEXTS, {"four": TEXTS[:1]}),
            float_checkpoint=built.checkpoint,
            steps=steps,
            effort=LITTLE,
            progress=said.append,
        )
    assert found.passed
    assert found == read_findings(bundle.folder)
    assert [check.difference for check in found.weights if "int4" in check.part] == [0], "AWQ's weights are kept"
    exact = [each for each in found.agreements if each.lane == "exact"]
    assert [each.model for each in exact] == ["tiny", "four", "partial"]
    assert all(each.same == each.tokens > 0 and each.difference < 2e-4 for each in exact)
    served = [each for each in found.agreements if each.lane == "generator"]
    assert all(each.limit is None and each.difference > 1e-3 for each in served), "activations are rounded to int8"
    assert {(row.text, row.model, row.weights) for row in found.perplexities} == {
        (text, model, weights)
        for text, model in (("base", "tiny"), ("four", "tiny"), ("four", "four"))
        for weights in ("float", "awq", "rtn", "as served")
    }
    assert [step.name for step in found.steps] == ["quantize", "verify"]
    assert "answers of four, exact" in said
    page = _Cells()
    page.feed((bundle.folder / "verification.html").read_text("utf-8"))
    assert not page.loaded, "the page is to be whole in itself"
    for words in ("quantize", "1.5 s", "2 GB", "The bundle computes what it was made from.", "partial"):
        assert any(words in text for text in page.text), words
    # The bundle with these two files in it is still a bundle.
    assert Bundle.open(bundle.folder) == bundle


def test_perplexity_is_that_of_the_float_model(built: Built, tmp_path: Path) -> None:
    bundle = Bundle.open(Path(shutil.copytree(built.bundle.folder, tmp_path / "bundle")))
    found = verify(bundle, built.checkpoint, built)
    tokens = [[0, *(int(word[1:]) for word in text.split())] for text in TEXTS]
    losses = [
        -log_softmax(reference_logits(built.checkpoint, None, ids)[:-1])[np.arange(len(ids) - 1), ids[1:]]
        for ids in tokens
    ]
    expected = math.exp(np.concatenate(losses).mean())
    rows = {row.weights: row for row in found.perplexities}
    assert rows["float"].value == pytest.approx(expected, rel=1e-4)
    assert rows["as served"].value == pytest.approx(expected, rel=1e-4)
    assert rows["float"].tokens == sum(len(ids) - 1 for ids in tokens)


def test_one_float_model_is_in_memory_at_a_time(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[PreTrainedModel]] = []
    there: list[int] = []

    def counted(load: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
        def loaded(*arguments: Path) -> PreTrainedModel:
            there.append(sum(each() is not None for each in models))
            model = load(*arguments)
            models.append(weakref.ref(model))
            return model

        return loaded

    for load in (load_graph_twin, load_twin):
        monkeypatch.setattr(f"loraplex.build.comparison.{load.__name__}", counted(load))
    bundle, checkpoint = quantized(built, tmp_path)
    verify(bundle, checkpoint, built)
    assert there == [0, 0, 0], "of the graph's weights, of the float checkpoint's, and of these rounded to nearest"
    with quiet():
        verify_bundle(bundle, checkpoint, built.peft, effort=LITTLE)
    assert there == [0, 0, 0, 0], "without text there is nothing to read with the last two"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize(
    ("awq", "algorithm", "device"),
    [
        (True, None, "cpu"),
        (False, "k_quant", "cpu"),
        (False, "rtn", "cpu"),
        (True, None, "cuda"),
        (False, "rtn", "cuda"),
    ],
)
def test_int4_against_its_dequantized_twin(
    family: Family, awq: bool, algorithm: str | None, device: Device, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    peft = {"one": make_adapter(checkpoint, tmp_path / "one", rank=3, alpha=7)}
    if awq:
        checkpoint = make_awq(checkpoint, tmp_path / "awq")
    bundle = build_bundle(
        checkpoint,
        peft,
        tmp_path / "bundle",
        name="tiny",
        precision="int4",
        device=device,
        group_size=32,
        algorithm=algorithm,  # type: ignore[arg-type]
    )
    with quiet():
        found = verify_bundle(bundle, checkpoint, peft, effort=Effort(prompts=2, tokens=16))
    judged = [each for each in found.agreements if each.limit is not None]
    assert [(each.model, each.lane) for each in judged] == [
        (model, "exact" if device == "cpu" else "generator") for model in ("tiny", "one")
    ]
    if device == "cpu":
        assert all(each.same == each.tokens for each in judged)
        assert all(each.difference < 3e-4 for each in judged)
    parts = {check.part.split(",")[0] for check in found.weights}
    assert parts == {"one", *bundle.manifest.variants.values()}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_wrong_adapter_scale_is_caught(built: Built, tmp_path: Path, device: Device) -> None:
    """Off by three percent: too little for any look at answers in float16."""
    bundle, checkpoint = quantized(built, tmp_path, device=device)
    wrong = Path(shutil.copytree(built.peft["four"], tmp_path / "wrong"))
    config = wrong / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 8.24'))
    convert(wrong, bundle.manifest.base, bundle.adapter("four"), name="four")
    with pytest.raises(VerificationFailed, match=r"four: model\.layers\.\d\..* is off by 0\.03\d* of the largest"):
        verify(bundle, checkpoint, built, failed=tmp_path / "failed")
    assert not (bundle.folder / "verification.json").exists()
    found = read_findings(tmp_path / "failed")
    assert not found.passed
    assert "does not compute what it was made from" in (tmp_path / "failed" / "verification.html").read_text("utf-8")


@pytest.mark.parametrize("awq", [False, True])
@pytest.mark.parametrize("variant", ["generator", "paged"])
def test_a_wrong_zero_point_is_caught(built: Built, tmp_path: Path, awq: bool, variant: str) -> None:
    """One of 1,152: of a down_proj, in the file that both variants read, or in the paged graph alone."""
    bundle, checkpoint = quantized(built, tmp_path, awq=awq, device="cuda")
    folder = bundle.folder / "base" / variant
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name.startswith("/model/layers.1/mlp/down_proj/MatMul"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[3])
    place = find_stored(folder, tensor)
    assert place is not None
    raw = bytearray(b"".join(place.blocks()))
    raw[5] ^= 1
    if variant == "generator":
        with place.file.open("r+b") as stream:
            stream.seek(place.offset)
            stream.write(raw)
    else:
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = bytes(raw)
        onnx.save(model, folder / "model.onnx")
    with pytest.raises(
        VerificationFailed, match=rf"base/{variant}, int4 layers: /model/layers\.1/mlp/down_proj/\S+ is "
    ):
        verify(bundle, checkpoint, built)


def test_a_wrong_layer_norm_is_caught_by_the_answers(built: Built, tmp_path: Path) -> None:
    """Nothing but what the graph computes tells of it: layer norms are not among the weights compared."""
    bundle, checkpoint = quantized(built, tmp_path)
    folder = bundle.variant("generator")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    norm = "model.layers.1.input_layernorm.weight"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == norm)
    place = find_stored(folder, tensor)
    assert place is not None
    with place.file.open("r+b") as stream:
        stream.seek(place.offset)
        stream.write(np.float32(1.01).tobytes())
    with pytest.raises(VerificationFailed, match=r"tiny, lane exact: logits off by .* and 2 more"):
        verify(bundle, checkpoint, built)


def test_a_layer_that_an_adapter_lost_is_caught(built: Built, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bundle, checkpoint = quantized(built, tmp_path)
    partial = Path(shutil.copytree(built.peft["four"], tmp_path / "partial"))
    tensors = load_file(partial / "adapter_model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name},
        partial / "adapter_model.safetensors",
    )
    convert(partial, bundle.manifest.base, bundle.adapter("four"), name="four")
    with pytest.raises(VerificationFailed, match=r"four: model\.layers\.1\.mlp\.up_proj is off by inf"):
        verify(bundle, checkpoint, built)


def test_a_layer_that_is_not_found_in_the_graph_is_told(built: Built, tmp_path: Path) -> None:
    bundle = Bundle.open(Path(shutil.copytree(built.bundle.folder, tmp_path / "bundle")))
    path = bundle.variant("generator") / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (node,) = (node for node in model.graph.node if node.name == "/model/layers.1/mlp/down_proj/MatMul")
    node.name = "/model/layers.1/mlp/down_proj/Gemm"
    onnx.save(model, path)
    with pytest.raises(VerificationFailed, match=r"float layers: model\.layers\.1\.mlp\.down_proj is off by inf"):
        verify(bundle, built.checkpoint, built)


def test_a_bundle_that_fails_gets_no_name(built: Built, tmp_path: Path) -> None:
    peft = {"four": built.peft["four"]}

    def check(bundle: Bundle) -> None:
        with quiet():
            verify_bundle(bundle, built.checkpoint, {"four": built.peft["eight"]}, effort=LITTLE)

    with pytest.raises(VerificationFailed, match="four: "):
        build_bundle(built.checkpoint, peft, tmp_path / "out" / "b", name="tiny", precision="float32", check=check)
    assert list((tmp_path / "out").iterdir()) == []

"""Adapter files as Olive itself writes them, read for our bundles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from loraplex.build.adapter import convert, write_adapter
from loraplex.build.olive_adapter import read_olive
from loraplex.build.peft_folder import parse_config
from loraplex.build.peft_shapes import target_of_bundle, target_of_config
from loraplex.server.bundle import Base, read_adapter_manifest
from loraplex.server.errors import AdapterInvalid
from tests.build.conftest import Built
from tests.build.generation import Runner
from tests.checkpoints import make_adapter, make_checkpoint, reference_logits

pytestmark = pytest.mark.timeout(900)  # Olive takes half a minute on an idle machine

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]

OLIVE = """
import os, sys
from pathlib import Path
from olive.cli.launcher import main
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.extract_adapters import ExtractAdapters
from onnxruntime_genai.models.builder import create_model, parse_extra_options

checkpoint, four, partial, phi, output = map(Path, sys.argv[1:])
for name, peft, *options in (
    ("four", four),
    ("half", four, "--dtype", "float16"),
    ("int4", four, "--quantize_int4"),
    ("partial", partial),
    ("phi", phi),
):
    main(["convert-adapters", "-a", str(peft), "-o", str(output / name), *options])
main(["extract-adapters", "-m", str(output / "both"), "-f", "onnx_adapter", "-o", str(output), "--dtype", "float32"])
for name, precision in (("extracted", "fp32"), ("extracted-int4", "int4")):
    at = (None, str(checkpoint), str(output / name), precision, "cpu", str(output / "cache"))
    create_model(*at, **parse_extra_options(*at, [f"adapter_path={partial}", "hf_token=false", "hf_remote=false"]))
    model = ONNXModelHandler(str(output / name), onnx_file_name="model.onnx")
    extract = create_pass_from_dict(ExtractAdapters, {}, disable_search=True)
    extract.run(model, str(output / name / "out"))
    (output / name / "out" / "adapter_weights.onnx_adapter").rename(output / f"{name}.onnx_adapter")
"""


@dataclass(frozen=True)
class Olive:
    """Files by what made them, and the Phi-3 adapter that one of them was made from."""

    folder: Path
    phi: Path
    phi_checkpoint: Path

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.onnx_adapter"


@pytest.fixture(scope="session")
def olive(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Olive:
    """`olive convert-adapters` and the pass ExtractAdapters on the model builder's graph, run for real."""
    folder = tmp_path_factory.mktemp("olive")
    phi_checkpoint = make_checkpoint(folder / "phi-checkpoint", "phi3")
    phi = make_adapter(phi_checkpoint, folder / "phi-peft", rank=4, alpha=8)
    shutil.copytree(phi, shutil.copytree(phi_checkpoint, folder / "both") / "extracted-phi")
    arguments = (built.checkpoint, built.peft["three"], built.peft["partial"], phi, folder)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OLIVE, *map(str, arguments)],
        env=os.environ | {"OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Olive(folder, phi, phi_checkpoint)


def weights(folder: Path, name: str) -> dict[str, npt.NDArray[np.float32]]:
    from onnxruntime import AdapterFormat

    adapter = AdapterFormat.read_adapter(str(folder / f"{name}.onnx_adapter"))
    return {key: np.array(value.numpy()) for key, value in adapter.get_parameters().items()}


@pytest.mark.slow
def test_convert_adapters_of_olive_gives_what_the_peft_folder_gives(
    olive: Olive, built: Built, base: Base, tmp_path: Path
) -> None:
    """An adapter with rslora: one scale for all modules, which Olive knows."""
    modules = read_olive(olive.file("four"), target_of_bundle(base), name="three", scale="folded")
    manifest = write_adapter(modules, base, tmp_path / "three", name="three")
    assert manifest.alphas == {}, "the file does not tell"
    assert manifest.ranks == dict.fromkeys(base.projections, 3)
    expected = weights(built.bundle.adapter("three"), "three")
    found = weights(tmp_path / "three", "three")
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-6)
    config, _ = parse_config(built.peft["three"] / "adapter_config.json")
    told = read_olive(olive.file("four"), target_of_bundle(base), name="three", scale="folded", config=config)
    assert {module.alpha for module in told.values()} == {6}
    half = read_olive(olive.file("half"), target_of_bundle(base), name="three", scale="folded")
    np.testing.assert_allclose(half["0.attn.q_proj"].a, expected["model.layers.0.attn.q_proj.lora_A.weight"], rtol=1e-3)


@pytest.mark.slow
def test_extracted_adapters_of_olive_answer_as_peft(olive: Olive, built: Built, base: Base, tmp_path: Path) -> None:
    """With patterns of rank and alpha: the model builder scales module by module."""
    modules = read_olive(olive.file("extracted"), target_of_bundle(base), name="partial", scale="folded")
    write_adapter(modules, base, tmp_path / "mine", name="mine")
    assert (
        read_adapter_manifest(tmp_path / "mine").ranks == read_adapter_manifest(built.bundle.adapter("partial")).ranks
    )
    runner = Runner(built.bundle.variant("generator"), {"mine": tmp_path / "mine" / "mine.onnx_adapter"})
    expected = reference_logits(built.checkpoint, built.peft["partial"], PROMPT)[-1]
    np.testing.assert_allclose(runner.logits(PROMPT, "mine"), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["phi", "extracted-phi"])
def test_packed_modules_of_phi3(olive: Olive, tmp_path: Path, file: str) -> None:
    """Which convert-adapters leaves packed, and extract-adapters splits."""
    config = json.loads((olive.phi_checkpoint / "config.json").read_bytes())
    target = target_of_config(config, "phi")
    base = Base(
        name="phi",
        architecture=target.architecture,
        fingerprint="sha256:" + "0" * 64,
        dtype="float32",
        quantization={"method": "none", "bits": 32},  # type: ignore[arg-type]
        context_length=256,
        vocab_size=160,
        projections=dict(target.projections),
    )
    modules = read_olive(olive.file(file), target, name="mine", scale="folded")
    write_adapter(modules, base, tmp_path / "olive", name="mine")
    convert(olive.phi, base, tmp_path / "peft", name="mine")
    assert modules.keys() == base.projections.keys()
    expected = weights(tmp_path / "peft", "mine")
    for key, values in weights(tmp_path / "olive", "mine").items():
        np.testing.assert_allclose(values, expected[key], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("int4", "its weights are quantized"),
        ("extracted-int4", "its weights are quantized"),
        ("partial", "its modules have ranks [1, 2, 4, 7], and olive convert-adapters scales all modules alike"),
        ("phi", "it adapts 0.attn.qkv_proj, LlamaForCausalLM has"),
    ],
)
def test_what_cannot_be_known_or_used_is_refused(olive: Olive, base: Base, file: str, words: str) -> None:
    with pytest.raises(AdapterInvalid) as info:
        read_olive(olive.file(file), target_of_bundle(base), name="mine", scale="folded")
    assert words in info.value.message
    assert "\n" not in info.value.message


def write(file: Path, tensors: Mapping[str, npt.NDArray[np.float32]]) -> Path:
    """A file as Olive's `save_weights` writes it."""
    from onnxruntime import AdapterFormat, OrtValue

    adapter = AdapterFormat()
    values = {key: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}
    adapter.set_parameters(values)
    adapter.export_adapter(str(file))
    return file


def random(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_names_of_extract_adapters(base: Base, tmp_path: Path) -> None:
    """`olive extract-adapters`, as its source names a PEFT model's modules."""
    prefix = "base_model.model.model.layers.1.attn.v_proj"
    tensors = {f"{prefix}.lora_A.MatMul.weight": random(64, 2), f"{prefix}.lora_B.MatMul.weight": random(2, 32)}
    (found,) = read_olive(
        write(tmp_path / "a.onnx_adapter", tensors), target_of_bundle(base), name="mine", scale="folded"
    ).items()
    assert found[0] == "1.attn.v_proj"
    np.testing.assert_array_equal(found[1].b, tensors[f"{prefix}.lora_B.MatMul.weight"])


def test_an_unfolded_scale_comes_from_the_config(built: Built, base: Base, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    peft = load_file(built.peft["partial"] / "adapter_model.safetensors")
    file = write(
        tmp_path / "a.onnx_adapter", {key.removeprefix("base_model.model."): value.T for key, value in peft.items()}
    )
    target = target_of_bundle(base)
    config, _ = parse_config(built.peft["partial"] / "adapter_config.json")
    manifest = write_adapter(
        read_olive(file, target, name="partial", scale="unfolded", config=config),
        base,
        tmp_path / "partial",
        name="partial",
    )
    original = read_adapter_manifest(built.bundle.adapter("partial"))
    assert (manifest.sha256, manifest.alphas) == (original.sha256, original.alphas)
    with pytest.raises(AdapterInvalid, match=r"its adapter_config\.json is needed to scale B"):
        read_olive(file, target, name="partial", scale="unfolded")
    with pytest.raises(AdapterInvalid, match="convert its PEFT folder"):
        read_olive(file, target, name="partial", scale="folded", config=config)
    other, _ = parse_config(built.peft["eight"] / "adapter_config.json")
    with pytest.raises(AdapterInvalid, match=r"0\.attn\.o_proj has rank 4, its config says 8"):
        read_olive(file, target, name="partial", scale="unfolded", config=other)


Q_A, Q_B = "model.layers.0.attn.q_proj.lora_A.weight", "model.layers.0.attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({Q_A: random(64, 2)}, "0.attn.q_proj has no lora_B"),
        ({Q_A: random(64, 2), Q_B: random(3, 64)}, "A [64, 2] and B [3, 64] of 0.attn.q_proj do not go together"),
        ({Q_A: random(48, 2), Q_B: random(2, 48)}, "maps 48 to 48 features, that of tiny 64 to 64"),
        ({Q_A: random(2, 64).T[:, :1] * np.nan, Q_B: random(1, 64)}, "has values that are not finite"),
        (
            {Q_A.replace("layers.0", "layers.7"): random(64, 2), Q_B.replace("layers.0", "layers.7"): random(2, 64)},
            "no",
        ),
        ({Q_A.replace("attn.q_proj", "attn.z_proj"): random(64, 2), Q_B: random(2, 64)}, "0.attn.q_proj has no lora_A"),
        ({"lm_head.weight": random(4, 4)}, "lm_head.weight is no name that Olive gives"),
        ({"model.layers.0.self_attn.q_proj.lora_A.default.weight": random(2, 64)}, "is no name that Olive gives"),
        ({Q_A.replace(".weight", ".bias"): random(2, 2)}, "B has a bias of its own"),
        ({Q_A: random(4)}, "of the shape [4]"),
    ],
)
def test_refused_files(base: Base, tmp_path: Path, tensors: Mapping[str, npt.NDArray[np.float32]], words: str) -> None:
    with pytest.raises(AdapterInvalid) as info:
        read_olive(write(tmp_path / "a.onnx_adapter", tensors), target_of_bundle(base), name="mine", scale="folded")
    assert words in info.value.message


def test_a_file_of_another_kind(base: Base, tmp_path: Path) -> None:
    (tmp_path / "a.onnx_adapter").write_bytes(b"nothing of the kind" * 10)
    with pytest.raises(AdapterInvalid, match="is not an adapter file of onnxruntime"):
        read_olive(tmp_path / "a.onnx_adapter", target_of_bundle(base), name="mine", scale="folded")

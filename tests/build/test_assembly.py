"""A bundle is written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from loraplex.build import assembly
from loraplex.build.assembly import build_bundle
from loraplex.build.errors import BuildFailed, CheckpointUnsupported, ExportFailed
from loraplex.build.fingerprint import fingerprint
from loraplex.build.lora_inputs import add_lora_inputs
from loraplex.server.bundle import Bundle, Quantization, Sampling, read_adapter_manifest
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.errors import AdapterInvalid
from tests.build.conftest import Built


@pytest.fixture
def spoiled(built: Built, tmp_path: Path) -> Path:
    """An adapter whose weights, not its config, are wrong, so that it shows only after the export."""
    from safetensors.torch import load_file, save_file

    peft = Path(shutil.copytree(built.peft["four"], tmp_path / "spoiled"))
    tensors = load_file(peft / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].fill_(float("nan"))
    save_file(tensors, peft / "adapter_model.safetensors")
    return peft


def test_manifest(built: Built, tmp_path: Path) -> None:
    bundle = built.bundle
    assert bundle.manifest.base == msgspec.structs.replace(
        bundle.manifest.base,
        name="tiny",
        architecture="LlamaForCausalLM",
        fingerprint=fingerprint(built.checkpoint),
        dtype="float32",
        quantization=Quantization("none", 32),
        context_length=256,
        vocab_size=160,
        sampling=Sampling(),
    )
    assert bundle.manifest.variants == {"generator": "base/generator"}
    assert bundle.manifest.adapters == {name: f"adapters/{name}" for name in built.peft}
    assert sorted(path.name for path in bundle.folder.iterdir()) == ["adapters", "base", "bundle.json"]
    (tmp_path / "plain").mkdir()
    assert bundle.folder.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may not read it"


def test_descriptions_and_quantization(built: Built, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")
    bundle = build_bundle(
        str(built.checkpoint),
        {"four": built.peft["four"], "eight": built.peft["eight"]},
        tmp_path / "deep" / "down" / "bundle",
        name="tiny",
        precision="int4",
        group_size=16,
        head="int8",
        description="the base",
        descriptions={"four": "of rank four"},
        sources={"four": "a test"},
        chat_templates={"four": template},
        samplings={"four": Sampling(temperature=0)},
        log=tmp_path / "export.log",
    )
    base = bundle.manifest.base
    assert (base.description, base.quantization) == ("the base", Quantization("k_quant", 4, 16))
    four, eight = (check_adapter(bundle.adapter(name), base) for name in ("four", "eight"))
    assert (four.description, four.source, four.chat_template) == ("of rank four", "a test", "own.jinja")
    assert four.sampling == Sampling(temperature=0)
    assert (eight.description, eight.source, eight.chat_template, eight.sampling) == ("", "", None, Sampling())
    assert four.sha256 == read_adapter_manifest(built.bundle.adapter("four")).sha256, "the dtype is the same float32"
    assert "Saving ONNX model" in (tmp_path / "export.log").read_text()


def test_failure_leaves_nothing(built: Built, spoiled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(AdapterInvalid, match=r"adapter bad: .* not finite"):
        build_bundle(built.checkpoint, {"bad": spoiled}, folder / "bundle", name="tiny", precision="float32")
    assert list(folder.iterdir()) == []


def test_failure_keeps_the_bundle_that_was_there(
    built: Built, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(built.bundle.folder, tmp_path / "out" / "bundle"))

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    before = files()
    with pytest.raises(AdapterInvalid):
        build_bundle(built.checkpoint, {"bad": spoiled}, output, name="tiny", precision="float32")
    assert files() == before

    rename = Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if self.name == "bundle" and self.parent.name.startswith("."):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build_bundle(built.checkpoint, {}, output, name="tiny", precision="float32")
    assert files() == before


def test_a_bundle_is_replaced_whole(built: Built, tmp_path: Path) -> None:
    output = Path(shutil.copytree(built.bundle.folder, tmp_path / "out" / "bundle"))
    bundle = build_bundle(built.checkpoint, {"one": built.peft["four"]}, output, name="tiny", precision="float32")
    assert bundle == Bundle.open(output)
    assert [path.name for path in (output / "adapters").iterdir()] == ["one"]
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]


def test_anything_else_is_not_replaced(built: Built, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "dear.txt").write_text("diary")
    (tmp_path / "file").write_text("text")
    for output in (tmp_path / "notes", tmp_path / "file"):
        with pytest.raises(BuildFailed, match="exists and is not a bundle: move it away or give another output"):
            build_bundle(built.checkpoint, {}, output, name="tiny", precision="float32")
    assert (tmp_path / "notes" / "dear.txt").read_text() == "diary"
    (tmp_path / "empty").mkdir()
    build_bundle(built.checkpoint, {}, tmp_path / "empty", name="tiny", precision="float32")


def test_what_can_be_told_early_is_told_before_the_export(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: object, **__: object) -> None:
        raise AssertionError("the export was started")

    monkeypatch.setattr(assembly, "export_base", export)
    dora = Path(shutil.copytree(built.peft["four"], tmp_path / "dora"))
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    four, output = built.peft["four"], tmp_path / "bundle"
    with pytest.raises(AdapterInvalid, match="adapter bad: DoRA"):
        build_bundle(built.checkpoint, {"good": four, "bad": dora}, output, name="tiny", precision="float32")
    with pytest.raises(AdapterInvalid, match="'a/b' cannot be an adapter's name"):
        build_bundle(built.checkpoint, {"a/b": four}, output, name="tiny", precision="float32")
    with pytest.raises(BuildFailed, match="'-tiny' cannot be a base's name"):
        build_bundle(built.checkpoint, {}, output, name="-tiny", precision="float32")
    with pytest.raises(BuildFailed, match="'tiny' is the name of the base and of an adapter"):
        build_bundle(built.checkpoint, {"tiny": four}, output, name="tiny", precision="float32")
    with pytest.raises(BuildFailed, match="there is no adapter 'for' to describe"):
        build_bundle(
            built.checkpoint, {"four": four}, output, name="tiny", precision="float32", descriptions={"for": "a slip"}
        )
    with pytest.raises(CheckpointUnsupported, match="there is no checkpoint folder"):
        build_bundle(tmp_path / "nowhere", {}, output, name="tiny", precision="float32")
    assert not output.exists()


def test_an_export_that_does_not_run_is_not_kept(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(folder: Path) -> dict[str, tuple[int, int]]:
        projections = add_lora_inputs(folder)
        (folder / "model.onnx.data").write_bytes(b"")
        return projections

    monkeypatch.setattr(assembly, "add_lora_inputs", damage)
    with pytest.raises(ExportFailed, match="was written but does not run"):
        build_bundle(built.checkpoint, {}, tmp_path / "out" / "bundle", name="tiny", precision="float32")
    assert list((tmp_path / "out").iterdir()) == []

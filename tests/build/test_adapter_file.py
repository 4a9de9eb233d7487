"""check_adapter: every way an adapter can be wrong, each with one line that names the adapter and the reason."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxruntime import AdapterFormat, OrtValue

from loraplex.server.bundle import AdapterManifest, Base, read_adapter_manifest, sha256, write_manifest
from loraplex.server.engine.adapter_file import check_adapter
from loraplex.server.errors import AdapterInvalid
from tests.build.conftest import Built

Q_A, Q_B = "model.layers.0.attn.q_proj.lora_A.weight", "model.layers.0.attn.q_proj.lora_B.weight"
Tensors = dict[str, npt.NDArray[np.generic]]


@pytest.fixture
def folder(built: Built, tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoiled."""
    return Path(shutil.copytree(built.bundle.adapter("four"), tmp_path / "four"))


def refusal(folder: Path, base: Base) -> str:
    with pytest.raises(AdapterInvalid) as info:
        check_adapter(folder, base)
    assert "\n" not in info.value.message
    return info.value.message


def change_manifest(folder: Path, **fields: object) -> AdapterManifest:
    manifest = msgspec.structs.replace(read_adapter_manifest(folder), **fields)
    write_manifest(folder / "adapter.json", manifest)
    return manifest


def write(folder: Path, tensors: Tensors) -> None:
    """Replace the adapter's tensors, and its hash so that only the tensors can be wrong."""
    values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in tensors.items()}
    adapter = AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    file = folder / "four.onnx_adapter"
    adapter.export_adapter(str(file))
    change_manifest(folder, sha256=sha256(file))


def read(folder: Path) -> Tensors:
    found = AdapterFormat.read_adapter(str(folder / "four.onnx_adapter")).get_parameters()
    return {name: value.numpy().copy() for name, value in found.items()}


def test_good_adapters_pass(built: Built, base: Base) -> None:
    for name in built.bundle.manifest.adapters:
        folder = built.bundle.adapter(name)
        assert check_adapter(folder, base) == read_adapter_manifest(folder)


def test_manifest_is_missing_or_broken(folder: Path, base: Base) -> None:
    manifest = folder / "adapter.json"
    manifest.write_text('{"format": 2}')
    assert "is not an adapter of format 1" in refusal(folder, base)
    manifest.unlink()
    assert "is not an adapter: it has no adapter.json" in refusal(folder, base)


def test_file_is_missing(folder: Path, base: Base) -> None:
    (folder / "four.onnx_adapter").unlink()
    assert refusal(folder, base) == ("adapter four: adapter.json names four.onnx_adapter, but there is no such file")


@pytest.mark.parametrize("path", ["../elsewhere.onnx_adapter", "/etc/passwd", "", "a/../../b"])
@pytest.mark.parametrize("field", ["file", "chat_template"])
def test_path_leads_out_of_the_folder(folder: Path, base: Base, field: str, path: str) -> None:
    shutil.copy(folder / "four.onnx_adapter", folder.parent / "elsewhere.onnx_adapter")
    change_manifest(folder, **{field: path})
    message = refusal(folder, base)
    assert message.startswith("adapter four: ")
    assert message.endswith(f"{path!r} is not a path inside this folder")


def test_link_leads_out_of_the_folder(folder: Path, base: Base) -> None:
    file = folder / "four.onnx_adapter"
    file.rename(folder.parent / "elsewhere.onnx_adapter")
    file.symlink_to(folder.parent / "elsewhere.onnx_adapter")
    assert refusal(folder, base) == "adapter four: four.onnx_adapter is a link that leads out of the adapter's folder"


def test_chat_template_is_missing(folder: Path, base: Base) -> None:
    change_manifest(folder, chat_template="own.jinja")
    assert refusal(folder, base) == "adapter four: adapter.json names own.jinja, but there is no such file"


def test_another_base(folder: Path, base: Base) -> None:
    other = msgspec.structs.replace(base, fingerprint="sha256:" + "ab" * 32, name="other")
    message = refusal(folder, other)
    assert message == (
        f"adapter four: made for another base ({base.fingerprint[:19]}...) than other (sha256:abababababab...)"
    )


def test_another_dtype_by_its_manifest(folder: Path, base: Base) -> None:
    change_manifest(folder, dtype="float16")
    assert refusal(folder, base) == "adapter four: its dtype is float16, the base's is float32"


def test_one_flipped_bit(folder: Path, base: Base) -> None:
    file = folder / "four.onnx_adapter"
    raw = bytearray(file.read_bytes())
    raw[-20] ^= 1
    file.write_bytes(raw)
    assert refusal(folder, base).startswith(
        "adapter four: four.onnx_adapter is damaged or was replaced: its SHA-256 is "
    )


@pytest.mark.parametrize("length", [0, 3, 100, 20000, -1000])
def test_truncated_file(folder: Path, base: Base, length: int) -> None:
    file = folder / "four.onnx_adapter"
    file.write_bytes(file.read_bytes()[:length])
    assert "is damaged or was replaced" in refusal(folder, base)
    change_manifest(folder, sha256=sha256(file))
    assert refusal(folder, base) == "adapter four: four.onnx_adapter is not an adapter file of onnxruntime"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6))
def test_a_file_that_lies_about_itself_never_ends_the_process(
    built: Built, folder: Path, base: Base, changes: list[tuple[int, bytes]]
) -> None:
    """The tables of the flatbuffer, in front, overwritten at will, with a hash that fits."""
    raw = bytearray((built.bundle.adapter("four") / "four.onnx_adapter").read_bytes())
    for position, patch in changes:
        raw[position : position + len(patch)] = patch
    file = folder / "four.onnx_adapter"
    file.write_bytes(raw)
    change_manifest(folder, sha256=sha256(file))
    with contextlib.suppress(AdapterInvalid):
        check_adapter(folder, base)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda t: t.update({"lm_head.lora_A.weight": t[Q_A]}),
            "lm_head.lora_A.weight belongs to no projection of tiny",
        ),
        (
            lambda t: t.update({Q_A.replace("layers.0", "layers.7"): t.pop(Q_A)}),
            "model.layers.7.attn.q_proj.lora_A.weight belongs to no projection of tiny",
        ),
        (
            lambda t: t.update({Q_A.replace("weight", "bias"): t[Q_A]}),
            "model.layers.0.attn.q_proj.lora_A.bias belongs to no projection of tiny",
        ),
        (lambda t: t.pop(Q_B), "0.attn.q_proj has no lora_B"),
        (lambda t: t.pop(Q_A), "0.attn.q_proj has no lora_A"),
        (lambda t: (t.pop(Q_A), t.pop(Q_B)), "0.attn.q_proj is in adapter.json but not in its file"),
        (
            lambda t: t.update({Q_A: t[Q_A][:-1].copy()}),
            "0.attn.q_proj.lora_A has the shape [63, 4], base and adapter.json need [64, 4]",
        ),
        (
            lambda t: t.update({Q_B: t[Q_B][:, :-1].copy()}),
            "0.attn.q_proj.lora_B has the shape [4, 63], base and adapter.json need [4, 64]",
        ),
        (
            lambda t: t.update({Q_A: t[Q_A].T.copy()}),
            "0.attn.q_proj.lora_A has the shape [4, 64], base and adapter.json need [64, 4]",
        ),
        (
            lambda t: t.update({Q_B: t[Q_B][:-1].copy()}),
            "0.attn.q_proj.lora_B has the shape [3, 64], base and adapter.json need [4, 64]",
        ),
        (
            lambda t: t.update({Q_A: t[Q_A].reshape(64, 4, 1)}),
            "0.attn.q_proj.lora_A has the shape [64, 4, 1], base and adapter.json need [64, 4]",
        ),
        (
            lambda t: t.update({Q_A: t[Q_A].astype(np.float16)}),
            "0.attn.q_proj.lora_A is float16, the base needs float32",
        ),
        (
            lambda t: t.update({Q_A: t[Q_A].astype(np.float64)}),
            "0.attn.q_proj.lora_A is tensor(double), the base needs float32",
        ),
        (
            lambda t: t[Q_A].__setitem__((3, 1), np.nan),
            "0.attn.q_proj.lora_A has values that are not finite",
        ),
        (lambda t: t[Q_B].__setitem__((0, 0), -np.inf), "0.attn.q_proj.lora_B has values that are not finite"),
    ],
)
def test_wrong_tensors(folder: Path, base: Base, change: Callable[[Tensors], object], reason: str) -> None:
    tensors = read(folder)
    change(tensors)
    write(folder, tensors)
    assert refusal(folder, base) == f"adapter four: {reason}"


def test_ranks_of_the_manifest(folder: Path, base: Base) -> None:
    ranks = read_adapter_manifest(folder).ranks
    change_manifest(folder, ranks=ranks | {"0.attn.q_proj": 5})
    assert refusal(folder, base) == (
        "adapter four: 0.attn.q_proj.lora_A has the shape [64, 4], base and adapter.json need [64, 5]"
    )
    change_manifest(folder, ranks={name: rank for name, rank in ranks.items() if name != "1.mlp.up_proj"})
    assert refusal(folder, base) == "adapter four: 1.mlp.up_proj is in its file but not in adapter.json"


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_bfloat16_values_that_are_not_finite(folder: Path, base: Base, bits: int) -> None:
    base = msgspec.structs.replace(base, dtype="bfloat16", projections={"0.attn.q_proj": (2, 2)})
    values = {
        Q_A: OrtValue.ortvalue_from_numpy_with_onnx_type(np.full((2, 1), 0x3F80, np.uint16), 16),
        Q_B: OrtValue.ortvalue_from_numpy_with_onnx_type(np.array([[0x7F7F, bits]], np.uint16), 16),
    }
    adapter = AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(values)
    file = folder / "four.onnx_adapter"
    adapter.export_adapter(str(file))
    change_manifest(folder, sha256=sha256(file), dtype="bfloat16", ranks={"0.attn.q_proj": 1})
    assert refusal(folder, base) == "adapter four: 0.attn.q_proj.lora_B has values that are not finite"


@pytest.mark.slow
def test_a_large_adapter_is_checked_quickly(tmp_path: Path, base: Base) -> None:
    """About 100 MB, the size of a rank-16 adapter on all linear layers of a model of 3.8B parameters."""
    projections = {f"{layer}.mlp.{module}": (3072, 8192) for layer in range(32) for module in ("gate_proj", "up_proj")}
    large = msgspec.structs.replace(base, projections=projections)
    folder = tmp_path / "four"
    folder.mkdir()
    manifest = AdapterManifest(
        format=1,
        file="four.onnx_adapter",
        sha256="0" * 64,
        base_fingerprint=base.fingerprint,
        dtype="float32",
        ranks=dict.fromkeys(projections, 32),
        alphas=dict.fromkeys(projections, 32.0),
    )
    write_manifest(folder / "adapter.json", manifest)
    a, b = np.ones((3072, 32), np.float32), np.ones((32, 8192), np.float32)
    write(
        folder,
        {f"model.layers.{name}.lora_{side}.weight": v for name in projections for side, v in (("A", a), ("B", b))},
    )
    assert (folder / "four.onnx_adapter").stat().st_size > 90e6
    start = time.process_time()
    check_adapter(folder, large)
    assert time.process_time() - start < 5, "it took 0.2 s on an idle machine of two cores"

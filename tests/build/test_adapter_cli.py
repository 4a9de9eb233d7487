"""`loraplex adapter` as a user types it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from loraplex.build.adapter import convert, write_adapter
from loraplex.build.adapter_check import compare_with_peft
from loraplex.build.errors import VerificationFailed
from loraplex.build.olive_adapter import read_olive
from loraplex.build.peft_shapes import target_of_bundle
from loraplex.server.bundle import Bundle, read_adapter_manifest
from loraplex.server.engine.adapter_file import check_adapter
from tests.build.conftest import Built
from tests.build.generation import Runner, expected_tokens
from tests.checkpoints import make_adapter, make_checkpoint, quiet
from tests.cli import Cli

PROMPT = [0] + [8 + 7 * position % 150 for position in range(20)]


@pytest.fixture
def bundle(built: Built, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return Path(shutil.copytree(built.bundle.folder, tmp_path / "bundle"))


def state(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".bundle.lock"
    }


def test_a_later_adapter_is_added_and_answers_as_peft(cli: Cli, built: Built, bundle: Path, tmp_path: Path) -> None:
    before = state(bundle)
    later = make_adapter(built.checkpoint, tmp_path / "later", rank=5, alpha=10, seed=9)
    done = cli("adapter", "convert", bundle, later, "--name", "later", "--add", "--description", "came later")
    assert (done.status, done.err) == (0, "")
    assert "later, 14 projections, rank 5, float32" in done.out
    opened = Bundle.open(bundle)
    assert list(opened.manifest.adapters) == ["four", "eight", "three", "partial", "later"]
    manifest = check_adapter(opened.adapter("later"), opened.manifest.base)
    assert (manifest.description, manifest.source) == ("came later", "later")
    after = state(bundle)
    assert {name for name in after if after[name] != before.get(name)} == {
        "bundle.json",
        "adapters/later/adapter.json",
        "adapters/later/later.onnx_adapter",
    }
    runner = Runner(opened.variant("generator"), {"later": opened.adapter("later") / "later.onnx_adapter"})
    assert runner.tokens(PROMPT, 16, "later") == expected_tokens(built.checkpoint, later, PROMPT, 16)


def test_a_taken_name_needs_replace(cli: Cli, built: Built, bundle: Path) -> None:
    before = state(bundle)
    refused = cli("adapter", "convert", bundle, built.peft["eight"], "--name", "four", "--add")
    assert refused.status == 2
    assert refused.err == f"loraplex: adapter four: {bundle} has one of this name: take another, or --replace it\n"
    assert state(bundle) == before
    assert cli("adapter", "convert", bundle, built.peft["eight"], "--name", "four", "--add", "--replace").status == 0
    opened = Bundle.open(bundle)
    assert set(check_adapter(opened.adapter("four"), opened.manifest.base).ranks.values()) == {8}
    assert len(opened.manifest.adapters) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "tiny", "--add"], "is the name of the base"),
        (["--name", "../up", "--add"], "cannot be an adapter's name"),
        (["--name", "x", "--add", "--output", "x"], "give one of them"),
        (["--name", "x", "--add", "--scale", "folded"], "are for .onnx_adapter files"),
        (["--name", "x", "--add", "--chat-template", "missing.jinja"], "there is no chat template missing.jinja"),
        ([], "--name"),
    ],
)
def test_bad_arguments(cli: Cli, built: Built, bundle: Path, arguments: list[str], words: str) -> None:
    before = state(bundle)
    done = cli("adapter", "convert", bundle, built.peft["four"], *arguments)
    assert done.status == 2
    assert words in done.err + done.out
    assert state(bundle) == before


def test_an_adapter_of_another_base_leaves_nothing(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    before = state(bundle)
    wide = make_checkpoint(tmp_path / "wide", "llama", hidden_size=96)
    peft = make_adapter(wide, tmp_path / "peft", targets=["q_proj"])
    done = cli("adapter", "convert", bundle, peft, "--name", "wide", "--add")
    assert done.status == 2
    assert done.err == (
        "loraplex: adapter wide: model.layers.0.self_attn.q_proj maps 96 to 96 features, "
        "0.attn.q_proj of tiny maps 64 to 64 (and 1 more like it)\n"
    )
    assert state(bundle) == before
    assert not [path for path in (bundle / "adapters").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_adapters_added_at_once_are_all_there(built: Built, bundle: Path) -> None:
    """By processes, as scripts would."""

    def add(name: str) -> int:
        command = [sys.executable, "-m", "loraplex.server", "adapter", "convert", str(bundle), str(built.peft["four"])]
        return subprocess.run([*command, "--name", name, "--add"], stdout=subprocess.DEVNULL, check=False).returncode

    names = [f"each-{number}" for number in range(4)]
    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(add, names)) == [0] * len(names)
    opened = Bundle.open(bundle)
    assert set(names) <= opened.manifest.adapters.keys()
    for name in names:
        check_adapter(opened.adapter(name), opened.manifest.base)


def test_a_folder_of_its_own(cli: Cli, built: Built, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "mine"
    convert = ("adapter", "convert", bundle, built.peft["four"], "--name", "mine", "--output", output)
    assert cli(*convert).status == 0
    assert read_adapter_manifest(output).file == "mine.onnx_adapter"
    assert "--replace" in cli(*convert).err
    assert cli(*convert, "--replace").status == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    refused = cli("adapter", "convert", bundle, built.peft["four"], "--name", "mine", "-o", tmp_path / "other")
    assert refused.status == 2
    assert "exists and is no adapter" in refused.err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    # What is in our form already is copied, under the name that it gets.
    assert cli("adapter", "convert", bundle, output, "--name", "copy", "--add").status == 0
    opened = Bundle.open(bundle)
    assert check_adapter(opened.adapter("copy"), opened.manifest.base).file == "copy.onnx_adapter"


def test_a_file_has_to_be_explained(cli: Cli, built: Built, bundle: Path) -> None:
    file = built.bundle.adapter("four") / "four.onnx_adapter"
    silent = cli("adapter", "convert", bundle, file, "--name", "again", "--add")
    assert silent.status == 2
    assert "give --scale folded, as Olive writes them, or --scale unfolded with --config" in silent.err
    config = built.peft["four"] / "adapter_config.json"
    done = cli("adapter", "convert", bundle, file, "--name", "again", "--add", "--scale", "folded", "--config", config)
    assert done.status == 0
    original, again = (read_adapter_manifest(bundle / "adapters" / name) for name in ("four", "again"))
    assert (again.sha256, again.ranks, again.alphas) == (original.sha256, original.ranks, original.alphas)


def test_inspecting_a_peft_folder(cli: Cli, built: Built) -> None:
    done = cli("adapter", "inspect", built.peft["partial"], "--bundle", built.bundle.folder)
    assert done.status == 0
    assert f"{built.bundle.folder}: fits" in done.out
    rows = {tuple(line.split()) for line in done.out.splitlines()}
    assert ("v_proj", "0", "64", "32", "2", "3", "1.5") in rows
    assert ("o_proj", "0-1", "64", "64", "4", "12", "3") in rows
    report = json.loads(cli("adapter", "inspect", built.peft["partial"], "--json").out)
    assert report["modules"]["model.layers.1.mlp.down_proj"] == {
        **{"rank": 7, "in_features": 128, "out_features": 64, "alpha": 8.0},
        "scale": pytest.approx(8 / 7),
    }
    assert (report["dtype"], report["base"], report["fits"]) == ("float32", str(built.checkpoint), None)


def test_inspecting_what_is_converted(cli: Cli, built: Built) -> None:
    folder = built.bundle.adapter("three")
    report = json.loads(cli("adapter", "inspect", folder, "--bundle", built.bundle.folder, "--json").out)
    manifest = read_adapter_manifest(folder)
    assert (report["sha256"], report["fits"]) == (manifest.sha256, True)
    assert report["base"] == built.bundle.manifest.base.fingerprint
    assert {module["rank"] for module in report["modules"].values()} == {3}
    file = cli("adapter", "inspect", folder / "three.onnx_adapter")
    assert (file.status, "rank" in file.out) == (0, True)


def test_inspecting_what_does_not_fit(cli: Cli, built: Built, tmp_path: Path) -> None:
    phi = make_adapter(make_checkpoint(tmp_path / "phi", "phi3"), tmp_path / "peft", use_dora=True)
    done = cli("adapter", "inspect", phi, "--bundle", built.bundle.folder)
    assert done.status == 1
    for words in ("does not fit", "DoRA", "LlamaForCausalLM has q_proj"):
        assert words in done.out
    nothing = cli("adapter", "inspect", tmp_path)
    assert nothing.status == 2
    assert "has neither adapter.json nor adapter_config.json" in nothing.err
    assert cli("adapter", "inspect", tmp_path / "missing").status == 2


def test_verifying_without_running(cli: Cli, built: Built, bundle: Path) -> None:
    done = cli("adapter", "verify", bundle, "partial", "--peft", built.peft["partial"])
    assert done.status == 0
    assert done.out.splitlines()[1:] == [f"ok  weights of {built.peft['partial']}: the same"]
    wrong = cli("adapter", "verify", bundle, "four", "--peft", built.peft["eight"])
    assert wrong.status == 1
    assert "has rank 4 in the adapter and 8 in" in wrong.err
    file = bundle / "adapters" / "eight" / "eight.onnx_adapter"
    file.write_bytes(file.read_bytes()[:-2] + b"xx")
    damaged = cli("adapter", "verify", bundle, "eight")
    assert damaged.status == 1
    assert "eight.onnx_adapter is damaged or was replaced" in damaged.err
    missing = cli("adapter", "verify", bundle, "nine")
    assert missing.status == 2
    assert "has no adapter nine (it has: four, eight, three, partial)" in missing.err
    assert cli("adapter", "verify", bundle, "four", "--checkpoint", built.checkpoint).status == 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_of_another_training_are_told(built: Built, tmp_path: Path, dtype: str) -> None:
    base = msgspec.structs.replace(built.bundle.manifest.base, dtype=dtype)
    other = make_adapter(built.checkpoint, tmp_path / "other", rank=4, alpha=8, seed=77)
    manifest = convert(built.peft["four"], base, tmp_path / "four", name="four")
    assert compare_with_peft(tmp_path / "four", manifest, base, built.peft["four"]) == 0
    with pytest.raises(VerificationFailed, match=r"differs from .* of its largest value"):
        compare_with_peft(tmp_path / "four", manifest, base, other)
    # A file written by someone else, with its values a rounding away.
    step = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    modules = read_olive(tmp_path / "four" / "four.onnx_adapter", target_of_bundle(base), name="four", scale="folded")
    nudged = {name: dataclasses.replace(module, a=module.a * (1 + step)) for name, module in modules.items()}
    written = write_adapter(nudged, base, tmp_path / "nudged", name="four")
    assert written.sha256 != manifest.sha256
    assert 0 < compare_with_peft(tmp_path / "nudged", written, base, built.peft["four"]) < 0.04


@pytest.mark.slow
def test_verifying_answers(cli: Cli, built: Built, bundle: Path, tmp_path: Path) -> None:
    before = state(bundle)
    verify = ("adapter", "verify", bundle, "partial", "--peft", built.peft["partial"], "--checkpoint")
    with quiet():
        done = cli(*verify, built.checkpoint)
    assert done.status == 0, done.err
    assert "ok  exact: 96 of 96 greedy tokens" in done.out
    other = make_checkpoint(tmp_path / "other", "llama", seed=5)
    refused = cli(*verify, other)
    assert refused.status == 2
    assert "is not what tiny was made from: its fingerprint is" in refused.err
    assert state(bundle) == before
    assert not [path for path in bundle.parent.iterdir() if path.name.startswith(".")]


def test_an_adapter_that_cannot_be_written(built: Built, bundle: Path, tmp_path: Path) -> None:
    before = state(bundle)
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from loraplex.server.cli import main; main()"
    )
    convert = ["adapter", "convert", bundle, built.peft["three"], "--name", "later"]
    for arguments in (["--add"], ["--output", tmp_path / "later"]):
        line = [sys.executable, "-c", code, *map(str, (*convert, *arguments))]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1
        assert "later.onnx_adapter cannot be written: " in done.stderr
    assert not (tmp_path / "later").exists()
    assert state(bundle) == before


def test_a_server_install_is_enough(built: Built, bundle: Path) -> None:
    """Nothing of the extra `build` is imported, whatever is installed."""
    absent = ("torch", "peft", "transformers", "safetensors", "onnx_ir", "olive")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\nfrom loraplex.server.cli import main; main()"
    for command in (
        ("convert", bundle, built.peft["three"], "--name", "later", "--add"),
        ("inspect", bundle / "adapters" / "later", "--bundle", bundle),
        ("verify", bundle, "later", "--peft", built.peft["three"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "adapter", *map(str, command)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")

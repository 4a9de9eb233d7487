"""Proves that a bundle computes what its checkpoint and its adapters do, or says where it does not.

1. Weights: every linear layer of every variant against the checkpoint, every adapter against what PEFT adds.
2. Answers: logits and greedy tokens of the base and of every adapter against PyTorch in float32 on the same weights,
   those of a quantized layer being read back from the graph; first with float32 arithmetic in the graph, which has to
   agree, then as it is served. A graph in float16 is only compared as it is served.
3. Perplexity on held-out text: of the float checkpoint, of the bundle's weights, of rounding to nearest as a
   comparison, and as served.
"""

from __future__ import annotations

import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from loraplex.build.checkpoint import locate
from loraplex.build.comparison import Comparison, float_perplexities
from loraplex.build.errors import VerificationFailed
from loraplex.build.findings import Agreement, Verification, WeightCheck, write_findings
from loraplex.build.held_out import Effort as Effort
from loraplex.build.held_out import HeldOut as HeldOut
from loraplex.build.held_out import Texts
from loraplex.build.record import StepRecord, folder_bytes
from loraplex.build.report import write_report
from loraplex.build.twin import Checkpoint
from loraplex.build.weight_check import check_weights
from loraplex.server.bundle import Bundle


def verify_bundle(
    bundle: Bundle,
    checkpoint: Path | str,
    peft: Mapping[str, Path],
    *,
    held_out: HeldOut | None = None,
    float_checkpoint: Path | str | None = None,
    steps: Sequence[StepRecord] = (),
    effort: Effort | None = None,
    failed: Path | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> Verification:
    """Verify a bundle, and write verification.json and verification.html into it.

    `checkpoint` is what the base was exported from, `peft` holds the folders its adapters were converted from, by name.
    `float_checkpoint` is what an AWQ checkpoint was made from; it adds rows to the perplexities. `steps` are the
    costs of the build so far; verification adds its own. `progress` is told what is done next. Models are held in
    memory as float32, one at a time.

    Raises VerificationFailed where a check does not pass; the two files then go into the folder `failed` if it is
    given. Raises ExportFailed where a graph cannot be read or loaded.
    """
    start = time.perf_counter()
    folder, effort = locate(checkpoint), effort or Effort()
    texts = Texts(folder, held_out or HeldOut(), effort, bundle.manifest.base, list(bundle.manifest.adapters))
    weights = list(_check_base(bundle, folder, progress))
    with tempfile.TemporaryDirectory(prefix=".verification.", dir=bundle.folder.parent) as scratch:
        comparison = Comparison(bundle, folder, peft, texts, effort, Path(scratch), progress)
        weights += comparison.check_adapters()
        agreements, perplexities = comparison.compare()
        del comparison  # and its model, before there is another
    rounded = float_checkpoint is not None or bundle.manifest.base.quantization.method not in ("none", "awq")
    if rounded and any(texts.sequences.values()):
        progress("perplexity of the float checkpoint")
        perplexities += float_perplexities(bundle, locate(float_checkpoint or folder), peft, texts)
    checks: list[WeightCheck | Agreement] = [*weights, *agreements]
    failures = [_describe(check) for check in checks if not check.passed]
    own = StepRecord(
        name="verify",
        seconds=time.perf_counter() - start,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peak_device_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        output_bytes=folder_bytes(bundle.folder),
    )
    verification = Verification(
        format=1,
        base=bundle.manifest.base,
        passed=not failures,
        failures=failures,
        weights=weights,
        agreements=agreements,
        perplexities=perplexities,
        steps=[*steps, own],
        machine=_machine(),
    )
    target = bundle.folder if not failures else failed
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        write_findings(target, verification)
        write_report(target, verification)
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise VerificationFailed(f"the bundle does not compute what it was made from: {failures[0]}{more}")
    return verification


def _describe(check: WeightCheck | Agreement) -> str:
    if isinstance(check, WeightCheck):
        return f"{check.part}: {check.worst} is off by {check.difference:.3g} {check.unit} (limit {check.limit:g})"
    wrong = check.tokens - check.same - check.ties
    return (
        f"{check.model}, lane {check.lane}: logits off by {check.difference:.3g} (limit {check.limit:.3g}), "
        f"{wrong} of {check.tokens} greedy tokens wrong"
    )


def _check_base(bundle: Bundle, folder: Path, progress: Callable[[str], object]) -> Iterator[WeightCheck]:
    base, checkpoint = bundle.manifest.base, Checkpoint(folder)
    for variant in bundle.manifest.variants:
        progress(f"weights of the {variant} variant")
        yield from check_weights(bundle.variant(variant), checkpoint, base.quantization, base.dtype)


def _machine() -> dict[str, str]:
    from loraplex.server.engine import gpu

    found = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["graphs ran on"] = "CPU" if gpu.missing() else "CUDA"
    for package in ("onnxruntime-genai", "onnxruntime-genai-cuda", "torch", "transformers", "peft", "olive-ai"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

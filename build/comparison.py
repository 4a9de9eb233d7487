"""A bundle's answers and perplexities, beside those of the float32 model with the bundle's own weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from loraplex.build.findings import Agreement, Perplexity, WeightCheck
from loraplex.build.held_out import Effort, Texts
from loraplex.build.probe import PagedProbe, Probe, make_probe
from loraplex.build.reference import Logits, Reference, log_softmax, perplexity, round_to_nearest
from loraplex.build.twin import load_graph_twin, load_twin
from loraplex.build.weight_check import check_adapter_weights
from loraplex.server.bundle import Bundle, read_adapter_manifest

_FLOAT32 = 5e-5
"""Of the largest logit: by how much float32 arithmetic may differ between two libraries."""
_FLOAT16 = 2e-2
"""The same for float16, which keeps eleven bits, through all layers of a model."""
_BYTES_TO_A_THREAD = 50_000_000


class Comparison:
    """A bundle beside the float32 model with the bundle's own weights."""

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        peft: Mapping[str, Path],
        texts: Texts,
        effort: Effort,
        scratch: Path,
        progress: Callable[[str], object],
    ) -> None:
        self._bundle = bundle
        self._texts = texts
        self._effort = effort
        self._scratch = scratch
        self._progress = progress
        self._base = bundle.manifest.base
        self._files = {
            name: bundle.adapter(name) / read_adapter_manifest(bundle.adapter(name)).file
            for name in bundle.manifest.adapters
        }
        progress("the float32 model of the bundle's weights")
        twin = load_graph_twin(folder, bundle.variant("generator"))
        self._threads = choose_threads(bundle)
        self._reference = Reference(twin, {name: peft[name] for name in self._files}, self._threads)

    def check_adapters(self) -> list[WeightCheck]:
        return [
            check_adapter_weights(name, file, self._reference.model, self._base.dtype)
            for name, file in self._files.items()
        ]

    def compare(self) -> tuple[list[Agreement], list[Perplexity]]:
        variant = self._bundle.variant("generator")
        rounding = self._base.dtype == "float32" and self._base.quantization.method != "none"
        agreements = []
        if self._base.dtype == "float32":
            probe = Probe(make_probe(variant, self._scratch / "exact", exact=True), self._files, self._threads)
            agreements += [self._agreement(probe, name, "exact", _FLOAT32) for name in (None, *self._files)]
            del probe
        served = Probe(make_probe(variant, self._scratch / "served", exact=False), self._files, self._threads)
        limit = None if rounding else _FLOAT32 if self._base.dtype == "float32" else _FLOAT16
        if rounding or self._base.dtype != "float32":
            agreements += [self._agreement(served, name, "generator", limit) for name in (None, *self._files)]
        perplexities = list(self._perplexities(served))
        del served  # makes room on the GPU
        return agreements + self._paged_agreements(), perplexities

    def _paged_agreements(self) -> list[Agreement]:
        """Greedy tokens of the paged variant with its adapters linked, where there is a GPU to run it."""
        from loraplex.server.engine import gpu

        if "paged" not in self._bundle.manifest.variants or gpu.missing():
            return []
        paged = PagedProbe(self._bundle.variant("paged"), self._files, self._scratch / "linked")
        return [self._agreement(paged, name, "paged", _FLOAT16) for name in (None, *self._files)]

    def _agreement(
        self, probe: Probe | PagedProbe, adapter: str | None, lane: str, relative: float | None
    ) -> Agreement:
        """`relative` is the limit of differences, of the largest logit."""
        model = adapter or self._base.name
        self._progress(f"answers of {model}, {lane}")
        positions = 0
        difference = divergence = largest = 0.0
        gaps: list[float] = []
        for prompt in self._texts.prompts(adapter):
            answer = probe.generate(prompt, adapter, self._effort.tokens)
            sequence = [*prompt, *answer]
            expected = self._reference.logits(sequence, adapter)
            largest = max(largest, float(np.abs(expected).max()))
            gaps += _gaps(expected, prompt, answer)
            if isinstance(probe, PagedProbe):
                continue
            found = probe.logits(sequence, adapter)
            if not np.isfinite(found).all():
                difference = float("inf")
                break
            difference = max(difference, float(np.abs(found - expected).max()))
            scores = log_softmax(expected)
            divergence += float((np.exp(scores) * (scores - log_softmax(found))).sum())
            positions += len(sequence)
        limit = None if relative is None else relative * max(10.0, largest)
        return Agreement(
            model=model,
            lane=lane,
            tokens=len(gaps),
            same=gaps.count(0.0),
            ties=0 if limit is None else sum(0 < gap <= 2 * limit for gap in gaps),
            positions=positions,
            difference=difference,
            divergence=divergence / max(1, positions),
            limit=limit,
        )

    def _perplexities(self, served: Probe) -> Iterator[Perplexity]:
        method = self._base.quantization.method
        for text, sequences in self._texts.sequences.items():
            if not sequences:
                continue
            for adapter in dict.fromkeys((None, text)):
                model = adapter or self._base.name
                self._progress(f"perplexity of {model} on the text of {text or 'the base'}")
                sources = {"float" if method == "none" else method: self._reference, "as served": served}
                for weights, source in sources.items():
                    value, tokens = perplexity(sequences, lambda ids, s=source, a=adapter: s.logits(ids, a))
                    yield Perplexity(text or "base", model, weights, value, tokens)


def _gaps(expected: Logits, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """By how much each token of an answer lies below the one that PyTorch's logits put first."""
    chosen = expected[len(prompt) - 1 : -1]
    gaps: list[float] = (chosen.max(-1) - np.take_along_axis(chosen, np.array(answer)[:, None], 1)[:, 0]).tolist()
    return gaps


def float_perplexities(bundle: Bundle, folder: Path, peft: Mapping[str, Path], texts: Texts) -> list[Perplexity]:
    """Rows for the float checkpoint, and for rounding to nearest in the bundle's group size unless that is the bundle's
    own method."""
    found = []
    base = bundle.manifest.base
    kinds = ["float"] if base.quantization.method == "rtn" else ["float", "rtn"]
    for kind in kinds:
        model = load_twin(folder)
        if kind == "rtn":
            round_to_nearest(model, base.quantization.group_size or 32)
        reference = Reference(model, {name: peft[name] for name in bundle.manifest.adapters}, choose_threads(bundle))
        for text, sequences in texts.sequences.items():
            for adapter in dict.fromkeys((None, text)) if sequences else ():
                value, tokens = perplexity(sequences, lambda ids, a=adapter, r=reference: r.logits(ids, a))
                found.append(Perplexity(text or "base", adapter or base.name, kind, value, tokens))
        del model, reference
    return found


def choose_threads(bundle: Bundle) -> int:
    """Threads for a model on a CPU: those of a small one only wait for each other, and for what else the CPU does."""
    size = bundle.manifest.weights.bytes if bundle.manifest.weights else 0
    return max(1, min(os.cpu_count() or 1, size // _BYTES_TO_A_THREAD))

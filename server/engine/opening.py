"""Which lane a server runs, and how it is set up on the machine at hand."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from loraplex.server.bundle import read_adapter_manifest
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.expansion import expand, expanded_bytes
from loraplex.server.engine.folder_cache import Held
from loraplex.server.engine.fused import largest_ranks
from loraplex.server.engine.generator import GeneratorLane, choose_device
from loraplex.server.engine.gpu import free_bytes
from loraplex.server.engine.lane import Lane
from loraplex.server.engine.linear_operator import find_linear_operator, user_cache
from loraplex.server.engine.linker import MODEL
from loraplex.server.engine.lora_operator import find_operator
from loraplex.server.engine.messages import Start
from loraplex.server.engine.routed import RoutedLane
from loraplex.server.engine.routed_engine import EngineOptions
from loraplex.server.engine.row_graph import POSITIONS, row_graph
from loraplex.server.errors import AdapterInvalid, BundleInvalid

logger = logging.getLogger("loraplex.engine")

RUNNING = {("routed", "cuda"): 64}
"""Sequences at the same time where the operator does not say, by lane and device; 16 for those that are not here."""
MANY = 8
"""Sequences from which on float16 weights are faster than int4: a step of few waits for weights to be read."""


def open_lane(start: Start) -> Lane:
    """Load the base into the lane that was asked for. Raises BundleInvalid."""
    folder, device, engine = Path(start.folder), choose_device(start.device), start.engine
    if engine == "auto":
        engine = "batched" if device == "cpu" else "routed" if start.routed.paged else "generator"
    if engine == "batched" and device != "cpu":
        raise BundleInvalid("engine batched runs on the CPU: add --device cpu, or leave the engine to auto")
    if engine == "routed" and device == "cuda" and start.routed.paged is None:
        raise BundleInvalid("engine routed needs the bundle's paged variant: build it with --device cuda")
    if engine == "batched":
        return _open_batched(start)
    if engine == "routed":
        return _open_routed(start, device)
    return GeneratorLane(
        folder,
        device=start.device,
        threads=start.threads,
        prefill_chunk=start.prefill_chunk,
        operator=_find_linear_operator,
    )


def max_running(start: Start, lane: Lane) -> int:
    """Sequences that should run at the same time."""
    return start.max_running or RUNNING.get((lane.name, lane.device), 16)


def _open_batched(start: Start) -> BatchedLane:
    folder = Path(start.folder)
    return BatchedLane(
        folder,
        threads=start.threads,
        prefill_chunk=start.prefill_chunk,
        kv_bytes=start.kv_bytes,
        operator=_find_linear_operator,
    )


def _find_linear_operator() -> Path | None:
    return find_linear_operator(user_cache())


def _open_routed(start: Start, device: str) -> RoutedLane:
    running = start.max_running or RUNNING.get(("routed", device), 16)
    options = EngineOptions(
        max_batch_size=running,
        kv_bytes=start.kv_bytes,
        prefix_cache=start.routed.prefix_cache,
        cuda_graphs=start.routed.cuda_graphs,
    )
    cache = _cache_folder(start)
    if device == "cpu":
        return RoutedLane(
            Path(start.folder),
            device=device,
            threads=start.threads,
            cache=cache / "linked",
            options=options,
            max_linked=start.routed.max_linked or running,
            fallback=lambda: _open_batched(start),
            fallback_unsupported=_unsupported_beside(Path(start.folder)),
        )
    operator, ranks = find_operator(cache / "operator"), _ranks(start)
    folder = Path(start.routed.paged or start.folder)
    lane = RoutedLane(
        folder,
        device=device,
        threads=start.threads,
        cache=cache / "linked",
        options=options,
        max_linked=start.routed.max_linked or _slots(start, ranks, running),
        operator=operator,
        ranks=ranks,
        expansion=(lambda: _expand(folder, cache)) if _expands(start, folder, running) else None,
        # Every token of the generator lane is a step that the others wait for: not worth it where no adapter is cold.
        fallback=None if operator else lambda: _open_beside(start),
        fallback_unsupported=GeneratorLane.unsupported,
    )
    if operator:  # without it the first adapters bring another engine
        lane.capture_graphs()
    return lane


def _unsupported_beside(folder: Path) -> frozenset[str]:
    """What the batched lane over this base cannot honour, which is to be known before it is first needed."""
    graph = row_graph(folder / MODEL).graph
    (logits,) = (value for value in graph.output if value.name == "logits")
    last_only = logits.type.tensor_type.shape.dim[1].dim_value == 1
    gathers = any(value.name == POSITIONS for value in graph.input)
    return frozenset({"prompt_logprobs"}) if last_only and not gathers else frozenset()


def _open_beside(start: Start) -> GeneratorLane | None:
    """The generator lane on a GPU where another lane runs; None where it has no memory. Raises BundleInvalid."""
    folder = Path(start.folder)
    needed = sum(file.stat().st_size for file in folder.iterdir()) + 2**30
    if (free := free_bytes()) is not None and free < needed:
        logger.warning("no memory for the generator engine beside the routed one: %d MiB free", free // 2**20)
        return None
    return GeneratorLane(folder, device=start.device, threads=start.threads, prefill_chunk=start.prefill_chunk)


def _expands(start: Start, folder: Path, running: int) -> bool:
    """Whether the base's weights are expanded to float16. Raises BundleInvalid."""
    size, free = expanded_bytes(folder), free_bytes()
    if not size or start.routed.weights != "auto":
        return bool(size) and start.routed.weights == "float16"
    # Room for two engines while one takes over from the other, and as much again for keys and values.
    return running >= MANY and free is not None and 4 * size < free


def _expand(folder: Path, cache: Path) -> Held:
    """Raises BundleInvalid."""
    try:
        return expand(folder, cache / "float16")
    except OSError as error:
        problem = f"the weights cannot be expanded to float16 in {cache}: {error}; use --weights int4 or a --link-cache"
        raise BundleInvalid(problem) from None


def _ranks(start: Start) -> dict[str, int]:
    """Room for every adapter that will come; broken ones are refused later."""
    manifests = []
    for adapter in start.routed.adapters:
        try:
            manifests.append(read_adapter_manifest(Path(adapter)))
        except AdapterInvalid:
            continue
    return largest_ranks(manifest.ranks for manifest in manifests)


def _slots(start: Start, ranks: Mapping[str, int], running: int) -> int:
    """As many as sequences run, so that none waits for a slot, in at most an eighth of the GPU's free memory."""
    shapes = start.base.projections
    size = sum(2 * rank * sum(shapes[projection]) for projection, rank in ranks.items() if projection in shapes)
    free = free_bytes()
    return max(1, min(running, free // 8 // size)) if free and size else running


def _cache_folder(start: Start) -> Path:
    """Where linked models go: beside the base's weights, so that these can be hard-linked, if it can be written to."""
    if start.routed.cache:
        return Path(start.routed.cache)
    beside = Path(start.folder).parents[1] / ".cache"
    try:
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
    except OSError:
        pass
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraplex"
    logger.warning("%s cannot be written: the base's weights are copied to %s (see --link-cache)", beside.parent, user)
    return user

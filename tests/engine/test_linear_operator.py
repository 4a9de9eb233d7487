"""The compiled operator of 4-bit layers computes what onnxruntime's own operators compute, and each row by itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper, numpy_helper

from loraplex.server.engine.adapter_table import BLOCK_A, BLOCK_B, AdapterTable
from loraplex.server.engine.batched import BatchedLane
from loraplex.server.engine.linear_graph import ADAPTERS, use_linear
from loraplex.server.engine.linear_operator import INSTRUCTION_SETS, cpu_flags, find_linear_operator
from loraplex.server.engine.messages import Submit
from tests.engine.lanes import GREEDY, Model, ask, batched, run
from tests.engine.test_parity import PROMPTS, plans, play

Floats = npt.NDArray[np.float32]

PACKED = {"q": 96, "k": 16, "v": 48}
"""Projections of the layer and their widths."""
RANKS: list[dict[str, int]] = [{"q": 4, "v": 9}, {"q": 16, "k": 16, "v": 16}, {"k": 33}]


@pytest.fixture(scope="module", params=list(INSTRUCTION_SETS))
def operator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = frozenset(INSTRUCTION_SETS[request.param])
    found = find_linear_operator(tmp_path_factory.mktemp("operator"), needed) if needed <= cpu_flags() else None
    if found is None:
        pytest.skip(f"a C++ compiler and a CPU with {request.param} are needed")
    assert request.param in found.name
    return found


@pytest.fixture(scope="module")
def operator_lane(int4: Model, operator: Path) -> BatchedLane:
    """One lane for every example, so that each finds what the last left behind."""
    return batched(int4, operator=lambda: operator)


def layer(k: int, block: int, zero_points: bool) -> onnx.ModelProto:
    """One packed 4-bit layer with random weights and LoRA inputs, as `row_graph` leaves it."""
    random = np.random.default_rng(k + block)
    n = sum(PACKED.values())
    blocks = k // block
    constants = {
        "weights": random.integers(0, 256, (n, blocks, block // 2), np.uint8),
        "scales": random.uniform(0.01, 0.02, n * blocks).astype(np.float32),
    }
    if zero_points:
        constants["zeros"] = random.integers(0, 256, n * ((blocks + 1) // 2), np.uint8)
    nodes = [
        helper.make_node(
            "MatMulNBits",
            ["x", *constants],
            ["base"],
            domain="com.microsoft",
            K=k,
            N=n,
            bits=4,
            block_size=block,
            accuracy_level=0,
        )
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", k])]
    for name, width in PACKED.items():
        sides: dict[str, list[Any]] = {"A": ["adapters", k, f"r_{name}"], "B": ["adapters", f"r_{name}", width]}
        for side, shape in sides.items():
            inputs.append(helper.make_tensor_value_info(f"{name}.lora_{side}.weight", TensorProto.FLOAT, shape))
        nodes.append(helper.make_node("MatMul", ["x", f"{name}.lora_A.weight"], [f"{name}_down"]))
        nodes.append(helper.make_node("MatMul", [f"{name}_down", f"{name}.lora_B.weight"], [f"{name}_up"]))
    nodes.append(helper.make_node("Concat", [f"{name}_up" for name in PACKED], ["delta"], axis=-1))
    nodes.append(helper.make_node("Add", ["base", "delta"], ["sum"]))
    nodes.append(helper.make_node("Identity", ["sum"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "tokens", n])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def adapter(k: int, ranks: dict[str, int], seed: int, *, exact: bool = True) -> dict[str, Floats]:
    """Random weights; `exact` ones are whole numbers with a magnitude of 127 in every block, times a power of two."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, width in PACKED.items():
        rank = ranks.get(name, 0)
        a = random.integers(-127, 128, (k, rank)).astype(np.float64)
        b = random.integers(-127, 128, (rank, width)).astype(np.float64)
        a[::BLOCK_A], b[:, ::BLOCK_B] = 127, -127
        if not exact:
            a, b = random.standard_normal(a.shape) * 100, random.standard_normal(b.shape) * 100
        for side, value in (("A", a), ("B", b)):
            weights[f"{name}.lora_{side}.weight"] = (value / 1024).astype(np.float32)
    return weights


def table(weights: dict[str, Floats], layers: list[list[str]]) -> AdapterTable:
    (projections,) = layers
    pairs = [(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]) for name in projections]
    return AdapterTable([[pair if pair[0].size else None for pair in pairs]])


def handles(tables: Iterable[AdapterTable | None]) -> npt.NDArray[np.int64]:
    return np.array([0 if one is None else one.entries.ctypes.data for one in tables], np.int64)


def session(model: onnx.ModelProto, operator: Path | None, threads: int = 2) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if operator:
        options.register_custom_ops_library(str(operator))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def exact(shape: tuple[int, int, int]) -> Floats:
    """Whole numbers with a magnitude of 127 in every run of 32, which eight bits hold exactly."""
    x = np.random.default_rng(0).integers(-127, 128, shape).astype(np.float32)
    x[..., ::32] = 127
    return x


@pytest.mark.parametrize(("k", "block"), [(32, 32), (96, 32), (1088, 32), (640, 64), (1280, 128), (1024, 256)])
@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 1), (5, 1), (1, 71), (2, 6)])
def test_it_computes_what_the_stock_operators_compute(
    operator: Path, k: int, block: int, zero_points: bool, rows: int, tokens: int
) -> None:
    model = layer(k, block, zero_points)
    stock = session(model, None)
    projections = use_linear(model)
    assert projections == [list(PACKED)]
    assert [node.op_type for node in model.graph.node] == ["Linear", "Identity"]
    compiled = session(model, operator)
    x = exact((rows, tokens, k))
    adapters = [adapter(k, ranks, seed) for seed, ranks in enumerate(RANKS)]
    tables = [table(weights, projections) for weights in adapters]
    chosen = [index % 4 for index in range(rows)]  # the fourth is the base
    rows_tables = handles(None if index == 3 else tables[index] for index in chosen)
    (y,) = compiled.run(None, {"x": x, ADAPTERS: rows_tables})
    for row, index in enumerate(chosen):
        weights = adapter(k, {}, 0) if index == 3 else adapters[index]
        (expected,) = stock.run(None, {"x": x[row : row + 1], **{name: value[None] for name, value in weights.items()}})
        np.testing.assert_allclose(y[row : row + 1], expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_bit_for_bit_in_any_company(operator: Path, threads: int) -> None:
    model = layer(1088, 32, zero_points=True)
    projections = use_linear(model)
    compiled, alone = session(model, operator, threads), session(model, operator, 1)
    x = np.random.default_rng(1).standard_normal((9, 7, 1088), np.float32)
    tables = [table(adapter(1088, ranks, seed, exact=False), projections) for seed, ranks in enumerate(RANKS)]
    mixed = handles(tables[row % 3] if row % 4 else None for row in range(9))
    (together,) = compiled.run(None, {"x": x, ADAPTERS: mixed})
    for row in range(9):
        for token in range(7):
            one = {"x": x[row : row + 1, token : token + 1], ADAPTERS: mixed[row : row + 1]}
            (y,) = alone.run(None, one)
            np.testing.assert_array_equal(y[0, 0], together[row, token])


@pytest.mark.parametrize("rank", [1, 255, 256, 257, 520])
def test_adapters_of_any_rank(operator: Path, rank: int) -> None:
    model = layer(640, 64, zero_points=True)
    stock = session(model, None)
    projections = use_linear(model)
    weights = adapter(640, {"q": rank, "v": 3}, rank)
    x = exact((1, 9, 640))
    (expected,) = stock.run(None, {"x": x, **{name: value[None] for name, value in weights.items()}})
    kept = table(weights, projections)
    (y,) = session(model, operator).run(None, {"x": x, ADAPTERS: handles([kept])})
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [1e-30, 1e-5, 1.0, 1e30])
def test_adapters_of_any_size(operator: Path, size: float) -> None:
    model = layer(1088, 32, zero_points=False)
    stock = session(model, None)
    projections = use_linear(model)
    weights = adapter(1088, RANKS[0], 5)
    weights["q.lora_A.weight"] *= np.float32(size)
    kept = table(weights, projections)
    assert kept.entries[:, 4].tolist() == [8, 0, 16, 0]
    x = exact((1, 3, 1088))
    (expected,) = stock.run(None, {"x": x, **{name: value[None] for name, value in weights.items()}})
    (y,) = session(model, operator).run(None, {"x": x, ADAPTERS: handles([kept])})
    q = slice(0, PACKED["q"])
    for part in (q, slice(PACKED["q"], None)):
        scale = np.abs(expected[..., part]).max()
        np.testing.assert_allclose(y[..., part], expected[..., part], rtol=2e-4, atol=2e-4 * scale)


def test_an_adapter_that_is_not_finite_gives_nothing_finite(operator: Path) -> None:
    model = layer(1088, 32, zero_points=False)
    projections = use_linear(model)
    compiled = session(model, operator)
    for value in (np.nan, np.inf, -np.inf):
        for side in "AB":
            weights = adapter(1088, RANKS[1], 5)
            weights[f"k.lora_{side}.weight"][3, 5] = value
            kept = table(weights, projections)
            (y,) = compiled.run(None, {"x": exact((1, 1, 1088)), ADAPTERS: handles([kept])})
            k = slice(PACKED["q"], PACKED["q"] + PACKED["k"])
            assert not np.isfinite(y[..., k]).any()
            assert np.isfinite(y[..., : PACKED["q"]]).all()


@pytest.mark.parametrize("ranks", RANKS)
def test_eight_bits_are_close_to_float(operator: Path, ranks: dict[str, int]) -> None:
    model = layer(1088, 32, zero_points=True)
    stock = session(model, None)
    projections = use_linear(model)
    weights = adapter(1088, ranks, 1, exact=False)
    x = np.random.default_rng(2).standard_normal((1, 40, 1088), np.float32)
    (expected,) = stock.run(None, {"x": x, **{name: value[None] for name, value in weights.items()}})
    kept = table(weights, projections)
    (y,) = session(model, operator).run(None, {"x": x, ADAPTERS: handles([kept])})
    assert np.linalg.norm(y - expected) < 0.015 * np.linalg.norm(expected)


@pytest.mark.parametrize(("block", "width"), [(16, 16), (32, 8)])
def test_what_does_not_fit_stays_as_it_is(block: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKED, "k", width)
    model = layer(96, block, zero_points=True)
    before = model.SerializeToString()
    assert use_linear(model) == []
    assert model.SerializeToString() == before


def test_an_answer_does_not_depend_on_its_company_not_even_on_none(int4: Model, operator: Path) -> None:
    prompts = [[9, 10, 11], list(range(20, 60)), [9], list(range(30, 41))]
    requests = [
        Submit(index, name, prompt, 20, GREEDY)
        for index, (prompt, name) in enumerate((p, a) for p in prompts for a in (None, "four", "nine", "some"))
    ]
    lane = batched(int4, operator=lambda: operator)
    together = run(lane, requests)
    for request in requests:
        alone = run(batched(int4, operator=lambda: operator), [request])[request.sequence]
        assert alone.tokens == together[request.sequence].tokens
    assert len({tuple(together[index].tokens) for index in range(4)}) == 4


@given(plan=plans)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_joins_leaves_and_cancels_leave_every_answer_as_it_is(
    plan: list[tuple[str | None, int, int, int, int | None]], operator_lane: BatchedLane
) -> None:
    for (adapter, prompt, count, _, cancelled), answer in zip(plan, play(operator_lane, plan).values(), strict=True):
        expected = ask(operator_lane, PROMPTS[prompt], adapter, count)
        assert answer.error is None
        if cancelled is None:
            assert (answer.tokens, answer.finish) == (expected.tokens, expected.finish)
        else:
            assert answer.tokens == expected.tokens[: len(answer.tokens)]


def test_where_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = frozenset(INSTRUCTION_SETS["avx2"])
    assert find_linear_operator(tmp_path, frozenset()) is None
    assert find_linear_operator(tmp_path, good - {"fma"}) is None
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert find_linear_operator(tmp_path / "cache", good) is None
    compiler.unlink()
    assert find_linear_operator(tmp_path / "cache", good) is None
    assert "apt install g++" in caplog.text


def test_a_library_that_cannot_be_loaded_is_done_without(int4: Model, tmp_path: Path) -> None:
    library = tmp_path / "liblinear.so"
    library.write_bytes(b"no library")
    answers = run(batched(int4, operator=lambda: library), [Submit(0, "four", [9, 10], 8, GREEDY)])
    assert answers[0].tokens == run(batched(int4), [Submit(0, "four", [9, 10], 8, GREEDY)])[0].tokens

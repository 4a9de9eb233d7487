"""The compiled operator of 4-bit layers computes what onnxruntime's own operators compute, and each row by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from loraplex.server.engine.linear_graph import ADAPTERS, use_linear
from loraplex.server.engine.linear_operator import BETTER, NEEDED, find_linear_operator
from loraplex.server.engine.messages import Submit
from loraplex.server.engine.row_adapters import AdapterTable
from tests.engine.lanes import GREEDY, Model, batched, run

Floats = npt.NDArray[np.float32]

PACKED = {"q": 64, "k": 8, "v": 24}
"""Projections of the layer and their widths."""
RANKS: list[dict[str, int]] = [{"q": 4, "v": 9}, {"q": 16, "k": 16, "v": 16}, {"k": 33}]


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = find_linear_operator(tmp_path_factory.mktemp("operator"))
    if found is None:
        pytest.skip("a C++ compiler and a CPU with AVX2 and without VNNI are needed")
    return found


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


def adapter(k: int, ranks: dict[str, int], seed: int) -> dict[str, Floats]:
    random = np.random.default_rng(seed)
    weights = {}
    for name, width in PACKED.items():
        shapes = {"A": (k, ranks.get(name, 0)), "B": (ranks.get(name, 0), width)}
        for side, shape in shapes.items():
            weights[f"{name}.lora_{side}.weight"] = random.standard_normal(shape, np.float32) * np.float32(0.1)
    return weights


def table(weights: dict[str, Floats], projections: list[str]) -> npt.NDArray[np.int64]:
    sides = [[weights[f"{name}.lora_{side}.weight"] for side in "AB"] for name in projections]
    return np.array([[a.ctypes.data, b.ctypes.data, a.shape[1], 0] for a, b in sides], np.int64)


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
    assert projections == list(PACKED)
    assert [node.op_type for node in model.graph.node] == ["Linear", "Identity"]
    compiled = session(model, operator)
    x = exact((rows, tokens, k))
    adapters = [adapter(k, ranks, seed) for seed, ranks in enumerate(RANKS)]
    tables = [table(weights, projections) for weights in adapters]
    chosen = [index % 4 for index in range(rows)]  # the fourth is the base
    handles = np.array([0 if index == 3 else tables[index].ctypes.data for index in chosen], np.int64)
    (y,) = compiled.run(None, {"x": x, ADAPTERS: handles})
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
    kept = [adapter(1088, ranks, seed) for seed, ranks in enumerate(RANKS)]
    tables = [table(weights, projections) for weights in kept]
    handles = np.array([tables[row % 3].ctypes.data if row % 4 else 0 for row in range(9)], np.int64)
    (together,) = compiled.run(None, {"x": x, ADAPTERS: handles})
    for row in range(9):
        for token in range(7):
            one = {"x": x[row : row + 1, token : token + 1], ADAPTERS: handles[row : row + 1]}
            (y,) = alone.run(None, one)
            np.testing.assert_array_equal(y[0, 0], together[row, token])


@pytest.mark.parametrize(("size", "half"), [(1e-1, True), (1e-5, False), (1e30, False)])
def test_adapters_are_kept_in_float16_where_it_holds_them(operator: Path, size: float, half: bool) -> None:
    model = layer(1088, 32, zero_points=False)
    stock = session(model, None)
    projections = use_linear(model)
    weights = adapter(1088, RANKS[0], 5)
    weights["q.lora_A.weight"] *= np.float32(size / 0.1)
    pairs = [(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]) for name in projections]
    kept = AdapterTable([pair if pair[0].size else None for pair in pairs])
    assert kept.entries[:, 3].tolist() == [half, 0, 1]
    assert kept.entries[:, 2].tolist() == [8 if half else 4, 0, 16]
    x = exact((1, 3, 1088))
    (expected,) = stock.run(None, {"x": x, **{name: value[None] for name, value in weights.items()}})
    handles = np.array([kept.entries.ctypes.data], np.int64)
    (y,) = session(model, operator).run(None, {"x": x, ADAPTERS: handles})
    q = slice(0, PACKED["q"])
    for part in (q, slice(PACKED["q"], None)):
        scale = np.abs(expected[..., part]).max()
        np.testing.assert_allclose(y[..., part], expected[..., part], rtol=1e-3, atol=1e-3 * scale)


def test_eight_bit_activations_are_close_to_float(operator: Path) -> None:
    model = layer(1088, 32, zero_points=True)
    stock = session(model, None)
    projections = use_linear(model)
    weights = adapter(1088, RANKS[1], 1)
    x = np.random.default_rng(2).standard_normal((1, 40, 1088), np.float32)
    (expected,) = stock.run(None, {"x": x, **{name: value[None] for name, value in weights.items()}})
    handles = np.array([(kept := table(weights, projections)).ctypes.data], np.int64)
    (y,) = session(model, operator).run(None, {"x": x, ADAPTERS: handles})
    assert kept is not None
    assert np.linalg.norm(y - expected) < 0.01 * np.linalg.norm(expected)


def test_what_does_not_fit_stays_as_it_is() -> None:
    model = layer(96, 16, zero_points=True)
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


def test_where_it_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = frozenset(NEEDED)
    assert find_linear_operator(tmp_path, frozenset()) is None
    for flag in BETTER:
        assert find_linear_operator(tmp_path, good | {flag}) is None
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert find_linear_operator(tmp_path / "cache", good) is None
    compiler.unlink()
    assert find_linear_operator(tmp_path / "cache", good) is None


def test_a_library_that_cannot_be_loaded_is_done_without(int4: Model, tmp_path: Path) -> None:
    library = tmp_path / "liblinear.so"
    library.write_bytes(b"no library")
    answers = run(batched(int4, operator=lambda: library), [Submit(0, "four", [9, 10], 8, GREEDY)])
    assert answers[0].tokens == run(batched(int4), [Submit(0, "four", [9, 10], 8, GREEDY)])[0].tokens

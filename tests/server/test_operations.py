"""What operators see: models, metrics, versions, request ids."""

from __future__ import annotations

import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime_genai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.calls import call
from tests.server.conftest import TinyBundle
from tests.server.process import PATIENCE, ServerProcess, serving


def test_models_are_the_base_and_its_adapters(tiny_server: ServerProcess) -> None:
    models = {model.id: model for model in tiny_server.client.models.list()}
    assert set(models) == {"tiny", "small", "middle", "large", "partial"}
    assert tiny_server.client.models.retrieve("middle").id == "middle"
    status, card = tiny_server.get("/v1/models/middle")
    assert status == 200
    assert (card["parent"], card["object"], card["max_model_len"]) == ("tiny", "model", 256)
    assert tiny_server.get("/v1/models/tiny")[1]["parent"] is None


def test_requests_are_counted_by_adapter(tiny_server: ServerProcess) -> None:
    def counts() -> dict[str, float]:
        return {
            "requests": tiny_server.metric("loraplex_requests_total", adapter="partial", finish_reason="length"),
            "prompt": tiny_server.metric("loraplex_prompt_tokens_total", adapter="partial"),
            "generated": tiny_server.metric("loraplex_generation_tokens_total", adapter="partial"),
            "first": tiny_server.metric("loraplex_time_to_first_token_seconds_count", adapter="partial"),
            "between": tiny_server.metric("loraplex_inter_token_latency_seconds_count", adapter="partial"),
            "whole": tiny_server.metric("loraplex_e2e_request_latency_seconds_count", adapter="partial"),
        }

    before = counts()
    answer = tiny_server.client.completions.create(model="partial", prompt=[10, 11, 12], max_tokens=5, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    after = counts()
    grown = {name: after[name] - before[name] for name in after}
    assert grown == {"requests": 1, "prompt": 3, "generated": 5, "first": 1, "between": 4, "whole": 1}


def test_unknown_models_make_no_label(tiny_server: ServerProcess) -> None:
    tiny_server.get("/v1/models/intruder")
    assert "intruder" not in tiny_server.get("/metrics")[1]
    assert tiny_server.metric("loraplex_refused_requests_total", code="model_not_found") >= 1


def test_version_names_what_runs(tiny_server: ServerProcess) -> None:
    _, body = tiny_server.get("/version")
    assert body["packages"]["onnxruntime-genai"] == onnxruntime_genai.__version__
    assert body["device"] == "cpu"


@pytest.mark.parametrize(("given", "echoed"), [("abc-123", True), ("x" * 129, False), ("with space", False)])
def test_a_request_id_is_echoed_or_made(tiny_server: ServerProcess, given: str, echoed: bool) -> None:
    request = urllib.request.Request(tiny_server.url + "/health", headers={"x-request-id": given})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert (response.headers["x-request-id"] == given) is echoed
        assert response.headers["x-request-id"]


def test_a_gateway_finds_the_gauges_it_reads(tiny: TinyBundle, tmp_path: Path) -> None:
    """By vLLM's names and labels, as the endpoint picker of Kubernetes' inference extension parses them."""
    with serving(tiny.folder, tmp_path / "log", "--max-running", "2") as server, ThreadPoolExecutor() as pool:
        ask = server.client.completions.create
        server.engine().suspend()
        answers = [pool.submit(ask, model=name, prompt=[10], max_tokens=2) for name in ("small", "large")]
        server.wait_for("loraplex_requests_running", 2)
        answers += [pool.submit(ask, model=name, prompt=[10], max_tokens=2) for name in ("small", "partial", "tiny")]
        server.wait_for("loraplex_requests_waiting", 3)
        families = {each.name: each for each in text_string_to_metric_families(server.get("/metrics")[1])}
        server.engine().resume()
        server.wait_for("loraplex_requests_running", 0)
        engine, usage = server.engine(), 0.0
        while not usage:  # on a busy machine an answer may be over before its engine is held
            long = iter(ask(model="small", prompt=[10], max_tokens=200, stream=True, extra_body={"ignore_eos": True}))
            next(long)
            engine.suspend()
            usage = server.metric("vllm:kv_cache_usage_perc", model_name="tiny")
            engine.resume()
            list(long)
        for answer in answers:
            answer.result(PATIENCE)
        server.wait_for("loraplex_requests_running", 0)
        idle = {each.name: each for each in text_string_to_metric_families(server.get("/metrics")[1])}
    for name, value in (("vllm:num_requests_waiting", 3), ("vllm:num_requests_running", 2)):
        (sample,) = families[name].samples
        assert (sample.value, sample.labels) == (value, {"model_name": "tiny", "engine": "0"})
        assert families[name].type == "gauge"
        assert idle[name].samples[0].value == 0
    (size,) = families["vllm:cache_config_info"].samples
    reserved = 201 / int(size.labels["num_gpu_blocks"])
    assert size.labels["block_size"] == "1"
    assert usage == pytest.approx(reserved)
    assert idle["vllm:kv_cache_usage_perc"].samples[0].value == 0
    (info,) = families["vllm:lora_requests_info"].samples
    assert info.labels == {
        "running_lora_adapters": "large,small",
        "waiting_lora_adapters": "partial,small",
        "max_lora": "2",
    }
    assert abs(info.value - time.time()) < 600
    assert idle["vllm:lora_requests_info"].samples[0].labels["running_lora_adapters"] == ""


def test_an_adapter_that_goes_takes_its_series_along(tiny: TinyBundle, tmp_path: Path) -> None:
    with serving(tiny.folder, tmp_path / "log", "--dev") as server:
        for name in ("small", "large"):
            server.client.completions.create(model=name, prompt=[10], max_tokens=2)
        assert server.get("/metrics")[1].count('adapter="small"') > 10
        assert call(server, "DELETE", "/v1/adapters/small")[0] == 200
        text = server.get("/metrics")[1]
        assert 'adapter="small"' not in text
        assert text.count('adapter="large"') > 10


def test_requests_are_counted_by_lane_and_class_of_key(tiny_server: ServerProcess) -> None:
    labels = {"adapter": "small", "lane": "batched", "key_class": "none", "finish_reason": "length"}
    before = tiny_server.metric("loraplex_requests_total", **labels)
    tiny_server.client.completions.create(model="small", prompt=[10], max_tokens=1)
    assert tiny_server.metric("loraplex_requests_total", **labels) == before + 1

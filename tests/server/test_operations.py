"""What operators see: models, metrics, versions, request ids."""

from __future__ import annotations

import urllib.request

import onnxruntime_genai
import pytest

from tests.server.process import ServerProcess


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
    with urllib.request.urlopen(request, timeout=10) as response:
        assert (response.headers["x-request-id"] == given) is echoed
        assert response.headers["x-request-id"]

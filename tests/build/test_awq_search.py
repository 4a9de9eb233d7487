"""AWQ's search: the same as AutoAWQ's, and through the Olive passes a checkpoint that answers as the float one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from loraplex.build.passes.awq import AwqOnCpu, AwqOnCuda
from loraplex.build.reference import round_to_nearest
from loraplex.build.twin import load_twin
from tests.checkpoints import Family, make_checkpoint, quiet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GROUP = 32
PROMPT = [0] + [8 + 7 * position % 150 for position in range(60)]


@pytest.fixture(scope="module", params=["llama", "phi3", "gemma2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: Family = request.param
    folder = tmp_path_factory.mktemp(family) / "checkpoint"
    # AutoAWQ takes output features by 64.
    return make_checkpoint(folder, family, num_key_value_heads=4)


@pytest.fixture(scope="module")
def samples() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(8, 150, (64,), generator=generator).tolist() for _ in range(8)]


def quantized(checkpoint: Path, samples: list[list[int]], quantizer: type) -> dict[str, torch.Tensor]:
    from awq import AutoAWQForCausalLM

    with quiet():
        model = AutoAWQForCausalLM.from_pretrained(str(checkpoint), torch_dtype=torch.float32, safetensors=True)
        model.quantize(
            None,
            quant_config={"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "gemm"},
            calib_data=samples,
            max_calib_samples=len(samples),
            max_calib_seq_len=64,
            quantizer_cls=quantizer,
        )
    state: dict[str, torch.Tensor] = model.model.state_dict()
    return state


def test_the_search_is_autoawqs(checkpoint: Path, samples: list[list[int]]) -> None:
    from awq.quantize.quantizer import AwqQuantizer

    from loraplex.build.passes.awq_search import Search

    class Restoring(AwqQuantizer):  # type: ignore[misc]
        """AutoAWQ's, restoring weights from a copy as it does on a GPU, where `.cpu()` makes one."""

        def _compute_best_scale(self, x: Any, w: Any, means: Any, module: Any, *rest: Any) -> Any:
            state = module.state_dict
            module.state_dict = lambda *args, **options: {k: v.clone() for k, v in state(*args, **options).items()}
            try:
                return super()._compute_best_scale(x, w, means, module, *rest)
            finally:
                del module.state_dict

    expected, found = (quantized(checkpoint, samples, each) for each in (Restoring, Search))
    assert expected.keys() == found.keys()
    assert sum(name.endswith("qweight") for name in found) >= 2 * 4
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("checkpoint", ["llama"], indirect=True, scope="module")
@pytest.mark.parametrize("kind", [AwqOnCpu, AwqOnCuda])
def test_the_passes(kind: type, checkpoint: Path, samples: list[list[int]], tmp_path: Path) -> None:
    """Olive's own pass runs on a CPU too, but for a question at its start."""
    from olive.model import HfModelHandler
    from olive.passes.olive_pass import create_pass_from_dict

    rows = tmp_path / "rows"
    rows.mkdir()
    texts = [" ".join(f"w{token}" for token in sample) for sample in samples]
    (rows / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"q_group_size": GROUP, "calibration": str(rows), "samples": 6, "sequence_length": 64}
    with quiet(), patch("olive.passes.pytorch.autoawq.torch"):
        made = create_pass_from_dict(kind, options, disable_search=True)
        made.run(HfModelHandler(str(checkpoint)), str(tmp_path / "out"))
        ids = torch.tensor([PROMPT])
        with torch.inference_mode():
            wanted = load_twin(checkpoint)(ids).logits
            rounded = round_to_nearest(load_twin(checkpoint), GROUP)(ids).logits
            got = load_twin(next((tmp_path / "out").rglob("config.json")).parent)(ids).logits
    assert (got - wanted).norm() < (rounded - wanted).norm()

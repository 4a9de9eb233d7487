"""A valid recipe as steps, each an Olive workflow: what runs, on what, and which files it leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from loraplex.build.data import Rows
from loraplex.build.peft_folder import CONFIG, WEIGHTS
from loraplex.build.recipe import AdapterRecipe, resolve
from loraplex.build.specification import AdapterSpec, AdaptersSpec, BaseSpec, VerificationSpec
from loraplex.build.validation import Job, numbers

Workflow = dict[str, Any]

OLIVE_SAMPLES, OLIVE_LENGTH = 128, 512
"""Rows, and tokens to a row, that Olive's AutoAWQQuantizer looks at; it has no option for them."""
RECORD = "record.json"
SPEC = "spec.json"
_CHECKPOINT = ("config.json", "tokenizer.json")


@dataclass(frozen=True)
class Step:
    """One Olive workflow. Paths are absolute."""

    name: str
    folder: Path
    """Its workflow, log, record and output."""
    what: str
    """What it does, for people."""
    workflow: Workflow
    result: Path
    """What later steps read, once the step is finished."""
    files: tuple[str, ...]
    """Files in `result` without which it did not work, whatever Olive says."""
    spec: msgspec.Struct | None = None
    """Content of spec.json beside the workflow."""
    inputs: tuple[str, ...] = ()
    """Names of earlier steps and digests of data: with the workflow they decide the result."""


class Plan:
    """The steps of a job in a work folder, and the data that they read."""

    def __init__(self, job: Job, work: Path, *, gpu: bool) -> None:
        self.job = job
        self.work = work
        self.gpu = gpu
        self.steps: list[Step] = []
        self.data: dict[Path, Rows] = {}
        """Rows to write, by folder."""
        recipe = job.recipe
        base, adapters = str(job.base), dict[str, AdapterSpec]()
        inputs: tuple[str, ...] = ("base",)
        if recipe.merge:
            base, inputs = self._merge(base, inputs)
        float_base = base
        if recipe.quantization.algorithm == "awq" and not job.quantized:
            base, inputs = self._quantize(base, inputs)
        for name, adapter in recipe.adapters.items() if not recipe.merge else ():
            if adapter.peft is not None:
                peft = str(resolve(adapter.peft, job.folder).absolute())
            elif adapter.method == "qlora":
                # It quantizes a float base in its own way.
                peft = self._train(name, adapter, str(job.base), ("base",))
            else:
                peft = self._train(name, adapter, base, inputs)
            adapters[name] = self._adapter(adapter, peft)
        self.bundle = self._export(base, next(iter(recipe.adapters)) if recipe.merge else "", inputs)
        if adapters:
            self.bundle = self._convert(base, self.bundle, adapters)
        self._verify(base, float_base if base != float_base else None, self.bundle, adapters)

    def write_data(self) -> None:
        """Write the rows that the workflows name."""
        for folder, rows in self.data.items():
            rows.write(folder)

    def _add(
        self,
        name: str,
        what: str,
        workflow: Workflow,
        result: str | Path,
        files: Sequence[str],
        inputs: tuple[str, ...],
        spec: msgspec.Struct | None = None,
    ) -> Step:
        folder = self._next(name)
        workflow = {
            "workflow_id": name.replace(" ", "-"),
            **workflow,
            "systems": {
                "local": {
                    "type": "LocalSystem",
                    "accelerators": [
                        {"device": "gpu", "execution_providers": ["CUDAExecutionProvider"]}
                        if self.gpu
                        else {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                    ],
                }
            },
            "host": "local",
            "target": "local",
            "output_dir": str(folder / "output"),
            "cache_dir": str(self.work / "olive-cache"),
            "evaluate_input_model": False,
            "no_artifacts": True,
        }
        step = Step(name, folder, what, workflow, folder / result, tuple(files), spec, inputs)
        self.steps.append(step)
        return step

    def _rows(self, name: str, rows: Rows) -> tuple[str, str]:
        """Folder and digest of rows, which are written later."""
        folder = self.work / "data" / name
        self.data[folder] = rows
        return str(folder), rows.digest()

    def _adapter(self, adapter: AdapterRecipe, peft: str) -> AdapterSpec:
        source = adapter.peft or adapter.data or ""
        return AdapterSpec(
            peft=peft,
            description=adapter.description,
            source=source if isinstance(source, str) else source.dataset,
            sampling=adapter.sampling,
        )

    def _merge(self, base: str, inputs: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        ((name, recipe),) = self.job.recipe.adapters.items()
        if recipe.peft is None:
            peft = self._train(name, recipe, base, inputs)
            inputs = (*inputs, f"train {name}")
        else:
            peft = str(resolve(recipe.peft, self.job.folder).absolute())
            inputs = (*inputs, *self._brought())
        step = self._add(
            "merge",
            f"merge {name} into the base",
            {
                "input_model": {"type": "HfModel", "model_path": base, "adapter_path": peft},
                "passes": {"merge": {"type": "MergeAdapterWeights"}},
            },
            "output/model",
            _CHECKPOINT,
            inputs,
        )
        return str(step.result), ("merge",)

    def _quantize(self, base: str, inputs: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        job, size = self.job, self.job.recipe.group_size
        rows = Rows([{"text": text} for text in job.calibration], ("text",), None)
        data, digest = self._rows("calibration", rows)
        workflow: Workflow = {"input_model": {"type": "HfModel", "model_path": base}}
        if self.gpu:
            workflow["data_configs"] = [
                {
                    "name": "calibration",
                    "type": "HuggingfaceContainer",
                    "load_dataset_config": {"data_name": data, "split": "train"},
                    "pre_process_data_config": {"input_cols": "text"},
                }
            ]
            options: Workflow = {"type": "AutoAWQQuantizer", "q_group_size": size, "data_config": "calibration"}
        else:
            given = job.recipe.quantization.calibration
            options = {
                "type": "AwqOnCpu",
                "q_group_size": size,
                "calibration": data,
                "samples": given.samples if given else OLIVE_SAMPLES,
                "sequence_length": given.sequence_length if given else OLIVE_LENGTH,
            }
        step = self._add(
            "quantize",
            f"AWQ, groups of {size}",
            workflow | {"passes": {"awq": options}},
            "output/model",
            _CHECKPOINT,
            (*inputs, digest),
        )
        return str(step.result), ("quantize",)

    def _train(self, name: str, adapter: AdapterRecipe, base: str, inputs: tuple[str, ...]) -> str:
        rows = self.job.training[name]
        if not adapter.chat_template:
            # Olive fails on templates that are too long to be the name of a file.
            rows = self._texts(rows)
        data, digest = self._rows(name, rows)
        modules = list(self.job.modules) if adapter.target_modules == "all-linear" else list(adapter.target_modules)
        text: Workflow = {"text_cols": ["text"], "add_special_tokens": adapter.add_special_tokens}
        if adapter.chat_template:
            text = {"chat_template": True, "message_col": "messages", "add_special_tokens": False}
        folder = self._next(f"train {name}")
        training: Workflow = {
            "gradient_checkpointing": self.gpu,
            "logging_steps": 10,
            "save_steps": 100,
            "save_total_limit": 1,
            "output_dir": str(folder / "checkpoints"),
            **({} if self.gpu or adapter.method == "lora" else {"optim": "adamw_torch"}),
            **numbers(adapter.training),
        }
        step = self._add(
            f"train {name}",
            f"{adapter.method} on {len(rows.rows)} rows, rank {adapter.rank}, {', '.join(modules) or 'all-linear'}",
            {
                "input_model": {"type": "HfModel", "model_path": base, "task": "text-generation"},
                "data_configs": [
                    {
                        "name": "rows",
                        "type": "HuggingfaceContainer",
                        "load_dataset_config": {"data_name": data, "split": "train"},
                        "pre_process_data_config": {
                            **text,
                            "strategy": "line-by-line",
                            "max_seq_len": adapter.max_seq_len,
                            "pad_to_max_len": False,
                        },
                    }
                ],
                "passes": {
                    "train": {
                        "type": "AdapterLora" if adapter.method == "lora" else "AdapterQLora",
                        "r": adapter.rank,
                        "alpha": adapter.alpha,
                        "lora_dropout": adapter.dropout,
                        "target_modules": modules,
                        "adapted": modules,
                        "use_rslora": adapter.use_rslora,
                        "response_template": adapter.response_template,
                        "seed": int(numbers(adapter.training).get("seed", 42)),
                        "torch_dtype": "bfloat16" if self.gpu else "float32",
                        "train_data_config": "rows",
                        "training_args": training,
                    }
                },
            },
            "output/model/adapter",
            ("adapter_config.json", "adapter_model.safetensors"),
            (*inputs, digest),
        )
        return str(step.result)

    def _export(self, base: str, merged: str, inputs: tuple[str, ...]) -> Path:
        recipe = self.job.recipe
        # An AWQ checkpoint decides both itself.
        algorithm = recipe.quantization.algorithm
        chosen = algorithm if algorithm != "none" and algorithm != "awq" else None
        spec = BaseSpec(
            bundle=str(self._next("export") / "bundle"),
            name=recipe.base_name,
            description=recipe.description,
            merged=merged,
            precision=recipe.precision,
            device=recipe.export.device,
            group_size=recipe.group_size if chosen else None,
            algorithm=chosen,
            head=recipe.export.head,
        )
        what = f"{recipe.base_name} in {recipe.precision} for {recipe.export.device}"
        return self._add_ours("export", what, "BaseExport", base, spec, "bundle", inputs).result

    def _convert(self, base: str, bundle: Path, adapters: Mapping[str, AdapterSpec]) -> Path:
        spec = AdaptersSpec(base=str(bundle), bundle=str(self._next("adapters") / "bundle"), adapters=dict(adapters))
        inputs = ("export", *(f"train {name}" for name in adapters), *self._brought())
        what = f"convert {', '.join(adapters)}"
        return self._add_ours("adapters", what, "AdapterConversion", base, spec, "bundle", inputs).result

    def _verify(self, base: str, float_base: str | None, bundle: Path, adapters: Mapping[str, AdapterSpec]) -> None:
        job = self.job
        texts = {name: self._texts(rows) for name, rows in job.heldout.items() if name in adapters}
        held_out = {name: self._rows(f"held-out/adapters/{name}", rows) for name, rows in texts.items()}
        read = list(held_out.values())
        base_text = None
        if job.evaluation is not None:
            base_text, _ = own = self._rows("held-out/base", self._texts(job.evaluation))
            read.append(own)
        spec = VerificationSpec(
            bundle=str(bundle),
            adapters={name: each.peft for name, each in adapters.items()},
            float_checkpoint=float_base,
            held_out_base=base_text,
            held_out={name: folder for name, (folder, _) in held_out.items()},
            failed=str(self._next("verify")),
            records=[str(step.folder / RECORD) for step in self.steps],
        )
        what = "weights, logits and greedy tokens beside PyTorch's"
        if read:
            what += f", perplexity on {len(read)} texts"
        inputs = (self.steps[-1].name, *(found for _, found in read))
        self._add_ours("verify", what, "BundleVerification", base, spec, bundle, inputs)

    def _add_ours(
        self,
        name: str,
        what: str,
        kind: str,
        base: str,
        spec: msgspec.Struct,
        result: str | Path,
        inputs: tuple[str, ...],
    ) -> Step:
        workflow = {
            "input_model": {"type": "HfModel", "model_path": base, "task": "text-generation"},
            "passes": {name: {"type": kind, "spec": str(self._next(name) / SPEC)}},
            # A bundle lies outside of Olive's cache, which would call a step done that left none.
            "clean_cache": True,
        }
        files = ("bundle.json", "verification.json") if name == "verify" else ("bundle.json",)
        return self._add(name, what, workflow, result, files, inputs, spec)

    def _texts(self, rows: Rows) -> Rows:
        """The rows as text, special tokens included."""
        tokenizer = None
        if rows.columns == ("messages",) and isinstance(self.job.base, Path):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.job.base)
        return Rows([{"text": text} for text in rows.texts(tokenizer)], ("text",), None)

    def _brought(self) -> list[str]:
        """Digests of the adapters that are finished."""
        folders = [
            resolve(each.peft, self.job.folder) for each in self.job.recipe.adapters.values() if each.peft is not None
        ]
        files = [folder / name for folder in folders for name in (CONFIG, WEIGHTS)]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]

    def _next(self, name: str) -> Path:
        """Folder of the step that is added next."""
        return self.work / f"{len(self.steps) + 1}-{name.replace(' ', '-')}"


def digest(step: Step, work: Path, known: dict[str, str]) -> str:
    """SHA-256 of all that decides a step's result; `known` has the digests of the base and of earlier steps by name."""
    spec = msgspec.to_builtins(step.spec) if step.spec is not None else None
    text = json.dumps([step.workflow, spec], sort_keys=True).replace(json.dumps(str(work))[1:-1], "WORK")
    parts = [text, *(known.get(each, each) for each in step.inputs)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

"""A valid recipe as steps, each an Olive workflow: what runs, on what, and which files it leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loraplex.build.data import Rows
from loraplex.build.olive_workflow import (
    Workflow,
    awq_workflow,
    bundle_workflow,
    merge_workflow,
    olive_workflow,
    training_workflow,
)
from loraplex.build.peft_folder import CONFIG, WEIGHTS
from loraplex.build.planned_step import RECORD, SPEC, Step
from loraplex.build.recipe import AdapterRecipe, Calibration, resolve
from loraplex.build.specification import AdapterSpec, AdaptersSpec, BaseSpec, VerificationSpec
from loraplex.build.validation import Job

_CHECKPOINT = ("config.json", "tokenizer.json")


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
        folder = self._folder(name)
        workflow = olive_workflow(name, workflow, folder / "output", self.work / "olive-cache", gpu=self.gpu)
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
            merge_workflow(base, peft),
            "output/model",
            _CHECKPOINT,
            inputs,
        )
        return str(step.result), ("merge",)

    def _quantize(self, base: str, inputs: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        job, size = self.job, self.job.recipe.group_size
        rows = Rows([{"text": text} for text in job.calibration], ("text",), None)
        data, digest = self._rows("calibration", rows)
        given = job.recipe.quantization.calibration or Calibration(data="")
        workflow = awq_workflow(base, data, size, given.samples, given.sequence_length, gpu=self.gpu)
        step = self._add(
            "quantize",
            f"AWQ, groups of {size}",
            workflow,
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
        folder = self._folder(f"train {name}")
        workflow = training_workflow(base, data, adapter, modules, folder / "checkpoints", gpu=self.gpu)
        step = self._add(
            f"train {name}",
            f"{adapter.method} on {len(rows.rows)} rows, rank {adapter.rank}, {', '.join(modules) or 'all-linear'}",
            workflow,
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
            bundle=str(self._folder("export") / "bundle"),
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
        spec = AdaptersSpec(base=str(bundle), bundle=str(self._folder("adapters") / "bundle"), adapters=dict(adapters))
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
            failed=str(self._folder("verify")),
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
        workflow = bundle_workflow(name, kind, base, self._folder(name) / SPEC)
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

    def _folder(self, name: str) -> Path:
        """That of a step. It has no number, which one more adapter would change, and with it every path in later steps:
        what they left would be made again."""
        return self.work / name.replace(" ", "-")

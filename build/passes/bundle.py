"""The last steps of a build: from a checkpoint and PEFT folders to a bundle that is proved right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam

from loraplex.build import progress
from loraplex.build.assembly import add_adapters, build_base
from loraplex.build.record import read_records
from loraplex.build.specification import AdaptersSpec, BaseSpec, VerificationSpec
from loraplex.build.verification import HeldOut, verify_bundle
from loraplex.server.bundle import Bundle


class _Specified(Pass):
    """A pass whose options are in a JSON file.

    Olive takes every string among a pass's options that is the name of a file or folder for a path, makes it absolute,
    and fails on one that is too long for a name.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:  # noqa: ARG003
        return {"spec": PassConfigParam(type_=str, required=True, description="JSON file with the options.")}

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        self.run_spec(Path(model.model_path), Path(config.spec).read_bytes())
        # Olive copies into its output what a handler names; a bundle is more than that, and is where it has to be.
        model.get_hf_model_config().save_pretrained(output_model_path)
        return HfModelHandler(model_path=output_model_path, task=model.task)

    def run_spec(self, checkpoint: Path, spec: bytes) -> None:
        raise NotImplementedError


class BaseExport(_Specified):
    """A bundle without adapters."""

    def run_spec(self, checkpoint: Path, spec: bytes) -> None:
        wanted = msgspec.json.decode(spec, type=BaseSpec)
        options = {name: getattr(wanted, name) for name in BaseSpec.__struct_fields__ if name != "bundle"}
        build_base(checkpoint, Path(wanted.bundle), **options)


class AdapterConversion(_Specified):
    """The bundle with its adapters, converted from PEFT folders."""

    def run_spec(self, checkpoint: Path, spec: bytes) -> None:  # noqa: ARG002
        wanted = msgspec.json.decode(spec, type=AdaptersSpec)
        add_adapters(
            Bundle.open(Path(wanted.base)),
            {name: Path(each.peft) for name, each in wanted.adapters.items()},
            Path(wanted.bundle),
            descriptions={name: each.description for name, each in wanted.adapters.items()},
            sources={name: each.source for name, each in wanted.adapters.items()},
            samplings={name: each.sampling for name, each in wanted.adapters.items()},
        )


class BundleVerification(_Specified):
    """Compares the bundle with PyTorch and writes verification.json and verification.html into it."""

    def run_spec(self, checkpoint: Path, spec: bytes) -> None:
        wanted = msgspec.json.decode(spec, type=VerificationSpec)
        verify_bundle(
            Bundle.open(Path(wanted.bundle)),
            checkpoint,
            {name: Path(folder) for name, folder in wanted.adapters.items()},
            held_out=HeldOut(
                _texts(wanted.held_out_base) if wanted.held_out_base else (),
                {name: _texts(folder) for name, folder in wanted.held_out.items()},
            ),
            float_checkpoint=Path(wanted.float_checkpoint) if wanted.float_checkpoint else None,
            steps=read_records([Path(file) for file in wanted.records]),
            failed=Path(wanted.failed),
            progress=progress.note,
        )


def _texts(folder: str) -> list[str]:
    from datasets import load_dataset

    return [str(text) for text in load_dataset(folder, split="train")["text"]]

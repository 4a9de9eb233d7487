"""Everything about a recipe that can be wrong, looked for before anything runs or is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loraplex.build.base_check import check_adapters, check_quantization
from loraplex.build.calibration import calibration_texts
from loraplex.build.checkpoint import read_config
from loraplex.build.data import Rows, load_rows
from loraplex.build.document import Path_, Problems, convert, read_yaml
from loraplex.build.errors import CheckpointUnsupported, RecipeInvalid
from loraplex.build.peft_shapes import target_of_config
from loraplex.build.recipe import AdapterRecipe, Recipe
from loraplex.build.row_check import check_rows
from loraplex.build.source import fetch, is_remote
from loraplex.build.support import check_checkpoint, load_tokenizer
from loraplex.build.training_arguments import check_training
from loraplex.server.bundle import MANIFEST, Name


@dataclass(frozen=True)
class Job:
    """A valid recipe with what it names. `base` is a Hugging Face id or azureml:// where it was not fetched."""

    recipe: Recipe
    folder: Path
    """That relative paths of the recipe start from."""
    base: Path | str
    modules: tuple[str, ...]
    """Names of the linear layers that adapters can adapt; empty where the base was not fetched."""
    quantized: bool
    """The base is an AWQ checkpoint already."""
    training: Mapping[str, Rows]
    heldout: Mapping[str, Rows]
    """Held-out rows by adapter."""
    calibration: tuple[str, ...]
    """Texts; empty where AWQ has nothing to do."""
    evaluation: Rows | None


def read_recipe(file: Path) -> tuple[Recipe | None, Problems]:
    """The recipe as far as it can be read, with defaults for what cannot; None where there is none."""
    problems = Problems(file)
    value = read_yaml(file, problems)
    if isinstance(value, dict):
        recipe: Recipe | None = convert(value, Recipe, (), problems)
        # What is not known of a part of the recipe must not be taken for wrong somewhere else in it.
        for path in problems.paths():
            problems.leave_out(path[:2] if path[0] == "adapters" else path[:1])
        return recipe, problems
    if not problems.found:
        problems.add((), "is not a mapping of fields to values")
    return None, problems


def validate(
    recipe: Recipe, folder: Path, output: Path, work: Path, problems: Problems, *, download: bool = True
) -> Job:
    """Check a recipe, the rows and adapters it names, its base and the output. Raises RecipeInvalid with all problems.

    A base that is not on this machine is downloaded once everything else is right, and not at all without `download`.
    """
    _check_names(recipe, problems)
    _check_choices(recipe, problems)
    check_output(output, problems)
    if work.exists() or work.absolute().parent != output.absolute().parent:  # else what is wrong is told already
        check_place(work, problems)
    training: dict[str, Rows] = {}
    heldout: dict[str, Rows] = {}
    for name, adapter in recipe.adapters.items():
        path = ("adapters", name)
        _check_adapter(adapter, path, problems)
        for field, source, found in (
            ("data", adapter.data, training),
            ("evaluation_data", adapter.evaluation_data, heldout),
        ):
            if source is None:
                continue
            rows = load_rows(
                source,
                folder,
                (*path, field),
                problems,
                text_template=adapter.text_template,
                messages=bool(adapter.chat_template),
            )
            if rows is not None and _check_answers(adapter, rows, path, problems):
                found[name] = rows
    evaluation = calibration = None
    if recipe.evaluation is not None:
        evaluation = load_rows(
            recipe.evaluation.data,
            folder,
            ("evaluation", "data"),
            problems,
            text_template=recipe.evaluation.text_template,
        )
    if (given := recipe.quantization.calibration) is not None:
        where = ("quantization", "calibration", "data")
        calibration = load_rows(given.data, folder, where, problems, text_template=given.text_template)
    remote = is_remote(recipe.base, folder)
    base: Path | str = recipe.base
    modules: tuple[str, ...] = ()
    quantized = False
    texts: tuple[str, ...] = ()
    if not remote or (download and not problems.found):
        try:
            base = fetch(recipe.base, folder, work, recipe.revision)
            supported = check_checkpoint(base)
            config = read_config(base)
            modules = target_of_config(config).modules
            quantized = supported.awq_group_size is not None
            check_quantization(recipe, base, config, supported.awq_group_size, problems)
            check_adapters(recipe, folder, config, modules, problems)
            tokenizer = load_tokenizer(base)
            check_rows(recipe, base, tokenizer, supported.vocab_size, training, heldout, problems)
            if recipe.quantization.algorithm == "awq" and not quantized and not problems.found:
                texts = calibration_texts(recipe, tokenizer, calibration, training, problems)
        except CheckpointUnsupported as error:
            problems.add(("base",), error.message)
    if problems.found:
        raise RecipeInvalid("\n".join(problems.messages()))
    return Job(recipe, folder, base, modules, quantized, training, heldout, texts, evaluation)


def check_output(output: Path, problems: Problems) -> None:
    """An output may be absent, an empty folder or a bundle, which is replaced by one beside it."""
    if output.exists() and not (output / MANIFEST).is_file() and not (output.is_dir() and not any(output.iterdir())):
        problems.add_line(output, 0, "exists and is not a bundle: move it away or give another output")
    check_place(output, problems, output.absolute().parent)


def check_place(folder: Path, problems: Problems, written: Path | None = None) -> None:
    """Note a folder that cannot be made or written to, by what is there now: `written`, itself unless given."""
    written = (written or folder).absolute()
    place = next(each for each in (written, *written.parents) if each.exists())
    if not place.is_dir():
        itself = place == folder.absolute()
        problems.add_line(folder, 0, "is a file: give a folder" if itself else f"cannot be made, {place} is a file")
    elif not os.access(place, os.W_OK | os.X_OK):
        problems.add_line(folder, 0, f"cannot be made, {place} cannot be written to")


def _check_names(recipe: Recipe, problems: Problems) -> None:
    for path, name in ((("name",), recipe.base_name), *((("adapters", name), name) for name in recipe.adapters)):
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError:
            problems.add(path, f"{name!r} cannot be a name: use letters, digits, '.', '_' and '-'")
    if recipe.base_name in recipe.adapters:
        problems.add(("adapters", recipe.base_name), "is the name of the base too: give one of them another `name`")


def _check_choices(recipe: Recipe, problems: Problems) -> None:
    """Fields that exclude each other."""
    quantization, export = recipe.quantization, recipe.export
    quantizes = recipe.precision == "int4"
    if quantizes == (quantization.algorithm == "none"):
        problems.add(
            ("export", "precision"), f"is {recipe.precision} with quantization.algorithm {quantization.algorithm}"
        )
    elif not quantizes and export.head == "int4":
        problems.add(("export", "head"), "is int4, and quantization.algorithm none keeps every layer float")
    elif not quantizes and (recipe.precision == "float32") != (export.device == "cpu"):
        problems.add(("export", "precision"), "is float32 on a CPU and float16 on CUDA where nothing is quantized")
    wanted = {"generator"} if export.device == "cpu" else {"generator", "paged"}
    if export.variants is not None and set(export.variants) != wanted:
        problems.add(("export", "variants"), f"a bundle for {export.device} has {' and '.join(sorted(wanted))}")
    if quantization.group_size is not None and quantization.algorithm == "none":
        problems.add(("quantization", "group_size"), "is for quantization, and algorithm none quantizes nothing")
    if quantization.calibration is not None and quantization.algorithm != "awq":
        problems.add(("quantization", "calibration"), f"{quantization.algorithm} looks at no text, only awq does")
    if recipe.merge and len(recipe.adapters) != 1:
        problems.add(("merge",), f"takes exactly one adapter, there are {len(recipe.adapters)}")


def _check_adapter(adapter: AdapterRecipe, path: Path_, problems: Problems) -> None:
    if (adapter.peft is None) == (adapter.data is None):
        problems.add(path, "give either peft, a folder that PEFT saved, or data to train on")
        return
    if not adapter.trained:
        default = AdapterRecipe()
        for field in (
            *("method", "rank", "alpha", "dropout", "target_modules", "use_rslora", "training"),
            *("response_template", "max_seq_len", "add_special_tokens"),
        ):
            if getattr(adapter, field) != getattr(default, field):
                problems.add((*path, field), "is for training, and peft names a finished adapter")
        return
    if (adapter.text_template is None) == (not adapter.chat_template):
        problems.add(path, "give either text_template or chat_template")
    if adapter.chat_template and adapter.add_special_tokens:
        problems.add((*path, "add_special_tokens"), "is for text_template, a chat template has its own")
    check_training(adapter.training, (*path, "training"), problems)


def _check_answers(adapter: AdapterRecipe, rows: Rows, path: Path_, problems: Problems) -> bool:
    """Whether every row has the text that its answer begins with; `row_check` looks for its tokens."""
    marker = adapter.response_template
    if marker is None or adapter.chat_template:
        return True
    if without := [number for number, text in enumerate(rows.texts(), 1) if marker not in text]:
        problems.add((*path, "response_template"), f"row {without[0]} has no {marker!r}, so nothing of it is learned")
    return not without

"""Everything about a recipe that can be wrong, looked for before anything runs or is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from loraplex.build.checkpoint import read_config, read_tensors
from loraplex.build.data import Rows, load_rows
from loraplex.build.document import Path_, Problems, convert, read_yaml
from loraplex.build.errors import CheckpointUnsupported, RecipeInvalid, first_line
from loraplex.build.peft_shapes import check_peft, target_of_config
from loraplex.build.recipe import AdapterRecipe, Recipe, resolve
from loraplex.build.source import fetch, is_remote
from loraplex.build.support import check_checkpoint, check_quantizable
from loraplex.server.bundle import MANIFEST, Name

AWQ_TYPES = ("gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""model_type of the families that AutoAWQ 0.2.9 knows and bundles can be made of."""
_AWQ_OUTPUTS = 64
"""AutoAWQ looks for the best clipping of so many output features at a time."""
_OURS = frozenset({"output_dir", "report_to", "logging_dir", "fp16", "bf16"})
"""Training arguments that a build sets itself."""
_POSITIVE = frozenset({"max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"})


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
            if rows is not None:
                _check_answers(adapter, rows, path, problems)
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
            _check_quantization(recipe, base, config, quantized, problems)
            _check_adapters_against(recipe, folder, config, modules, problems)
            if recipe.quantization.algorithm == "awq" and not quantized and not problems.found:
                texts = _calibration(recipe, base, calibration, training, problems)
        except CheckpointUnsupported as error:
            problems.add(("base",), error.message)
    if problems.found:
        raise RecipeInvalid("\n".join(problems.messages()))
    return Job(recipe, folder, base, modules, quantized, training, heldout, texts, evaluation)


def check_output(output: Path, problems: Problems) -> None:
    """An output may be absent, an empty folder or a bundle, which is replaced."""
    if output.exists() and not (output / MANIFEST).is_file() and not (output.is_dir() and not any(output.iterdir())):
        problems.add_line(output, 0, "exists and is not a bundle: move it away or give another output")
    parent = next(each for each in output.absolute().parents if each.exists())
    if not parent.is_dir():
        problems.add_line(output, 0, f"cannot be made, {parent} is a file")


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
    elif not quantizes and (recipe.precision == "float32") != (export.device == "cpu"):
        problems.add(("export", "precision"), "is float32 on a CPU and float16 on CUDA where nothing is quantized")
    wanted = {"generator"} if export.device == "cpu" else {"generator", "paged"}
    if export.variants is not None and set(export.variants) != wanted:
        problems.add(("export", "variants"), f"a bundle for {export.device} has {' and '.join(sorted(wanted))}")
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
        for field in ("method", "rank", "alpha", "dropout", "target_modules", "use_rslora", "training"):
            if getattr(adapter, field) != getattr(default, field):
                problems.add((*path, field), "is for training, and peft names a finished adapter")
        return
    if (adapter.text_template is None) == (not adapter.chat_template):
        problems.add(path, "give either text_template or chat_template")
    if adapter.chat_template and adapter.add_special_tokens:
        problems.add((*path, "add_special_tokens"), "is for text_template, a chat template has its own")
    _check_training(adapter, (*path, "training"), problems)


def _check_training(adapter: AdapterRecipe, path: Path_, problems: Problems) -> None:
    if not adapter.training:
        return
    import transformers

    fields = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
    before = len(problems.found)
    for name, value in adapter.training.items():
        if name in _OURS:
            problems.add((*path, name), "is set by the build")
        elif name not in fields:
            problems.add((*path, name), "is no argument of transformers.TrainingArguments")
        elif isinstance(fields[name].default, bool) and not isinstance(value, bool):
            problems.add((*path, name), f"is true or false, not {value!r}")
        elif type(fields[name].default) in (int, float) and not is_number(value):
            problems.add((*path, name), f"is a number, not {value!r}")
        elif name in _POSITIVE and float(value) <= 0:
            problems.add((*path, name), f"must be positive, not {value}")
    if len(problems.found) == before:
        try:
            transformers.TrainingArguments(output_dir="unused", **numbers(adapter.training))
        except (ValueError, TypeError, ImportError) as error:
            problems.add(path, first_line(error))


def is_number(value: object) -> bool:
    """YAML reads 2e-4 as text, because YAML 1.1 wants a dot in it."""
    if isinstance(value, bool):
        return False
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def numbers(training: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments with text that is a number turned into one."""
    return {name: float(v) if isinstance(v, str) and is_number(v) else v for name, v in training.items()}


def _check_answers(adapter: AdapterRecipe, rows: Rows, path: Path_, problems: Problems) -> None:
    marker = adapter.response_template
    if marker is None or adapter.chat_template:
        return
    if without := [number for number, text in enumerate(rows.texts(), 1) if marker not in text]:
        problems.add((*path, "response_template"), f"row {without[0]} has no {marker!r}, so nothing of it is learned")


def _check_quantization(
    recipe: Recipe, base: Path, config: Mapping[str, Any], quantized: bool, problems: Problems
) -> None:
    algorithm, size, path = recipe.quantization.algorithm, recipe.group_size, ("quantization", "group_size")
    if quantized:
        if algorithm != "awq":
            problems.add(("quantization", "algorithm"), f"is {algorithm}, but {base} is quantized by awq already")
        if any(adapter.trained and adapter.method == "qlora" for adapter in recipe.adapters.values()) or recipe.merge:
            problems.add(("base",), "is quantized already: qlora and merge take the checkpoint that it was made from")
        return
    if algorithm in ("rtn", "k_quant"):
        try:
            check_quantizable(base, size, algorithm)
        except CheckpointUnsupported as error:
            problems.add(path, error.message)
    elif algorithm == "awq":
        if config.get("model_type") not in AWQ_TYPES:
            problems.add(
                ("quantization", "algorithm"), f"AutoAWQ does not know {config.get('model_type')}: take k_quant"
            )
            return
        for name, tensor in read_tensors(base).items():
            if not name.endswith("_proj.weight"):
                continue
            outputs, inputs = tensor.shape
            if inputs % size:
                problems.add(path, f"{name} has {inputs} input features, which groups of {size} do not divide")
                return
            if outputs % _AWQ_OUTPUTS:
                problems.add(
                    ("quantization", "algorithm"),
                    f"AutoAWQ takes output features by {_AWQ_OUTPUTS} and {name} has {outputs}: take k_quant",
                )
                return


def _check_adapters_against(
    recipe: Recipe, folder: Path, config: Mapping[str, Any], modules: tuple[str, ...], problems: Problems
) -> None:
    for name, adapter in recipe.adapters.items():
        path = ("adapters", name)
        if adapter.peft is not None:
            peft = resolve(adapter.peft, folder)
            if not peft.is_dir():
                problems.add((*path, "peft"), f"there is no folder {peft}")
                continue
            for reason in check_peft(peft, config):
                problems.add((*path, "peft"), f"{peft}: {reason}")
        elif adapter.target_modules != "all-linear":
            if not adapter.target_modules:
                problems.add((*path, "target_modules"), "names no module")
            for module in adapter.target_modules:
                if module not in modules:
                    problems.add((*path, "target_modules"), f"there is no {module}, there are {', '.join(modules)}")


def _calibration(
    recipe: Recipe, base: Path, given: Rows | None, training: Mapping[str, Rows], problems: Problems
) -> tuple[str, ...]:
    """Texts of at most `sequence_length` tokens, since AutoAWQ leaves out what is longer."""
    from transformers import AutoTokenizer

    wanted = recipe.quantization.calibration
    samples, length = (wanted.samples, wanted.sequence_length) if wanted else (128, 512)
    path: Path_ = ("quantization", "calibration") if wanted else ("quantization",)
    sources = [given] if given is not None else list(training.values())
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokens, texts = 0, list[str]()
    # By turns, so that every adapter's rows are among the first samples.
    columns = [rows.texts(tokenizer) for rows in sources]
    for number in range(max(map(len, columns), default=0)):
        for column in columns:
            if number >= len(column) or len(texts) >= samples:
                continue
            # One token fewer than fits: what a piece is encoded to again can be longer than what it was cut from.
            encoded = tokenizer(column[number], return_offsets_mapping=True, add_special_tokens=False)
            offsets = encoded["offset_mapping"][: length - 2]
            if offsets:
                texts.append(column[number][: offsets[-1][1]])
                tokens += len(offsets)
    if not texts:
        problems.add(path, "awq looks at text to find out which weights matter: give calibration.data")
    elif tokens < length:
        problems.add(path, f"awq needs {length} tokens of text at least, the rows have {tokens}: give more of them")
    return tuple(texts)

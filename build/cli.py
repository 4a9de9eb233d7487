"""`loraplex build`: from a recipe, or a few options, to a bundle."""

from __future__ import annotations

import gc
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import msgspec
from cyclopts import Parameter

from loraplex.build.builder import Device
from loraplex.build.document import Path_, Problems
from loraplex.build.errors import RecipeInvalid, WorkFolderBusy, first_line
from loraplex.build.interruption import Interrupted, ends_at_once, raises
from loraplex.build.libraries import uncollected
from loraplex.build.recipe import AdapterRecipe, Algorithm, Calibration, ExportRecipe, QuantizationRecipe, Recipe
from loraplex.server.errors import LoraplexError

if TYPE_CHECKING:
    from loraplex.build.plan import Plan

GroupSize = Literal["16", "32", "64", "128", "256"]


def build(
    recipe: Path | None = None,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    base: str | None = None,
    adapter: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    name: str | None = None,
    quantization: Algorithm | None = None,
    group_size: GroupSize | None = None,
    calibration: str | None = None,
    device: Device | None = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    resume: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    emit_olive: Path | None = None,
    work: Path | None = None,
) -> None:
    """Make a bundle of one base and its LoRA adapters.

    Parameters
    ----------
    recipe
        YAML file that says everything, as docs/build.md tells: adapters to train, rows, AWQ. Without one, --base and
        the options after it do, for adapters that are finished.
    output
        Folder to write; a bundle that stands there is replaced.
    base
        The checkpoint: a local folder, a Hugging Face id, or azureml://registries/REGISTRY/models/NAME/versions/VERSION.
    adapter
        NAME=FOLDER of an adapter saved by PEFT; once for each.
    name
        What clients call the base; the last part of --base unless given.
    quantization
        How the linear layers are stored in 4 bits; none keeps them float. k_quant unless given.
    group_size
        Weights that share one scale: 32 on a CPU and 128 on CUDA unless given.
    calibration
        JSONL file whose rows have a `text`, for --quantization awq.
    device
        What the bundle is served on; cpu unless given.
    dry_run
        Check everything that is on this machine, print the steps and end.
    resume
        Go on with the work folder of a build that failed or was interrupted, or that made an older bundle: steps whose
        inputs are still the same are kept.
    emit_olive
        Folder to write the Olive workflows to instead of running them; prints the `olive run` commands.
    work
        Folder for results of steps; OUTPUT.work unless given.
    """
    options: dict[str, object | None] = {
        "--base": base,
        "--adapter": adapter or None,
        "--name": name,
        "--quantization": quantization,
        "--group-size": group_size,
        "--calibration": calibration,
        "--device": device,
    }
    given = [option for option, value in options.items() if value is not None]
    if recipe is not None and given:
        _refuse(f"{given[0]} and a recipe exclude each other: write it into {recipe}")
    if recipe is None and base is None:
        _refuse("give a recipe or --base")
    if recipe is not None and recipe.is_dir():
        _refuse(f"{recipe} is a folder: give a recipe, or a checkpoint's folder as --base")
    adapters = _adapters(adapter)
    work = work or output.with_name(f"{output.name}.work")
    command = shlex.join(["loraplex", *sys.argv[1:], *([] if resume else ["--resume"])])
    with ends_at_once():
        try:
            from loraplex.build.plan import Plan
            from loraplex.build.validation import check_place, read_recipe, validate
            from loraplex.build.work_folder import check_free, has_steps
            from loraplex.build.workflow import write_workflows
        except ImportError as error:
            _lack(error)
        if recipe is not None:
            wanted, problems = read_recipe(recipe)
            folder = recipe.absolute().parent
        else:
            assert base is not None
            wanted, problems = _recipe(base, adapters, name, quantization, group_size, calibration, device)
            folder = Path.cwd()
        if wanted is None:
            _refuse("\n".join(problems.messages()))
        if emit_olive is not None:
            check_place(emit_olive, problems)
            if emit_olive.is_dir() and any(emit_olive.iterdir()) and not has_steps(emit_olive):
                _refuse(f"{emit_olive} is not empty and not a folder of workflows: give another")
        preview = dry_run or emit_olive is not None
        if not preview:
            try:
                check_free(work)
            except WorkFolderBusy as error:
                _refuse(error.message)
        if not (resume or preview) and has_steps(work):
            _refuse(f"{work} holds steps of an earlier build: go on from them with --resume, or delete the folder")
        try:
            with uncollected():  # only now: whoever is refused above need not wait seconds for it
                import torch
                import transformers  # noqa: F401
        except ImportError as error:
            _lack(error)
        try:
            job = validate(wanted, folder, output, work, problems, download=not dry_run)
        except RecipeInvalid as error:
            _refuse(error.message)
        plan = Plan(job, (emit_olive or work).absolute(), gpu=torch.cuda.is_available())
        if preview:
            _print_plan(plan, output)
            if emit_olive is not None:
                write_workflows(plan)
                _print_commands(plan)
            return
    _carry_out(plan, output, work, command)
    models = ", ".join((wanted.base_name, *(() if wanted.merge else wanted.adapters)))
    print(f"{output}: {models}\n\n  loraplex serve {output}\n\nWhat the steps left is in {work}; delete it when done.")


def _carry_out(plan: Plan, output: Path, work: Path, command: str) -> None:
    """Run a plan and put its bundle in place. After a failure, tell people of `command`, which goes on, and end."""
    from loraplex.build.work_folder import held
    from loraplex.build.workflow import place, run_steps

    try:
        with raises(), held(work):
            run_steps(plan, command)
            place(plan.bundle, output, command)
    except WorkFolderBusy as error:
        _refuse(error.message)
    except Interrupted as interrupted:
        print(f"\nloraplex: interrupted; go on with: {command}", file=sys.stderr)
        gc.freeze()  # else the interpreter looks through a million objects of the libraries before it ends
        sys.exit(interrupted.status)
    except LoraplexError as error:
        print(f"loraplex: {error.message}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"loraplex: {work}: {first_line(error)}\n  again from here: {command}", file=sys.stderr)
        sys.exit(1)


def _refuse(message: str) -> NoReturn:
    for line in message.splitlines():
        print(f"loraplex: {line}", file=sys.stderr)
    sys.exit(2)


def _lack(error: ImportError) -> NoReturn:
    sys.exit(f"loraplex: {error}; install loraplex[build]")


def _recipe(
    base: str,
    adapters: Mapping[str, str],
    name: str | None,
    quantization: Algorithm | None,
    group_size: GroupSize | None,
    calibration: str | None,
    device: Device | None,
) -> tuple[Recipe, Problems]:
    """What the options of the short form say, as a recipe."""
    size: Literal[16, 32, 64, 128, 256] | None = None
    if group_size is not None:
        size = msgspec.convert(int(group_size), Literal[16, 32, 64, 128, 256])
    recipe = Recipe(
        base=base,
        name=name,
        quantization=QuantizationRecipe(
            algorithm=quantization or "k_quant",
            group_size=size,
            calibration=Calibration(data=calibration) if calibration is not None else None,
        ),
        adapters={each: AdapterRecipe(peft=folder) for each, folder in adapters.items()},
        export=ExportRecipe(device=device or "cpu"),
    )
    names: dict[Path_, str] = {
        ("base",): "--base",
        ("name",): "--name",
        ("quantization",): "--quantization",
        ("quantization", "group_size"): "--group-size",
        ("quantization", "calibration"): "--calibration",
        ("quantization", "calibration", "data"): "--calibration",
        **{("adapters", each): f"--adapter {each}" for each in adapters},
        **{("adapters", each, "peft"): f"--adapter {each}" for each in adapters},
    }
    return recipe, Problems(Path("command line"), names=names)


def _adapters(given: tuple[str, ...]) -> dict[str, str]:
    """Folders by name. Ends the command with status 2 where one is not NAME=FOLDER or a name comes twice."""
    adapters: dict[str, str] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        if not (name and equals and folder):
            _refuse(f"--adapter {each} is not NAME=FOLDER")
        if name in adapters:
            _refuse(f"two adapters are named {name}")
        adapters[name] = folder
    return adapters


def _print_plan(plan: Plan, output: Path) -> None:
    recipe = plan.job.recipe
    print(f"{output}: {recipe.base_name} from {plan.job.base}, on {'CUDA' if plan.gpu else 'the CPU'}")
    if not isinstance(plan.job.base, Path):
        print("The base is not on this machine: it is checked after its download.")
    for number, step in enumerate(plan.steps, 1):
        print(f"  {number}. {step.name}: {step.what}")


def _print_commands(plan: Plan) -> None:
    print("\nRun them in this order:\n")
    for step in plan.steps:
        paths = (str(step.folder / "workflow.json"), str(plan.work / "passes.json"))
        print(f"  olive run --config {shlex.quote(paths[0])} --package-config {shlex.quote(paths[1])}")
    print(f"\nThe bundle is then {plan.bundle}; the last of them fails where it is not right.")

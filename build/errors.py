"""The errors of a build; like the server's they are one line that names what is wrong and how to mend it."""

from __future__ import annotations

from loraplex.server.errors import LoraplexError


class BuildFailed(LoraplexError):
    """Base of what `loraplex.build` raises itself. Never on the wire."""

    code = "build_failed"


class CheckpointUnsupported(BuildFailed):
    """The checkpoint is incomplete, or of a form or family that cannot be served with adapters."""

    code = "checkpoint_unsupported"


class ExportFailed(BuildFailed):
    """The model builder failed, or what it wrote is not what was asked for."""

    code = "export_failed"


class RecipeInvalid(BuildFailed):
    """A recipe, or data or a checkpoint that it names, is wrong; the message has one line for each problem."""

    code = "recipe_invalid"


class StepFailed(BuildFailed):
    """A step of a build failed; the message names it, its log and the command that repeats it."""

    code = "step_failed"


class WorkFolderBusy(BuildFailed):
    """Another build runs in the same work folder."""

    code = "work_folder_busy"


class VerificationFailed(BuildFailed):
    """A bundle was made that does not compute what its checkpoint and its adapters do."""

    code = "verification_failed"


def first_line(error: Exception) -> str:
    """What a library's exception says, for a message of one line; the whole of it goes on as its cause."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

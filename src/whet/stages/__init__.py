"""The stages of a run, each a few lines around the package that does the work. `whet.run` says in which order.

They stand by what they are about, one file each, and never call one another's file.
"""

from whet.stages.asked import (
    compiler_put_off,
    for_measuring,
    import_libraries,
    refuse_streamed,
    refuse_untrainable,
    refuse_untrainable_storage,
    resolve_run,
)
from whet.stages.ending import merges, save, say_what_next
from whet.stages.folder import find_checkpoint, foresee_disk, lock_output, open_output, take_folder
from whet.stages.model import make_model, make_trainer, score
from whet.stages.rows import announce, plan_run, prepare_data, tell_stream, training_data
from whet.stages.uploads import open_repository, push, push_checkpoints

__all__ = [
    "announce",
    "compiler_put_off",
    "find_checkpoint",
    "for_measuring",
    "foresee_disk",
    "import_libraries",
    "lock_output",
    "make_model",
    "make_trainer",
    "merges",
    "open_output",
    "open_repository",
    "plan_run",
    "prepare_data",
    "push",
    "push_checkpoints",
    "refuse_streamed",
    "refuse_untrainable",
    "refuse_untrainable_storage",
    "resolve_run",
    "save",
    "say_what_next",
    "score",
    "take_folder",
    "tell_stream",
    "training_data",
]

"""The libraries of a training run, imported without what this run does not use.

transformers, PEFT and accelerate import whatever optional package they find installed, mostly for an ``isinstance``. On
two cores the first step of a tiny run took 5.0 CPU seconds of imports with bitsandbytes, torchao, scipy and datasets
installed, and 1.9 without them. The table says what is put off, and for whose sake; `whet.core.deferred` says how, and
why nothing else can tell. A later run of the same process that does use one of them loads it then.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any

from whet.core.deferred import Deferral, deferred, is_loaded


def _disabled_when_loaded(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """``torch._dynamo.disable`` while dynamo is not loaded: nothing is compiled, so there is nothing to disable."""
    if function is None:
        return partial(_disabled_when_loaded, recursive=recursive)
    disabled: Any = None

    @wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None and is_loaded("torch._dynamo"):
            disabled = sys.modules["torch._dynamo"].disable(function, recursive)
        return (disabled or function)(*args, **kwargs)

    return inner


COMPILER = Deferral(
    "torch._dynamo",
    "functions of torch and transformers that say how torch.compile shall treat them; nothing is compiled without it",
    names=("eval_frame.OptimizedModule",),
    marks=("allow_in_graph", "assume_constant_result"),
    instead={"disable": _disabled_when_loaded, "graph_break": lambda msg="": None, "is_compiling": lambda: False},
)

DEFERRALS: tuple[Deferral, ...] = (
    Deferral(
        "bitsandbytes",
        "peft, for adapters of quantised weights; it imports the compiler of torch",
        names=("nn.Linear4bit", "nn.Linear8bitLt"),
    ),
    Deferral(
        "torchao.prototype.safetensors.safetensors_support",
        "transformers.quantizers, for weights quantised by torchao",
        names=("flatten_tensor_state_dict", "unflatten_tensor_state_dict"),
    ),
    Deferral(
        "torchao.prototype.safetensors.safetensors_utils",
        "transformers.integrations.torchao, for the same",
        names=("is_metadata_torchao",),
    ),
    Deferral("torchao.utils", "transformers.integrations.torchao, for an isinstance", names=("TorchAOBaseTensor",)),
    Deferral(
        "scipy.optimize",
        "transformers.loss, for losses of object detection",
        names=("linear_sum_assignment",),
    ),
    Deferral(
        "datasets",
        "transformers.trainer, for an isinstance; a prepared set is no dataset of theirs",
        names=("Dataset", "IterableDataset"),
    ),
    Deferral(
        "accelerate.commands.config.default",
        "accelerate.utils, for a command of its own; it imports boto3",
        names=("write_basic_config",),
    ),
    Deferral(
        "accelerate.commands.config.config_args",
        "accelerate.utils.launch, for an annotation; the same",
        names=("SageMakerConfig",),
    ),
    COMPILER,
    Deferral(
        "torch._dynamo._trace_wrapped_higher_order_op",
        "transformers.masking_utils, for masks of FlexAttention",
        names=("TransformGetItemToIndex",),
    ),
)

PEFT = Deferral(
    "peft", "transformers.trainer, to recognise an adapter; no run without one", names=("PeftModel", "PeftMixedModel")
)


def unused_put_off() -> AbstractContextManager[None]:
    """Within it, libraries import of each other what they use, where that is known of the table above."""
    return deferred(DEFERRALS)


def compiler_put_off() -> AbstractContextManager[None]:
    """Within it, torch.compile is loaded when something is compiled, not when a function is called that never shall be.

    torch has hundreds of those, among them each optimizer's ``zero_grad``; loading costs 0.4 CPU seconds.
    """
    return deferred((COMPILER,))


def import_libraries(*, adapter: bool) -> None:
    """Import torch and transformers (and PEFT), and what they import in any run.

    Args:
        adapter: whether the run has one.
    """
    with without_collection(), deferred(DEFERRALS if adapter else (*DEFERRALS, PEFT)):
        import torch  # noqa: F401  # first: its operators look through every module that is loaded
        import transformers

        with models_listed_once():
            import transformers.models
        import transformers.generation.utils
        import transformers.masking_utils
        import transformers.modeling_layers
        import transformers.trainer  # noqa: F401

        if adapter:
            import peft  # noqa: F401


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for garbage while hundreds of thousands of objects are made that all stay.

    What was made is left out of later searches too, where this process had imported nothing of it before: each step of
    training makes garbage, and looking through every module for more takes longer than the step of a small model.
    """
    was_enabled, is_first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def models_listed_once() -> Iterator[None]:
    """transformers reads the source of all its models twice for two forms of one list; the second is made of the first.

    Of transformers 5.17 to 5.23. Where another version makes its lists otherwise, nothing is changed.
    """
    import transformers
    from transformers.utils import import_utils

    original = import_utils.define_import_structure
    models = Path(str(transformers.__file__)).parent / "models"
    made = original.cache_info().hits
    listed = original(models, prefix="models") if original.cache_info().currsize else None
    if listed is None or original.cache_info().hits == made:
        yield
        return
    import_utils.define_import_structure = _with_known(original, models / "__init__.py", _without_prefix(listed))
    try:
        yield
    finally:
        import_utils.define_import_structure = original


def _with_known(original: Callable[..., Any], path: Path, known: Any) -> Callable[..., Any]:
    @lru_cache
    def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
        return known if Path(module_path) == path and prefix is None else original(module_path, prefix)

    return define_import_structure


def _without_prefix(listed: Any) -> Any:
    """The list of the models alone: transformers has added its other modules to what it got."""
    return {
        backends: {name.removeprefix("models."): value for name, value in modules.items() if name.startswith("models.")}
        for backends, modules in listed.items()
    }

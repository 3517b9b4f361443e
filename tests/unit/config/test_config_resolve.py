"""A config and a machine give one run; what was left open is chosen, and every choice has its sentence."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from whet.config import ResolvedRun, make_config, resolve
from whet.core.errors import ConfigError
from whet.core.types import Hardware

CPU = Hardware("cpu", num_cpus=2)
MPS = Hardware("mps", "Apple M3", bf16=True)
OLD = Hardware("cuda", "T4", bf16=False)
NEW = Hardware("cuda", "H100", bf16=True)


def run(hardware: Hardware = CPU, **values: Any) -> ResolvedRun:
    base = {"base_model": "org/m", "learning_rate": 1e-4, "datasets": [{"path": "org/d", "type": "alpaca"}]}
    return resolve(make_config({**base, **values}), hardware)


LORA = {"adapter": "lora", "lora_target_linear": True}


@pytest.mark.parametrize(
    ("hardware", "values", "dtype", "autocast"),
    [
        (CPU, {}, "float32", None),
        (CPU, {"bf16": True}, "float32", "bfloat16"),
        (CPU, {"bf16": True, **LORA}, "bfloat16", "bfloat16"),
        (CPU, {"bf16": True, **LORA, "relora": True, "jagged_restart_steps": 9}, "float32", "bfloat16"),
        (CPU, {"bfloat16": True}, "bfloat16", None),
        (NEW, {}, "float32", "bfloat16"),
        (NEW, LORA, "bfloat16", "bfloat16"),
        (NEW, {"bf16": False}, "float32", None),
        (NEW, {"torch_dtype": "bfloat16"}, "bfloat16", "bfloat16"),
        (CPU, {"torch_dtype": "bfloat16"}, "bfloat16", None),
        (CPU, {"bf16": True, "torch_dtype": "float32", **LORA}, "float32", "bfloat16"),
        (NEW, {"bf16": "full"}, "float32", "bfloat16"),
        (NEW, {"float32": True}, "float32", None),
        (NEW, {"fp16": True}, "float32", "float16"),
        (NEW, {"float16": True}, "float16", None),
        (OLD, {}, "float32", None),
        (MPS, {}, "float32", None),
    ],
)
def test_precision_follows_the_config_and_the_machine(
    hardware: Hardware, values: dict[str, Any], dtype: str, autocast: str | None
) -> None:
    resolved = run(hardware, **values)
    assert (resolved.dtype, resolved.autocast_dtype) == (dtype, autocast)


def test_what_was_chosen_is_explained() -> None:
    assert run(CPU).choices["bf16"].startswith("auto -> float32: this CPU has no bfloat16 arithmetic")
    assert "this CPU multiplies bfloat16 in hardware, faster" in run(Hardware("cpu", bf16=True)).choices["bf16"]
    assert run(NEW).choices["bf16"] == "auto -> mixed precision in bfloat16: H100 computes in it"
    assert "T4 has no bfloat16" in run(OLD).choices["bf16"]
    assert "bf16" not in run(NEW, bf16=True).choices
    assert run(CPU, chunked_cross_entropy=False).choices["chunked_cross_entropy"].startswith("false -> whet's own head")
    assert (
        "flash attention runs on CUDA alone"
        in run(CPU, attn_implementation="flash_attention_2").choices["attn_implementation"]
    )


@pytest.mark.parametrize(
    ("hardware", "asked", "chosen"),
    [
        (CPU, None, "auto"),
        (CPU, "eager", "eager"),
        (CPU, "flash_attention_2", "auto"),
        (NEW, "flash_attention_2", "flash_attention_2"),
        (NEW, "flash", "flash_attention_2"),
        (CPU, "flash3", "auto"),
        (CPU, "sdp", "sdpa"),
        (NEW, "xformers", "auto"),
        (NEW, "auto", "auto"),
        (NEW, "org/kernel", "org/kernel"),
    ],
)
def test_attention_that_cannot_run_here_is_left_to_choose(hardware: Hardware, asked: str | None, chosen: str) -> None:
    trusted = asked is not None and "/" in asked
    assert run(hardware, attn_implementation=asked, trust_remote_code=trusted).attn_implementation == chosen


@pytest.mark.parametrize(
    ("values", "world_size", "accumulation", "rows"),
    [
        ({}, 1, 1, 1),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 4}, 1, 4, 8),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 4}, 2, 4, 16),
        ({"micro_batch_size": 2, "batch_size": 16}, 1, 8, 16),
        ({"micro_batch_size": 2, "batch_size": 16}, 4, 2, 16),
    ],
)
def test_a_batch_is_the_product_of_its_parts(
    values: dict[str, Any], world_size: int, accumulation: int, rows: int
) -> None:
    resolved = run(Hardware("cpu", world_size=world_size), **values)
    assert (resolved.gradient_accumulation_steps, resolved.global_batch_size) == (accumulation, rows)
    assert resolved.micro_batch_size * accumulation * world_size == rows


def test_a_batch_that_the_processes_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        run(Hardware("cpu", world_size=3), batch_size=8, micro_batch_size=2)
    assert str(error.value) == (
        "batch_size: batch_size is 8, and one pass takes 6 rows (micro_batch_size 2 on 3 processes) -> "
        "write a multiple of 6"
    )


@pytest.mark.parametrize(
    ("values", "trackers"),
    [
        ({}, ()),
        ({"wandb_project": "p"}, ("wandb",)),
        ({"wandb_project": "p", "use_wandb": False}, ()),
        ({"wandb_project": "p", "wandb_mode": "disabled"}, ()),
        ({"use_tensorboard": True, "mlflow_experiment_name": "e"}, ("tensorboard", "mlflow")),
        ({"use_mlflow": True, "use_wandb": True}, ("wandb", "mlflow")),
    ],
)
def test_a_tracker_is_used_when_it_is_asked_for(values: dict[str, Any], trackers: tuple[str, ...]) -> None:
    assert run(CPU, **values).report_to == trackers


def test_no_gradient_is_clipped_where_none_is_left() -> None:
    lomo = run(optimizer="lomo")
    assert lomo.max_grad_norm == 0
    assert lomo.choices["max_grad_norm"].startswith("1 -> 0: lomo has changed the weights")
    assert run(optimizer="sgd").max_grad_norm == 1


def test_what_is_not_written_follows_from_what_is() -> None:
    resolved = run(CPU, sequence_len=64, micro_batch_size=3, sample_packing=True)
    assert (resolved.eval_sequence_len, resolved.eval_batch_size, resolved.eval_sample_packing) == (64, 3, True)
    assert run(CPU, sample_packing=True, eval_sample_packing=False).eval_sample_packing is False
    assert (resolved.method, resolved.prepared_path, resolved.num_proc) == ("sft", "last_run_prepared", 2)
    assert dict(resolved.gradient_checkpointing_kwargs) == {"use_reentrant": False}
    quantised = {"load_in_4bit": True, **LORA}
    assert [
        run(CPU, **values).quantization for values in ({}, quantised, {**quantised, "bnb_4bit_quant_type": "fp4"})
    ] == [
        "none",
        "nf4",
        "fp4",
    ]
    assert run(CPU, load_in_8bit=True, **LORA).quantization == "int8"
    assert run(CPU, chat_template_jinja="{{ messages }}").chat_template == "jinja"
    assert run(CPU).chat_template == "tokenizer_default"


def test_a_resolved_run_cannot_be_written_to() -> None:
    resolved = run()
    with pytest.raises(FrozenInstanceError):
        resolved.seed = 1  # type: ignore[misc]  # the law under test
    with pytest.raises(TypeError):
        resolved.choices["bf16"] = "x"  # type: ignore[index]  # the law under test

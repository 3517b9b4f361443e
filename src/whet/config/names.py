"""Names that live in registries of later layers, as literal tables.

config may not import training or data, and a wrong name must be an error of the config, beside all others. A contract
test asserts that each table equals its registry.
"""

from __future__ import annotations

OPTIMIZERS = (
    "adafactor",
    "adagrad",
    "adalomo",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "adamw_torch",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "adamw_torch_fused",
    "adan",
    "ademamix",
    "ademamix_8bit",
    "adopt_adamw",
    "ao_adamw_4bit",
    "ao_adamw_8bit",
    "ao_adamw_fp8",
    "apollo_adamw",
    "came_pytorch",
    "dion",
    "flash_adam",
    "flash_adamw",
    "flash_lion",
    "flash_sgd",
    "flash_sgdw",
    "galore_adafactor",
    "galore_adamw",
    "galore_adamw_8bit",
    "grokadamw",
    "lion",
    "lion_32bit",
    "lion_8bit",
    "lomo",
    "mars",
    "muon",
    "optimi_adamw",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_32bit",
    "rmsprop_bnb_8bit",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "sgd",
    "sinkgd",
    "soap",
    "stable_adamw",
)
"""Names of `optimizer` that train; `whet.config.optimizers` says what each needs."""

_LAYERWISE = (
    "the layer-wise form keeps its state outside of checkpoints, so a resumed run would start with none",
    "write the name without _layerwise",
)

OPTIMIZERS_REFUSED: dict[str, tuple[str, str]] = {
    "adamw_anyprecision": (
        "it comes from torchdistx, which PyPI does not have",
        "write bfloat16: true with optimi_adamw, whose Kahan summation does the same",
    ),
    "adamw_apex_fused": (
        "it comes from NVIDIA Apex, which PyPI does not have; PyTorch has a fused Adam of its own",
        "write adamw_torch_fused",
    ),
    "adamw_torch_npu_fused": ("it runs on Ascend NPUs alone, and whet on CPU, CUDA and MPS", "write adamw_torch_fused"),
    "adamw_torch_xla": ("it runs on XLA devices alone, and whet on CPU, CUDA and MPS", "write adamw_torch_fused"),
    "apollo_adamw_layerwise": _LAYERWISE,
    "galore_adafactor_layerwise": _LAYERWISE,
    "galore_adamw_8bit_layerwise": _LAYERWISE,
    "galore_adamw_layerwise": _LAYERWISE,
    "grokfast": (
        "Grokfast is a filter of gradients that goes with any optimizer",
        "write grokfast_alpha: 0.98 beside the optimizer of your choice",
    ),
    "q_galore_adamw8bit": (
        "q-galore-torch 1.0 runs with the bitsandbytes of its day alone, unless it is patched",
        "write galore_adamw_8bit",
    ),
}
"""Other optimizers of Axolotl -> why they are not here, and what to write instead."""

SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_warmup_with_min_lr",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "greedy",
    "inverse_sqrt",
    "linear",
    "one_cycle",
    "polynomial",
    "reduce_lr_on_plateau",
    "rex",
    "warmup_stable_decay",
)
"""Names of `lr_scheduler`: those of transformers, one_cycle and rex."""
FOLLOW_EVALUATIONS = frozenset({"reduce_lr_on_plateau", "greedy"})
"""Schedulers that move when an evaluation is done; nobody knows their rates before."""

ADAPTERS = ("lora", "qlora")
METHODS = ("dpo",)
METHODS_PREPARED = ("ebft", "gdpo", "grpo", "ipo", "kto", "orpo", "simpo")
"""Methods whose data can be prepared and looked at; training with them is refused."""
METHODS_NOT_YET = ("bco", "cpo")

ATTENTION = ("auto", "eager", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa", "whet_documents")
"""Names of `attn_implementation`; a kernel of the hub ("org/name") is another."""
FLASH_ATTENTION = frozenset({"flash_attention_2", "flash_attention_3"})
ATTENTION_SHORT = {
    "flash": "flash_attention_2",
    "flash2": "flash_attention_2",
    "flash3": "flash_attention_3",
    "flex": "flex_attention",
    "sdp": "sdpa",
}
ATTENTION_MAPPED = {
    "xformers": "PyTorch has the same memory-efficient attention inside, for each document by itself",
}
"""Names that are accepted and computed by what whet chooses -> why that is the same."""
ATTENTION_REFUSED = {
    "fp8": "it rounds queries and keys to 8 bits",
    "sage": "it rounds queries and keys to 8 bits, and was made for inference: it has no backward pass",
}
"""Names whose numbers are others -> why they are not computed."""

COMPILE_OPTIONS = (
    "coordinate_descent_tuning",
    "coordinate_descent_check_all_directions",
    "shape_padding",
    "epilogue_fusion",
    "max_autotune_gemm",
    "fx_graph_cache",
    "assume_aligned_inputs",
    "comprehensive_padding",
    "decompose_mem_bound_mm",
    "triton.cudagraphs",
)
"""Keys of `torch_compile_options`: those of inductor that change speed alone."""

STYLED_TYPES = (
    "alpaca",
    "alpaca_chat",
    "alpaca_chat.load",
    "alpaca_chat.load_camel_ai",
    "alpaca_chat.load_concise",
    "alpaca_chat.load_no_prompt",
    "alpaca_chat.load_qa",
    "alpaca_instruct",
    "alpaca_instruct.load",
    "alpaca_instruct.load_no_prompt",
    "alpaca_w_system",
    "alpaca_w_system.load",
    "alpaca_w_system.load_chat",
    "alpaca_w_system.load_instruct",
    "alpaca_w_system.load_open_orca",
    "alpaca_w_system.load_open_orca_chatml",
    "concisechoice",
    "explainchoice",
    "gpteacher",
    "jeopardy",
    "oasst",
    "orcamini",
    "reflection",
    "summarizetldr",
)
"""Types of instructions; `:style` may stand behind each."""
STYLES = ("chat", "chatml", "instruct", "phi")

DATASET_TYPES = (
    *STYLED_TYPES,
    "_synthetic",
    "chat_template",
    "chat_template.default",
    "completion",
    "context_qa",
    "context_qa.load",
    "context_qa.load_404",
    "context_qa.load_v2",
    "creative_acr",
    "creative_acr.load_answer",
    "creative_acr.load_critique",
    "creative_acr.load_revise",
    "input_output",
    "llama2_chat",
    "messages.chat",
    "metharme",
    "pretrain",
    "prompt_completion",
    "pygmalion",
    "sharegpt",
)
"""Values of a dataset's `type`; no type at all means rows of token ids."""

DATASET_TYPES_NOT_YET = ("axolotl.integrations.kd.chat_template",)
"""Types of Axolotl that are not read."""

PREFERENCE_TYPES = (
    "chat_template",
    "chat_template.argilla",
    "chat_template.argilla_chat",
    "chat_template.default",
    *(
        f"{style}.{name}"
        for style in ("chatml", "llama3")
        for name in ("argilla", "argilla_chat", "default", "icr", "intel", "prompt_pairs", "ultra")
    ),
    "passthrough.default",
    "prompt_pairs",
    "zephyr.nectar",
)
"""Values of `type` under `rl: dpo`, ipo and simpo; no type at all means prompt, chosen and rejected columns."""

UNPAIRED_TYPES = (
    *(
        f"{style}.{name}"
        for style in ("chatml", "llama3")
        for name in ("argilla", "argilla_chat", "intel", "prompt_pairs", "ultra")
    ),
    "passthrough.default",
    "prompt_completion",
)
"""Values of `type` under `rl: kto`; no type at all means prompt, completion and label columns."""

ODDS_TYPES = (
    "chat_template",
    "chat_template.argilla",
    "chat_template.load",
    "passthrough.default",
    "prompt_pairs",
)
"""Values of `type` under `rl: orpo`; no type as under `rl: dpo`."""

REWARD_TYPES = ("bradley_terry.chat_template", "bradley_terry.llama3", "prompt_pairs")
"""Values of `type` under `reward_model: true`; no type as under `rl: dpo`."""

STEPS_TYPES = ("stepwise_supervised",)
"""Values of `type` under `process_reward_model: true`, and what no type means."""

PROMPT_TYPES = ("passthrough.default", "prompt")
"""Values of `type` under `rl: grpo` and gdpo; no type at all means a prompt column."""

FEATURE_TYPES = (
    *(f"ebft_chat_multiturn.{name}" for name in ("transform", "transform_all_turns", "transform_last_turn")),
    "ebft_opencode.transform",
    "ebft_pretrain.transform",
    *(
        f"ebft_reasoning.{name}"
        for name in ("transform", "transform_answer_only", "transform_strided", "transform_strided_answer_only")
    ),
    "ebft_strided_chat.transform",
    "ebft_strided_structured.transform",
    "passthrough.default",
    "prompt",
)
"""Values of `type` under `rl: ebft`; no type at all means prompt and ground_truth columns."""

TYPES: dict[str, tuple[str, ...]] = {
    "supervised": DATASET_TYPES,
    "preference": PREFERENCE_TYPES,
    "unpaired": UNPAIRED_TYPES,
    "odds": ODDS_TYPES,
    "reward": REWARD_TYPES,
    "steps": STEPS_TYPES,
    "prompts": PROMPT_TYPES,
    "features": FEATURE_TYPES,
}
"""Kind of rows (whet.config.tasks) -> its types."""

CHAT_TEMPLATES = (
    "alpaca",
    "chatml",
    "cohere",
    "deepseek_v2",
    "deepseek_v3",
    "exaone",
    "gemma",
    "gemma3",
    "gemma3n",
    "llama2",
    "llama3",
    "llama4",
    "metharme",
    "mistral_v1",
    "mistral_v2v3",
    "mistral_v3_tekken",
    "mistral_v7_tekken",
    "phi_3",
    "phi_35",
    "qwen3",
    "qwen_25",
)
"""Templates that whet ships. Beside them: tokenizer_default, tokenizer_default_fallback_<name>, jinja."""
_UNSEEN = "remove it: no template sees it, for transformers' apply_chat_template takes it"
TEMPLATE_VARIABLES_TAKEN: dict[str, str] = {
    "messages": "put messages into the rows",
    "tools": "put tools into the rows (field_tools)",
    "documents": "put their texts into the messages",
    "add_generation_prompt": "remove it: training asks for none, and chat always does",
    "chat_template": "write chat_template beside chat_template_kwargs",
    **dict.fromkeys(
        (
            "continue_final_message",
            "conversation",
            "conversations",
            "max_length",
            "padding",
            "return_assistant_tokens_mask",
            "return_dict",
            "return_tensors",
            "sanitize_control_tokens",
            "self",
            "tokenize",
            "tokenizer_kwargs",
            "truncation",
        ),
        _UNSEEN,
    ),
}
"""Names that no variable in `chat_template_kwargs` can have -> what to do instead."""
CHAT_TEMPLATES_NOT_YET = (
    "aya",
    "command_a",
    "command_a_rag",
    "command_a_tool_use",
    "exaone4",
    "falcon_h1",
    "gemma4",
    "gemma4_unified",
    "jamba",
    "llama3_2_vision",
    "llava",
    "nemotron_h",
    "pixtral",
    "qwen2_vl",
    "qwen3_5",
)

LORA_STARTS = ("gaussian", "orthogonal")
"""Names of `peft_init_lora_weights`."""
LORA_STARTS_NOT_YET = ("corda", "eva", "loftq", "lora_ga", "mica", "olora", "pissa")
"""These change the base's weights, or need data or a second config to start from; pissa_niter_<n> is another."""

DPO_LOSSES = (
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "discopop",
    "exo_pair",
    "hinge",
    "ipo",
    "nca_pair",
    "robust",
    "sft",
    "sigmoid",
    "sigmoid_norm",
    "sppo_hard",
)
"""Names in `dpo_loss_type`, as TRL knows them."""

FEW_BITS: dict[str, tuple[str | None, ...]] = {
    "int8": (None, "int8"),
    "int4": (None, "int8", "fp8"),
    "fp8": (None, "fp8"),
    "nvfp4": (None, "nvfp4"),
    "mxfp4": ("mxfp4",),
}
"""Numbers of weights in `qat` and `quantization` -> those of activations that go with them (None: as they are)."""

FEW_BITS_GROUPS: dict[tuple[str, str | None], int] = {
    ("int4", "fp8"): 128,
    ("nvfp4", None): 16,
    ("nvfp4", "nvfp4"): 16,
    ("mxfp4", "mxfp4"): 32,
}
"""(weights, activations) whose format says how many weights share a scale."""


def few_bits_name(written: str | None) -> str | None:
    """One name for the three spellings of 8-bit floats.

    >>> few_bits_name("float8_e4m3fn"), few_bits_name("int4"), few_bits_name(None)
    ('fp8', 'int4', None)
    """
    return "fp8" if written in ("float8", "float8_e4m3fn") else written

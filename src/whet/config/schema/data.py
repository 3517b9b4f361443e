"""Where rows come from, how each becomes a sample, and which are kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, Secret

from whet.config.schema.base import Natural, NaturalNumber, Positive, PositiveNumber, PositiveShare, Section

When = Literal["all", "turn", "last", "none"]


class PromptFormat(Section):
    """A dataset's `type` as a mapping: a prompt of one's own."""

    system_prompt: str | None = Field(None, description="System text of rows that have none.")
    system_format: str | None = Field(None, description="Text around a system text; `{system}` by default.")
    format: str | None = Field(None, description="The prompt; `{instruction} {input} ` by default.")
    no_input_format: str | None = Field(
        None, description="The prompt of rows without an input; `{instruction} ` by default."
    )
    prompt_format: str | None = Field(None, description="The prompt, with {prompt} and {system}.")
    chosen_format: str | None = Field(None, description="The preferred answer; `{chosen}` by default.")
    rejected_format: str | None = Field(None, description="The other answer; `{rejected}` by default.")
    completion_format: str | None = Field(None, description="The answer; `{completion}` by default.")
    field_system: str | None = Field(None, description="Column of the system text; `system` by default.")
    field_instruction: str | None = Field(None, description="Column of {instruction}; `instruction` by default.")
    field_input: str | None = Field(None, description="Column of {input}; `input` by default.")
    field_output: str | None = Field(None, description="Column of the answer; `output` by default.")
    field_prompt: str | None = Field(None, description="Column of {prompt}; `prompt` by default.")
    field_chosen: str | None = Field(None, description="Column of {chosen}; `chosen` by default.")
    field_rejected: str | None = Field(None, description="Column of {rejected}; `rejected` by default.")
    field_completion: str | None = Field(None, description="Column of {completion}; `completion` by default.")
    field_label: str | None = Field(None, description="Column that says if the answer is good; `label` by default.")


class DatasetConfig(Section):
    """One row of `datasets` or `test_datasets`."""

    path: str = Field(min_length=1, description="File, folder, glob, URL (s3://, https:// ...) or hub id.")
    split: str | None = Field(None, description="Split to read; `train` by default.")
    type: str | PromptFormat | None = Field(
        None,
        description="How a row becomes a sample: a name, a prompt of one's own as a mapping, or a function of one's "
        "own (`my_file.py:my_row`); empty for rows that are already tokens.",
    )
    input_transform: str | None = Field(
        None, description="Function of one's own that each row goes through first, for `type: messages.chat`."
    )
    name: str | tuple[str, ...] | None = Field(
        None, description="Configuration of a hub dataset, or several, read one after the other."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub dataset.")
    data_files: str | tuple[str, ...] | None = Field(None, description="Files to read inside a folder or hub dataset.")
    ds_type: Literal["json", "csv", "parquet", "arrow", "text"] | None = Field(
        None, description="Format of a local file; told from its ending by default."
    )
    shards: Positive | None = Field(None, description="Cut the rows into this many parts and read one of them.")
    shards_idx: Natural | None = Field(None, description="Number of the part to read, from 0.")
    skip: Natural = Field(0, description="Rows to pass over at the beginning.")
    storage_options: Secret[dict[str, Any]] | None = Field(
        None, description="Options of the file system of a URL, as fsspec takes them; never shown or recorded."
    )
    weight: PositiveNumber | None = Field(None, description="Share of the mix, relative to the other rows' weights.")
    epochs: PositiveNumber | None = Field(None, description="How often an epoch shows these rows; 1 by default.")
    field: str | None = Field(None, description="Column of the text, for `type: completion`; `text` by default.")
    text_column: str | None = Field(None, description="As `field`, for `type: pretrain`.")
    field_messages: str | None = Field(None, description="Column of the messages; `messages` by default.")
    field_tools: str | None = Field(None, description="Column of the tools offered; `tools` by default.")
    field_system: str | None = Field(None, description="Column of a system prompt; `system` by default.")
    field_thinking: str | None = Field(None, description="Key of a message's reasoning; reasoning_content by default.")
    field_chosen: str | None = Field(None, description="Column of the preferred answer; `chosen` by default.")
    field_rejected: str | None = Field(None, description="Column of the other answer; `rejected` by default.")
    template_thinking_key: str | None = Field(None, description="Key under which the template expects the reasoning.")
    message_field_role: str | None = Field(None, description="A message's role; as message_property_mappings.role.")
    message_field_content: str | None = Field(
        None, description="Key of a message's content (message_property_mappings.content)."
    )
    message_property_mappings: dict[str, str] | None = Field(
        None, description="Name in the template -> key in the row's messages."
    )
    message_field_training: str | None = Field(None, description="Key of a message that says whether it is trained.")
    message_field_training_detail: str | None = Field(
        None, description="Key of a message that lists which characters are trained."
    )
    roles: dict[str, tuple[str, ...]] | None = Field(None, description="Role in the template -> names in the rows.")
    roles_to_train: tuple[str, ...] | None = Field(None, description="Roles that are trained; `assistant` by default.")
    train_on_eos: When | None = Field(None, description="Which end-of-text tokens are trained; `turn` by default.")
    train_on_eot: When | None = Field(None, description="Which end-of-turn tokens are trained; as train_on_eos.")
    train_on_inputs: bool | None = Field(None, description="As the top-level key, for this dataset alone.")
    drop_system_message: bool = Field(False, description="Leave out the rows' system messages.")
    split_thinking: bool = Field(False, description="Take <think>...</think> out of the content, as reasoning.")
    explode_turns: bool = Field(False, description="Make each answer its own sample, rendered as when it is given.")
    keep_history: bool = Field(False, description="Accept a template that writes earlier turns otherwise.")
    chat_template: str | None = Field(None, description="Template for this dataset; the top-level one by default.")
    chat_template_jinja: str | None = Field(None, description="Jinja text or file, with `chat_template: jinja`.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables given to the template.")
    conversation: str | None = Field(None, description="Prompt style of the sharegpt and alpaca_chat types.")
    step_separator: str | None = Field(None, description="Text after each step of a solution; a new line by default.")
    max_completion_length: Positive | None = Field(None, description="Most tokens of a solution's steps.")
    train_on_last_step_only: bool = Field(False, description="Label the last step of a solution alone.")
    length: Positive | None = Field(None, description="Number of synthetic rows; 1000 by default.")
    sequence_length: Positive | None = Field(None, description="Tokens of a synthetic row; sequence_len by default.")
    min_input_id: Natural | None = Field(None, description="Lowest id of a synthetic row; 100 by default.")
    max_input_id: Positive | None = Field(
        None, description="Ids of a synthetic row are below this; the size of the vocabulary by default."
    )
    seed: Natural | None = Field(None, description="Seed of synthetic rows; the run's by default.")


class Phase(Section):
    """One row of `phases`."""

    share: float = Field(gt=0, le=1, description="Part of each epoch that the phase takes; all of them make 1.")
    weights: dict[str, NaturalNumber] = Field(
        min_length=1, description="Name of a dataset (`chat` for chat.jsonl) -> its weight; the others are not shown."
    )


class DataSection(Section):
    """Keys about the data."""

    datasets: tuple[DatasetConfig, ...] = Field((), description="What to train on.")
    test_datasets: tuple[DatasetConfig, ...] = Field((), description="What to evaluate on; instead of val_set_size.")
    val_set_size: NaturalNumber = Field(
        0.0, description="Rows set aside for evaluation: a share below 1, or a whole number of rows from 2."
    )
    val_set_from: Literal["random", "tail"] = Field(
        "random", description="Draw the rows of val_set_size by seed and content, or take the last ones."
    )
    shuffle_merged_datasets: bool = Field(True, description="Shuffle all rows together.")
    curriculum_sampling: bool = Field(False, description="As shuffle_merged_datasets: false.")
    order: Literal["shuffled", "sequential"] = Field(
        "shuffled", description="Show the datasets together, or one after the other, each shuffled."
    )
    mixing_by: Literal["tokens", "samples"] = Field("tokens", description="What the mix's shares are shares of.")
    mixing_temperature: PositiveNumber | None = Field(
        None, description="Shares by size^(1/T): 1 as the sizes are, above it more even."
    )
    phases: tuple[Phase, ...] | None = Field(None, description="Parts of each epoch, each with its own mix.")
    dataset_shard_num: Positive | None = Field(None, description="Cut all training rows into this many parts.")
    dataset_shard_idx: Natural | None = Field(None, description="Number of the part of all training rows, from 0.")
    shuffle_before_merging_datasets: bool = Field(False, description="Shuffle each dataset before they are joined.")
    dataset_prepared_path: str | None = Field(
        None, description="Folder of prepared sets; `last_run_prepared` by default."
    )
    dataset_num_proc: Positive | None = Field(None, description="Processes that prepare data; the cores by default.")
    prepare_with: Literal["processes", "ray"] = Field(
        "processes", description="Prepare on the cores of this machine, or on a Ray cluster."
    )
    streaming: bool = Field(
        False, description="Read the datasets while the model trains; nothing is prepared or written. Needs max_steps."
    )
    streaming_multipack_buffer_size: Positive = Field(
        10_000, description="Samples of a stream that are held, shuffled and packed together."
    )
    dataset_exact_deduplication: bool = Field(False, description="Keep one of rows that are exactly equal.")
    dataset_near_deduplication: PositiveShare | None = Field(
        None, description="Keep one of rows that share this much of their text (Jaccard); 0.8 is usual, off by default."
    )
    eval_overlap: Literal["report", "drop", "raise"] = Field(
        "report", description="What becomes of evaluation rows that are also in training: told, dropped, or an error."
    )
    sequence_len: Positive = Field(512, description="Most tokens in a sample, and in a pack.")
    eval_sequence_len: Positive | None = Field(None, description="As sequence_len, in evaluation.")
    excess_length_strategy: Literal["drop", "truncate", "raise", "split"] = Field(
        "drop", description="What becomes of a sample with more tokens than sequence_len."
    )
    min_sample_len: Natural = Field(2, description="Samples with fewer tokens are dropped.")
    train_on_inputs: bool = Field(False, description="Train on the prompt as well as the answer.")
    dataloader_num_workers: Natural | None = Field(None, description="Processes that build batches.")
    dataloader_prefetch_factor: Positive | None = Field(None, description="Batches each worker builds ahead.")
    dataloader_pin_memory: bool | None = Field(None, description="Build batches in page-locked memory.")
    on_bad_row: Literal["raise", "drop"] = Field(
        "raise", description="A row that cannot be used ends the preparation, or is dropped and counted."
    )

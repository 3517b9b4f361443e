"""The tokenizer, its special tokens, and the embedding rows they need."""

from __future__ import annotations

from pydantic import Field

from whet.config.schema.base import Section


class SpecialTokens(Section):
    """Tokens with a role, by name."""

    bos_token: str | None = Field(None, description="Begins a text.")
    eos_token: str | None = Field(None, description="Ends a text; generation stops at it.")
    pad_token: str | None = Field(None, description="Fills short rows of a batch.")
    unk_token: str | None = Field(None, description="Stands for what the vocabulary cannot spell.")
    additional_special_tokens: tuple[str, ...] | None = Field(None, description="Further special tokens, no role.")


class TokenizerSection(Section):
    """Keys about the tokenizer."""

    tokenizer_config: str | None = Field(None, description="Folder or hub id of the tokenizer; base_model by default.")
    tokenizer_type: str | None = Field(None, description="Tokenizer class of transformers; AutoTokenizer by default.")
    tokenizer_use_fast: bool = Field(True, description="Use the fast tokenizer; labels need its character offsets.")
    tokenizer_legacy: bool | None = Field(None, description="The `legacy` switch of Llama and T5 tokenizers.")
    special_tokens: SpecialTokens | None = Field(None, description="Special tokens to set or replace, by role.")
    tokens: tuple[str, ...] | None = Field(None, description="Tokens to add to the vocabulary.")
    added_tokens_overrides: dict[int, str] | None = Field(
        None, description="Reserved token ids and the new text of each, such as {128011: <|tool|>}."
    )
    resize_token_embeddings_to_32x: bool = Field(
        False, description="Round the number of embedding rows up to a multiple of 32 when tokens are added."
    )
    mean_resizing_embeddings: bool = Field(
        False, description="Start added embedding rows from the mean of the old ones, not at random."
    )
    shrink_embeddings: bool = Field(False, description="Cut embedding rows beyond the tokenizer's vocabulary.")

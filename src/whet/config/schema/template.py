"""The chat template that turns messages into text."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from whet.config.schema.base import Section


class TemplateSection(Section):
    """Keys about the chat template."""

    chat_template: str | None = Field(
        None, description="Name of a shipped template, `tokenizer_default` (used when empty) or `jinja`."
    )
    chat_template_jinja: str | None = Field(None, description="Jinja text, or a file that holds it.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables given to the template.")
    eot_tokens: tuple[str, ...] | None = Field(None, description="Tokens that end a turn, beside the eos token.")
    default_system_message: str | None = Field(
        None, description="System message of conversations without one (also written default_system_prompt)."
    )

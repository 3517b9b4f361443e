"""Chat templates: the shipped ones, how one is chosen, and how a conversation is rendered with its labels."""

"""Limbic: an embedded chat agent that feels the conversation."""

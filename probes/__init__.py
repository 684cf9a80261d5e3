"""Scripted conversations, and the checks that a healthy installation passes."""

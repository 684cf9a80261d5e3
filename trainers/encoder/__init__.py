"""The sentence encoder that the project builds on: its network, and its export without PyTorch."""

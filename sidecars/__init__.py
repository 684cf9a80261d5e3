"""Small model servers, each a process of its own, supervised by the brain."""

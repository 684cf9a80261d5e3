"""Model weights that install with the project, a folder each, with its card and manifest."""

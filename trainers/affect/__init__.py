"""The affect head: its data, its labels, its training."""

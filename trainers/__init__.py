"""Offline training and data curation. Nothing in the live runtime imports this package."""

"""Trainers of the LVM: predicting the next sentence vector from the last five."""

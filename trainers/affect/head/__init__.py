"""The affect head: network, training, measuring and export.

``prepare`` makes one array file of a built data set, ``network`` is the model, ``losses`` and
``train`` teach it, ``measure`` holds every figure, ``baselines`` what it must beat, ``export`` writes
the folder that the sidecar serves.
"""

"""The affect head: network, training, measuring and export.

``prepare`` makes one array file of a built data set, ``network`` is the model, ``losses`` and
``train`` teach it, ``measure`` holds every figure, ``export`` writes the folder that the sidecar
serves.
"""

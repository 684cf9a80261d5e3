"""The generative affect head: a LoRA on a small chat model that writes scores and why, as JSON.

``examples`` turns labelled rows into token sequences, ``train`` fits the adapter, ``gguf_files``
writes what llama.cpp loads, ``quantise`` makes it smaller, ``export`` does all of that with its
gates, ``compare`` measures it beside the encoder head.
"""

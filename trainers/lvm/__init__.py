"""Next-sentence-vector models: vector stores, training, validation and export."""

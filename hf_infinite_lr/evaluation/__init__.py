"""What a model is worth beyond the loss on its stream."""

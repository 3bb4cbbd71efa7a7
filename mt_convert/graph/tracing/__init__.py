"""From a model that `torch.export` can follow to a graph of layers and operators."""

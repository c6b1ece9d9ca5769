"""Many processes as one: process groups, gathering with gradient, layouts of the work, checkpoints.

torch.distributed under torchrun is the engine; there is no launcher here. At world size 1 every function is the
identity, so that no caller asks "are we many?". What depends on how a model is laid out over processes belongs to one
class, ``layout.Layout``.
"""

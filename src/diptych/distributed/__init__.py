"""Many processes as one: who we are, gathering with gradient, wrapping for training, checkpoints that survive.

torch.distributed under torchrun is the engine; there is no launcher here. At world size 1 every function is the
identity, so that no caller asks "are we many?".
"""

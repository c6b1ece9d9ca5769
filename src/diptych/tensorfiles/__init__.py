"""Safe readers of tensor files: safetensors, torch's zip and legacy pickles, TorchScript archives, PaddlePaddle's pickles.

No pickle is ever unpickled by Python's own machine: ``SafeUnpickler`` builds plain data and refuses the rest. This package
knows no architecture and no parameter name; what the tensors mean is decided in ``diptych.weights``.
"""

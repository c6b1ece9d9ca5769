"""The conformance suite: what an accelerator must do for this toolkit to work on it, operator by operator.

``diptych selftest`` prints it. Checks of correctness against the CPU in float64, not of speed.
"""

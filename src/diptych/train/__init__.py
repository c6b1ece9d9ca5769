"""Training as an importable function: ``train.loop.train(config)``.

The loop on one screen, the step, the optimizer, the schedule, the run's folder, changes to models. It names no loss, device,
data format or parallel scheme.
"""

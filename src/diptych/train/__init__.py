"""Training as an importable function: ``train.loop.train(config)``.

The loop on one screen, the step, the optimiser, the schedule, the run's folder. No loss name, device name, data format
or parallel scheme stands here.
"""

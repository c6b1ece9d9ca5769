#!/bin/bash
# One training run on several machines without a scheduler: start this on each of them, with the same arguments.
#
#   HEAD=first-machine MACHINES=2 examples/torchrun/train.sh --train-data pairs.csv --model ViT-B-32 --output runs/a
#
# HEAD is the name of one of the machines, reachable from the others at PORT. PROCESSES of each machine. Arguments are those of
# diptych train. A process that is killed is started again with all others, and --resume auto continues the newest whole
# checkpoint; so does the same command after a reboot. The folder of the run must be on a disk that all machines share.
set -euo pipefail

exec python -m torch.distributed.run \
    --nnodes "${MACHINES:?how many machines}" --nproc_per_node "${PROCESSES:-8}" --max-restarts "${RESTARTS:-3}" \
    --shutdown-timeout 120 --rdzv_id "${RUN:-diptych}" --rdzv_backend c10d --rdzv_endpoint "${HEAD:?the first machine}:${PORT:-29400}" \
    -m diptych train --resume auto "$@"

#!/usr/bin/env bash
# Stage 4 of RECIPE into RUN:  RECIPE=tiny RUN=runs/mine sbatch slurm/stage4.sh
#SBATCH --job-name=fovea-stage4 --output=%x-%j.out --open-mode=append
#SBATCH --nodes=2 --exclusive --mem=0
#SBATCH --requeue --signal=USR1@300
STAGE=4
# shellcheck source=slurm/train.sh
source "${FOVEA_SLURM:-slurm}/train.sh"

#!/usr/bin/env bash
# Build the dataset of RUN from DATA_RECIPE, as arrays on CURATE_PARTITION. Words behind are overrides.
#   DATA_RECIPE=obelics-like INPUTS=/shared/crawl RUN=runs/mine sbatch slurm/curate.sh
# This job only submits and waits; on a login node `bash slurm/curate.sh` does the same.
#SBATCH --job-name=fovea-curate --output=%x-%j.out --open-mode=append
#SBATCH --nodes=1 --ntasks=1 --requeue
set -uo pipefail
# shellcheck source=slurm/env.sh
source "${FOVEA_SLURM:-slurm}/env.sh"

# What is asked for here is of the arrays: no GPU, no whole nodes.
unset SBATCH_GPUS_PER_NODE SBATCH_EXCLUSIVE SBATCH_TIMELIMIT
slurm=(--executor slurm --slurm partition="${CURATE_PARTITION:-$(sinfo --noheader --format=%R | head -n 1)}")
[[ -z ${SBATCH_ACCOUNT:-} ]] || slurm+=(--slurm account="$SBATCH_ACCOUNT")
read -ra options <<<"${CURATE_OPTIONS:-}" # further words, such as --slurm time=08:00:00
fovea data build "$DATA_RECIPE" --out "$RUN/data" ${INPUTS:+--inputs "$INPUTS"} "${slurm[@]}" "${options[@]}" "$@" \
  && fovea data verify "$RUN/data"
code=$?
[[ $code != 75 || -z ${SLURM_JOB_ID:-} ]] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"

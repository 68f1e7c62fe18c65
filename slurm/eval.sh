#!/usr/bin/env bash
# Evaluate a finished stage of RECIPE in RUN, and hold it to its gate:  STAGE=instruct sbatch slurm/eval.sh
# SUITE: heldout, or a name under evaluation.suites of the recipe; several with blanks between them.
#SBATCH --job-name=fovea-eval --output=%x-%j.out --open-mode=append
#SBATCH --nodes=1 --requeue
set -uo pipefail
# shellcheck source=slurm/env.sh
source "${FOVEA_SLURM:-slurm}/env.sh"

read -ra suites <<<"${SUITE:-heldout}"
for suite in "${suites[@]}"; do
  fovea_once eval "$RUN/$STAGE" --suite "$suite" || exit
done
fovea_once report "$RUN" || exit
# Code 3 where a threshold is not reached: what waits for this job is cancelled.
fovea_once gate "$RECIPE" --run "$RUN" --stage "$STAGE" "$@"

#!/usr/bin/env bash
# Evaluate a finished stage of RECIPE in RUN, and hold it to its gate:  STAGE=instruct sbatch slurm/eval.sh
# SUITE: heldout, or names under evaluation.suites of the recipe, which all ranks of the node answer.
#SBATCH --job-name=fovea-eval --output=%x-%j.out --open-mode=append
#SBATCH --nodes=1 --exclusive --mem=0 --requeue
set -uo pipefail
# shellcheck source=slurm/env.sh
source "${FOVEA_SLURM:-slurm}/env.sh"

SUITE=${SUITE:-heldout}
if [[ -n ${WATCH_LIST:-} ]]; then # a task of the array of `fovea watch --submit`: one checkpoint of its list
  fovea_once watch "$RUN" --suite "$SUITE" --task "$WATCH_LIST" --nproc "$RANKS_PER_NODE"
  exit
fi

read -ra suites <<<"$SUITE"
for suite in "${suites[@]}"; do
  if [[ $suite == heldout ]]; then
    fovea_once eval "$RUN/$STAGE" || exit
  else
    fovea_ranks eval "$RUN/$STAGE" --suite "$suite" || exit
  fi
done
fovea_once report "$RUN" || exit
# Code 3 where a threshold is not reached: what waits for this job is cancelled.
fovea_once gate "$RECIPE" --run "$RUN" --stage "$STAGE" "$@"

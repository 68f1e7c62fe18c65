# shellcheck shell=bash
# What stage1.sh to stage4.sh share: look first, start the ranks, and queue the job again where that helps.
# Words behind the script's name are overrides: sbatch slurm/stage3.sh stages.instruct.lr=1e-4
set -uo pipefail
# shellcheck source=slurm/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# Code 3, in seconds and before any rank starts, where what this stage starts from is not there.
fovea_once gate "$RECIPE" --run "$RUN" --before "$STAGE" --nproc $((SLURM_JOB_NUM_NODES * RANKS_PER_NODE)) "$@" || exit

# TRAIN_OPTIONS: further words for `fovea train`, such as --accept-changed-data.
read -ra options <<<"${TRAIN_OPTIONS:-}"
fovea_ranks train "$RECIPE" --stage "$STAGE" --run "$RUN" "${options[@]}" "$@"
code=$?

# srun gives the highest code of all ranks. Where that says a rank was lost (75) or killed, what the attempt has left
# on record decides: 75, which counts towards 93, or the error that the others followed from.
if ((code == 75 || code > 128 && code != 130 && code != 143)); then # those two: somebody asked for it
  fovea_once gate "$RECIPE" --run "$RUN" --after "$STAGE" "$@"
  code=$?
fi
if ((code == 75)); then # stopped near the time limit with everything saved, or lost a rank: the same job goes on
  echo "train.sh: code 75, job $SLURM_JOB_ID is queued again"
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # Slurm ends this script
fi
# Any other code needs somebody to look. What waits for this job is cancelled, also by 93: restarts led nowhere.
exit "$code"

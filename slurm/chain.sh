#!/usr/bin/env bash
# The whole road of RECIPE into RUN: curation where DATA_RECIPE is set, then the stages, each behind its gate.
#   DATA_RECIPE=obelics-like INPUTS=/shared/crawl RECIPE=align-900m RUN=runs/mine bash slurm/chain.sh
# Run it again at any time: what is done, runs or waits is not submitted twice. --dry-run submits nothing.
set -euo pipefail
# shellcheck source=slurm/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

fovea chain "$RECIPE" --run "$RUN" ${DATA_RECIPE:+--curate "$DATA_RECIPE"} "$@"

# shellcheck shell=bash
# The one file that knows your cluster. Edit it, then `source slurm/env.sh` in the shell that you submit from;
# every job reads it again. What the environment holds already is kept.

# --- What jobs ask for. This goes before the #SBATCH lines of a script; options of sbatch go before both. -----
# export SBATCH_PARTITION=gpu SBATCH_ACCOUNT=my_project SBATCH_QOS=normal
# export SBATCH_GPUS_PER_NODE=8      # none: ranks on CPUs
# export SBATCH_TIMELIMIT=1-00:00:00
# CURATE_PARTITION=cpu               # where the arrays of curate.sh go

# --- Software: Fovea's environment, and a container by one variable. -------------------------------------------
# module load cuda gcc
FOVEA_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$FOVEA_HOME/.venv}
[[ ! -d $VENV ]] || PATH=$VENV/bin:$PATH
# Empty: none. A file *.sif: apptainer. Else an image for pyxis and enroot: a file *.sqsh, or its name.
CONTAINER=${CONTAINER:-}

# --- Paths. RUN must be the same on all nodes; SCRATCH is fast, and may be a node's own. ------------------------
RECIPE=${RECIPE:-tiny}
RUN=${RUN:-runs/$(basename "$RECIPE" .yaml)}
SCRATCH=${SCRATCH:-${TMPDIR:-/tmp}}
export TMPDIR=$SCRATCH

# --- Network. Name the interfaces where NCCL or gloo choose wrong ones. ------------------------------------------
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5
# export NCCL_DEBUG=WARN

# --- Ranks and their launcher: one task a rank. --------------------------------------------------------------------
RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
# A rank that fails ends all others, on every node.
LAUNCH=(srun --wait=60 --kill-on-bad-exit=1)
INSIDE=()
case $CONTAINER in
  '') ;;
  *.sif) INSIDE=(apptainer exec --nv --bind "$PWD,$FOVEA_HOME,$SCRATCH" --pwd "$PWD" "$CONTAINER") ;;
  *)
    # Of a path pyxis wants the whole: what begins with no / it takes for an image's name.
    [[ $CONTAINER != *.sqsh ]] || CONTAINER=$(realpath -m "$CONTAINER")
    LAUNCH+=(--container-image="$CONTAINER" --container-workdir="$PWD"
    --container-mounts="$PWD:$PWD,$FOVEA_HOME:$FOVEA_HOME,$SCRATCH:$SCRATCH")
    ;;
esac

# `fovea ...` once, on the first node of the job.
fovea_once() {
  "${LAUNCH[@]}" --overlap --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${INSIDE[@]}" fovea "$@"
}

# `fovea ...` as every rank of the job. Each task finds its rank and where they meet by itself (trainer/slurm.py).
fovea_ranks() {
  "${LAUNCH[@]}" --ntasks-per-node="$RANKS_PER_NODE" --cpus-per-task=$((SLURM_CPUS_ON_NODE / RANKS_PER_NODE)) \
    "${INSIDE[@]}" fovea "$@"
}

#!/usr/bin/env bash
# A recipe on several machines under Slurm: one task a machine, which starts one process for each of its GPUs.
#
#   sbatch --nodes 2 recipes/slurm.sh recipes/minimind2-8gpu.toml                  # all its stages
#   sbatch --nodes 2 recipes/slurm.sh recipes/minimind2-8gpu.toml --only pretrain  # what stands after the recipe is passed on
#
# Submit it from the folder that the recipe's paths are meant from, on a disk that all machines share. If the job is cut off (time limit, requeue,
# a machine that fails), submit the same line again: it goes on from the last checkpoint, also with another number of machines.
#SBATCH --job-name=minimind
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --output=minimind-%j.log
#SBATCH --requeue
# Two minutes before the time is over each task is told; the run answers with a checkpoint.
#SBATCH --signal=TERM@120
set -euo pipefail

recipe=${1:?usage: sbatch recipes/slurm.sh RECIPE [more flags of "minimind recipe"]}
shift
# Where the processes meet: the first machine of the job, at a port that differs from job to job on a shared machine.
machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 20000))

# NCCL picks the network by itself. Where it picks the wrong one, name it:   export NCCL_SOCKET_IFNAME=eth0
# and where it hangs, let it tell what it does:                              export NCCL_DEBUG=INFO
srun --kill-on-bad-exit=1 "${MINIMIND:-minimind}" recipe "$recipe" --nodes "$SLURM_NNODES" --address "$head:$port" "$@"

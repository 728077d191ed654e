#!/usr/bin/env bash
# LLaVA-1.5-7B: all stages in one job. Submit it from the repository's root; nothing needs editing:
#
#   PLAST_RUN=runs/llava7b PLAST_OVERRIDES="model.path=/models/llava-1.5-7b-hf data.questions=[data/q.jsonl]" \
#     sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 slurm/plast_7b.sh
#
# Nodes, GPUs, time, partition, account, QOS, constraint, memory: sbatch's command line (or its SBATCH_…
# variables). The rest from the environment:
#
#   PLAST_RECIPE        a recipe's name or a YAML file                         (llava15_7b)
#   PLAST_OVERRIDES     section.key=value …, quoted as in a shell where a value holds blanks
#   PLAST_RUN           the run folder, on a file system that all nodes share  (runs/ and the recipe's name)
#   PLAST_STAGES        what plast does, e.g. "collect select"                 (run: all stages)
#   PLAST_NPROC         ranks a node                                           (one for each GPU)
#   PLAST_HOME          this repository                                        (where sbatch was called)
#   PLAST_ENV           the environment's folder, or a script to source        (PLAST_HOME/.venv)
#   PLAST_CONTAINER     instead of PLAST_ENV: an image for pyxis, or a .sif file for apptainer
#   PLAST_MOUNTS        its mounts, FROM:TO,…, besides the current and the run folder
#   PLAST_DOCTOR        0 leaves out the check of the nodes                    (1)
#   PLAST_MAX_RESTARTS  how often the job may start again                      (20)
#   PLAST_MASTER_ADDR, PLAST_MASTER_PORT  where ranks meet                     (first node, from the job's number)
#
# Two minutes before the time limit the ranks save, and the job goes back into the queue until it is done;
# --signal=B:USR2@300 chooses another signal and time. RUN/job/ keeps a script that submits all this again.
#SBATCH --job-name=plast_7b
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
PLAST_RECIPE=${PLAST_RECIPE:-llava15_7b}
# shellcheck source=slurm/job.sh
source "${PLAST_HOME:-$SLURM_SUBMIT_DIR}/slurm/job.sh"

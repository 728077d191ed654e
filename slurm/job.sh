# shellcheck shell=bash
# --- plast job: the copy that the run folder keeps begins here ---
# One srun task on each node; each runs `plast`, which starts that node's ranks with torchrun. When the ranks
# were stopped or failed, the first node's `plast` says in RUN/logs/again whether the run should be restarted, and this
# script then hands the job back to Slurm, which starts it again where its checkpoint lies.
#
# Sourced by slurm/plast_*.sh, whose head documents the variables; `plast submit` puts head and body into one
# script.
set -uo pipefail

# Seconds between repeats of a stop signal: ranks that are not ready yet ignore it.
readonly REPEAT_SECONDS=2
# With less than this left before the time limit the job is handed back, saved or not.
readonly LAST_SECONDS=20
restarts=${SLURM_RESTART_COUNT:-0}
stop= # the signal that is passed on, once one came
step= # the process of srun

say() { printf '%(%F %T)T plast job %s: %s\n' -1 "$SLURM_JOB_ID" "$*"; }

refuse() {
  say "$*"
  exit 2
}

# The defaults of the variables, absolute paths, the overrides as a list.
settle() {
  PLAST_HOME=${PLAST_HOME:-$SLURM_SUBMIT_DIR}
  PLAST_RUN=$(realpath -m "${PLAST_RUN:-runs/$(basename "$PLAST_RECIPE" .yaml)}")
  PLAST_MAX_RESTARTS=${PLAST_MAX_RESTARTS:-20}
  if [[ -f $PLAST_RECIPE ]]; then
    PLAST_RECIPE=$(realpath "$PLAST_RECIPE")
    # As it was when the job began: what is edited meanwhile is for the next job.
    ((restarts == 0)) || [[ ! -f $PLAST_RUN/job/recipe.yaml ]] || PLAST_RECIPE=$PLAST_RUN/job/recipe.yaml
  fi
  again=$PLAST_RUN/logs/again nproc=${PLAST_NPROC:-${SLURM_GPUS_ON_NODE:-0}} overrides=()
  ((nproc > 0)) || refuse "no GPUs here: give sbatch --gpus-per-node=N (or set PLAST_NPROC, ranks on CPUs)"
  ((restarts <= PLAST_MAX_RESTARTS)) ||
    refuse "restarted $restarts times, PLAST_MAX_RESTARTS=$PLAST_MAX_RESTARTS: it ends here"
  local words # xargs reads quotes as the shell does, and nothing else
  words=$(xargs -r -n1 printf '%s\n' <<<"${PLAST_OVERRIDES:-}") || refuse "PLAST_OVERRIDES: quotes do not match"
  [[ -z $words ]] || mapfile -t overrides <<<"$words"
}

# Sets PATH, or the arrays that put a command into a container: `outside` for srun, `inside` before the command.
enter_environment() {
  local mounts=$PWD:$PWD,$PLAST_RUN:$PLAST_RUN${PLAST_MOUNTS:+,$PLAST_MOUNTS}
  outside=() inside=()
  case ${PLAST_CONTAINER:-} in
    '') activate ;;
    *.sif) inside=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "$PLAST_CONTAINER") ;;
    *) outside=(--container-image="$PLAST_CONTAINER" --container-mounts="$mounts" --container-workdir="$PWD") ;;
  esac
}

activate() {
  local env=${PLAST_ENV:-$PLAST_HOME/.venv}
  if [[ -d $env/bin ]]; then
    PATH=$env/bin:$PATH
  elif [[ -f $env ]]; then
    set +u
    # shellcheck source=/dev/null
    source "$env"
    set -u
  elif [[ -n ${PLAST_ENV:-} ]]; then
    refuse "PLAST_ENV=$PLAST_ENV: neither an environment's folder nor a script to source"
  fi
  command -v plast >/dev/null || refuse "no plast command here: set PLAST_ENV to its environment"
}

# Ends a job that was given another one's run folder by mistake, before it writes there. Whoever works in a run
# folder rewrites its lock every 5 s.
require_free_folder() {
  local lock=$PLAST_RUN/.lock before
  [[ -s $lock ]] || return 0
  before=$(stat -c %y "$lock")
  sleep 12
  [[ ! -s $lock || $(stat -c %y "$lock") == "$before" ]] || refuse "$PLAST_RUN: another plast works there"
}

# What the ranks of several nodes need to meet, and the usual settings, which the user's own go before.
meet() {
  local nodes
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export NNODES=${#nodes[@]}
  export MASTER_ADDR=${PLAST_MASTER_ADDR:-${nodes[0]}}
  # Another port after a restart: a rank that a lost node left behind may still hold the old one.
  export MASTER_PORT=${PLAST_MASTER_PORT:-$((10000 + (SLURM_JOB_ID + 101 * restarts) % 20000))}
  export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1} NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  export SLURM_EXPORT_ENV=ALL # PATH reaches the tasks whatever sbatch --export said
  [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
  say "on ${nodes[*]}, $nproc ranks a node, restart $restarts of at most $PLAST_MAX_RESTARTS, run $PLAST_RUN"
}

# Leaves in RUN/job one script that submits this job again as it is now: head, what was given to sbatch on the
# command line, the variables, this body.
keep_script() {
  local folder=$PLAST_RUN/job name=${SLURM_JOB_NAME//\//_}.sh variable kept
  mkdir -p "$folder" "$PLAST_RUN/logs" || refuse "$PLAST_RUN: cannot be written"
  [[ ! -f $PLAST_RECIPE || $PLAST_RECIPE -ef $folder/recipe.yaml ]] || cp "$PLAST_RECIPE" "$folder/recipe.yaml"
  kept=$(
    printf '#!/usr/bin/env bash\n'
    { grep '^#SBATCH ' "$0" && sbatch_options; } | tac | awk -F'[ =]' '!seen[$2]++' | tac # the last one counts
    for variable in PLAST_{HOME,RECIPE,OVERRIDES,RUN,STAGES,NPROC,ENV,CONTAINER,MOUNTS,DOCTOR,MAX_RESTARTS} \
      PLAST_MASTER_ADDR PLAST_MASTER_PORT; do
      [[ -z ${!variable:-} ]] || printf 'export %s=%q\n' "$variable" "${!variable}"
    done
    [[ ! -f $PLAST_RECIPE ]] || printf 'export PLAST_RECIPE=%q\n' "$folder/recipe.yaml"
    sed -n '/^# --- plast job/,$p' "${BASH_SOURCE[0]}"
  )
  printf '%s\n' "$kept" >"$folder/.$name" && mv "$folder/.$name" "$folder/$name"
}

# The options of this job that can come from the command line, as lines of a head. Slurm does not tell
# --signal, and --output only with this job's number in it: those are the head's.
sbatch_options() {
  local nodes partition account qos limit constraint gres only without reservation option value
  IFS='|' read -r nodes partition account qos limit constraint gres only without reservation \
    < <(squeue -h -j "$SLURM_JOB_ID" -o '%D|%P|%a|%q|%l|%f|%b|%n|%x|%v')
  [[ -z ${SLURM_GPUS:-} ]] || gres=
  for option in chdir="$PWD" job-name="$SLURM_JOB_NAME" nodes="$nodes" partition="$partition" \
    account="$account" qos="$qos" time="$limit" constraint="$constraint" gres="${gres#gres[:/]}" \
    nodelist="$only" exclude="$without" reservation="$reservation" gpus="${SLURM_GPUS:-}" \
    gpus-per-task="${SLURM_GPUS_PER_TASK:-}" cpus-per-task="${SLURM_CPUS_PER_TASK:-}" \
    mem="${SLURM_MEM_PER_NODE:-}" mem-per-cpu="${SLURM_MEM_PER_CPU:-}"; do
    value=${option#*=}
    case $value in
      '' | N/A | '(null)') ;;
      *) value=${value//\\/\\\\} && printf '#SBATCH --%s="%s"\n' "${option%%=*}" "${value//\"/\\\"}" ;;
    esac
  done
}

# What each task is: the command with this node's number. It ignores the signals until it handles them itself.
# With the first task that fails srun ends all; the first node's `plast` is given the time to write down why.
# shellcheck disable=SC2016
readonly TASK='trap "" USR1 USR2 TERM
export NODE_RANK=$SLURM_NODEID
"$@"
code=$?
((NODE_RANK > 0)) || echo $code >"$ENDED"
trap "exit $code" TERM
((code == 0 || NODE_RANK == 0)) || { sleep 30 & wait; } 2>/dev/null
exit $code'

# Runs a command on every node and waits for it; stop signals are passed on. Sets `code`, 0 if all
# nodes did it, else the first node's exit code, or srun's if that node could not say.
on_every_node() {
  export ENDED=$PLAST_RUN/job/.ended # the first node's exit code
  rm -f "$ENDED"
  srun --nodes="$NNODES" --ntasks="$NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 "${outside[@]}" \
    bash -c "$TASK" task "${inside[@]}" "$@" &
  step=$!
  while kill -0 "$step" 2>/dev/null; do
    if [[ -z $stop ]]; then
      wait "$step" # ends early when a signal comes
    else
      hand_back_in_time
      kill -s "$stop" "$step" 2>/dev/null
      sleep "$REPEAT_SECONDS"
    fi
  done
  wait "$step"
  code=$? step=
  case $(cat "$ENDED" 2>/dev/null) in
    '') ((code > 0)) || code=1 ;; # srun can end with 0 when its step was cancelled
    0) ;;
    *) code=$(<"$ENDED") ;; # srun's would be that of a task which it killed
  esac
}

request_stop() {
  [[ -n $stop ]] || say "SIG$1 came: the ranks save and end"
  stop=$2
  end=$(squeue -h -j "$SLURM_JOB_ID" -t RUNNING -o %e) # nothing where it is already being ended
  end=$(date -d "${end:-none}" +%s 2>/dev/null) || end=
}

# Ranks that are still saving when the time limit comes would end the job for good.
hand_back_in_time() {
  if [[ -n $end ]] && ((end - EPOCHSECONDS < LAST_SECONDS)); then
    echo "the time limit came before the ranks had saved" >"$again"
    finish 1
  fi
}

# Ends the job with an exit code, or hands it back to Slurm to be started again if RUN/logs/again asks for it.
finish() {
  local state count
  [[ -f $again ]] || { say "ends with exit code $1; nothing asks for a restart" && exit "$1"; }
  read -r state count < <(squeue -h -j "$SLURM_JOB_ID" -O State:20,RestartCnt:10)
  if [[ ${state:-gone} != RUNNING ]]; then
    say "is ${state:-gone}, no longer RUNNING: not restarted by itself"
  elif [[ $count != "$restarts" ]]; then
    say "runs elsewhere since its restart $count: this one (restart $restarts) ends"
  elif ((restarts >= PLAST_MAX_RESTARTS)); then
    say "not restarted: $restarts restarts are the most (PLAST_MAX_RESTARTS); last reason: $(<"$again")"
  else
    say "restarts itself: $(<"$again")"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    say "Slurm refuses to requeue; resume with: sbatch $PLAST_RUN/job/${SLURM_JOB_NAME//\//_}.sh"
  fi
  exit "$1"
}

# A job that has not begun ends where its nodes are not fit; one that was restarted gets another try.
end_unfit() {
  ((restarts > 0)) || refuse "the check of the nodes failed (PLAST_DOCTOR=0 leaves it out)"
  echo "the check of the nodes failed" >"$again"
  finish "$code"
}

run_job() {
  local command
  settle
  enter_environment
  meet
  ((restarts > 0)) || require_free_folder
  keep_script
  rm -f "$again"
  if [[ ${PLAST_DOCTOR:-1} != 0 ]]; then
    on_every_node plast doctor --distributed --out "$PLAST_RUN" --nproc "$nproc"
    ((code == 0)) || [[ -n $stop ]] || end_unfit
  fi
  for command in ${PLAST_STAGES:-run}; do
    [[ -z $stop ]] || { echo "stopped before plast $command began" >"$again" && finish 1; }
    say "plast $command begins"
    on_every_node plast "$command" "$PLAST_RECIPE" --out "$PLAST_RUN" --nproc "$nproc" "${overrides[@]}"
    ((code == 0)) || finish "$code"
  done
  say "done"
}

trap 'request_stop USR1 USR1' USR1
trap 'request_stop USR2 USR2' USR2
trap 'request_stop TERM USR1' TERM # srun kills its tasks on a TERM
run_job

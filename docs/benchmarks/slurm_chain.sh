#!/bin/bash
# A chain of `lrls slurm` on the example, with a time limit that stops and requeues its jobs; needs SLURM, not on the
# login node's time: some minutes of one core, and as many minutes of waits (a requeued job starts two minutes later).
#   docs/benchmarks/slurm_chain.sh FOLDER [OPTIONS OF lrls slurm, such as --partition short]
# Ends with the states of the jobs, how often each was stopped, and the digests of what they made. Without a cluster,
# Debian's slurmctld, slurmd and munge run on one machine: ProctrackType=proctrack/linuxproc, TaskPlugin=task/none,
# SelectType=select/cons_tres, SelectTypeParameters=CR_Core, one node.
set -eu
folder=$(realpath -m -- "$1")
shift
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
lrls slurm "$here/data.example/lrls.yaml" --method brbs --seed 1 --out "$folder/jobs %j" --whole \
    --set "workspace=$folder/runs" --set preprocess.align=rigid --set train_reg.steps=200 --set train_seg.steps=100 \
    --gpus 0 --cpus 1 --mem 2G --time 0:04:00 --warn 120 \
    --predict "$here/data.example/images" --answers "$folder/answers" --parts 3 "$@"
ids=$(bash "$folder/jobs %j/submit.sh" 2>&1 | tee /dev/stderr | cut -d ' ' -f 1 | paste -sd ,)
while squeue --noheader --jobs "$ids" 2> /dev/null | grep -q .; do sleep 10; done
scontrol --oneliner show job | grep -E "JobName=lrls-" | grep -oE "JobName=\S+|JobState=\S+|Restarts=[0-9]+" | paste - - -
grep --count "the same command resumes" "$folder/jobs %j/logs/"* || true
lrls history "$here/data.example/lrls.yaml" --set "workspace=$folder/runs"

#!/usr/bin/env bash
# buildlock beside what it replaces, in one run on one engine: medians, and how many times
# buildlock's time each of the others takes.
#
# usage: benches/bench.sh BUILDLOCK
#
# A figure is printed only if every build behind it succeeded and its image is there. The rounds
# can be set: ROUNDS_PRESENT, ROUNDS_MISSING, ROUNDS_MANY, CALLS.
set -euo pipefail
export LC_ALL=C

buildlock=$(realpath "${1:?usage: benches/bench.sh BUILDLOCK}")
: "${ROUNDS_PRESENT:=100}" "${ROUNDS_MISSING:=7}" "${ROUNDS_MANY:=3}" "${CALLS:=100}"
mark=buildlock-bench-$$
tag=$mark:abc

for name in ${!BUILDLOCK_@}; do unset "$name"; done
work=$(mktemp -d)
export BUILDLOCK_DIR=$work/locks

die() {
    echo "bench: $*" >&2
    exit 1
}

clean_up() {
    status=$?
    wait
    docker ps -aq --filter "label=$mark" | xargs -r docker rm --force >/dev/null 2>&1 || true
    docker image rm --force "$tag" "$mark-base" >/dev/null 2>&1 || true
    docker image ls -aq --filter "label=$mark" | xargs -r docker image rm --force \
        >/dev/null 2>&1 || true
    rm -rf "$work"
    exit "$status"
}

docker version >/dev/null 2>&1 || die "no engine answers, so there is nothing to measure"
busybox=$(command -v busybox) || die "no busybox to make a base image from"
! ldd "$busybox" >/dev/null 2>&1 || die "busybox is not static (Debian: busybox-static)"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$work/root/bin" "$work/quick" "$work/slow"
cp "$busybox" "$work/root/bin/busybox"
ln -s busybox "$work/root/bin/sh"
tar -C "$work/root" -c . | docker import - "$mark-base" >/dev/null
printf 'FROM %s\nLABEL %s=1\nRUN busybox true\n' "$mark-base" "$mark" >"$work/quick/Dockerfile"
printf 'FROM %s\nLABEL %s=1\nRUN busybox sleep 1\n' "$mark-base" "$mark" >"$work/slow/Dockerfile"
build=(docker build --network none --no-cache -t "$tag")

has_image() { docker image inspect "$tag" >/dev/null 2>&1; }
no_image() {
    docker image rm --force "$tag" >/dev/null 2>&1 || true
    ! has_image || die "the image cannot be removed"
}

# Runs a command, and adds its time in microseconds to the row's.
timed() { # ROW COMMAND...
    local start end
    start=${EPOCHREALTIME/./}
    "${@:2}" >"$work/output" 2>&1 || die "'${*:2}' failed: $(tail -n 5 "$work/output")"
    end=${EPOCHREALTIME/./}
    echo $((end - start)) >>"$work/$1.times"
    has_image || die "no image after '${*:2}'"
}

# The command that many times at once; fails if one of them does.
at_once() { # COMMAND...
    local pids=() pid
    for _ in $(seq "$CALLS"); do
        "$@" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || return 1; done
}

flock_and_client() {
    # shellcheck disable=SC2016
    flock "$work/lock" sh -c 'docker image inspect "$0" >/dev/null 2>&1 || exec "$@"' \
        "$tag" "${build[@]}" "$work/slow"
}

median() { sort -n "$work/$1.times" | awk '{ t[NR] = $1 } END { print (t[int((NR + 1) / 2)] + t[int(NR / 2) + 1]) / 2 }'; }

# A table of rows `KEY LABEL`; the first row is what the others are compared with.
table() { # TITLE ROW LABEL...
    local title=$1 first=$2
    shift
    printf '\n%-44s %12s %8s\n' "$title" median ratio
    while [ $# -gt 0 ]; do
        awk -v label="$2" -v t="$(median "$1")" -v one="$(median "$first")" 'BEGIN {
            if (t < 1e6) printf "  %-42s %9.1f ms %8.2f\n", label, t / 1e3, t / one
            else printf "  %-42s %10.2f s %8.2f\n", label, t / 1e6, t / one
        }'
        shift 2
    done
}

docker version --format 'Docker Engine {{.Server.Version}}, client {{.Client.Version}}, '"$(nproc) cores"

timed first "${build[@]}" "$work/quick"
for _ in $(seq "$ROUNDS_PRESENT"); do
    timed present "$buildlock" -q -- "${build[@]}" "$work/quick"
    timed inspect docker image inspect "$tag"
    timed flock flock "$work/lock" true
done
table "image exists ($ROUNDS_PRESENT rounds)" \
    present "buildlock" inspect "docker image inspect" flock "flock FILE true"

for _ in $(seq "$ROUNDS_MISSING"); do
    no_image
    timed missing "$buildlock" -q -- "${build[@]}" "$work/quick"
    no_image
    timed bare "${build[@]}" "$work/quick"
done
table "image missing, a quick build ($ROUNDS_MISSING rounds)" \
    missing "buildlock" bare "docker build"

for _ in $(seq "$ROUNDS_MANY"); do
    no_image
    timed many at_once "$buildlock" -q -- "${build[@]}" "$work/slow"
    no_image
    timed many_flock at_once flock_and_client
    no_image
    timed one "${build[@]}" "$work/slow"
done
table "$CALLS calls at once, a build of 1 s ($ROUNDS_MANY rounds)" \
    many "buildlock" many_flock "flock, docker image inspect || docker build" \
    one "one docker build alone"

#!/usr/bin/env bash
# Shows the main job: eight calls at once for one missing tag. One builds and seven wait, then all
# eight exit with 0 and the image exists. Exits with 1 on anything else.
#
# usage: tests/demo.sh BUILDLOCK
set -euo pipefail

buildlock=$(realpath "${1:?usage: tests/demo.sh BUILDLOCK}")
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
calls=8
mark=buildlock-demo-$$
tag=$mark:abc

for name in ${!BUILDLOCK_@}; do unset "$name"; done
work=$(mktemp -d)
export BUILDLOCK_DIR=$work/locks
real=''
kind=Image
pids=()

clean_up() {
    status=$?
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    if [ -n "$real" ]; then
        docker ps -aq --filter "label=$mark" | xargs -r docker rm --force >/dev/null 2>&1 || true
        docker image rm --force "$tag" "$mark-base" >/dev/null 2>&1 || true
        docker image ls -aq --filter "label=$mark" | xargs -r docker image rm --force \
            >/dev/null 2>&1 || true
    fi
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

static_busybox() {
    local path
    path=$(command -v busybox) && ! ldd "$path" >/dev/null 2>&1 && echo "$path"
}

# The build takes long enough for the others to wait.
mkdir "$work/context"
if command -v docker >/dev/null && docker version --format '{{.Server.Version}}' >/dev/null 2>&1; then
    real=1
    echo "On $(docker version --format 'Docker Engine {{.Server.Version}}, client {{.Client.Version}}')."
    if busybox=$(static_busybox); then
        mkdir -p "$work/root/bin"
        cp "$busybox" "$work/root/bin/busybox"
        ln -s busybox "$work/root/bin/sh"
        tar -C "$work/root" -c . | docker import - "$mark-base" >/dev/null
        printf 'FROM %s\nLABEL %s=1\nRUN busybox sleep 3\n' "$mark-base" "$mark" \
            >"$work/context/Dockerfile"
    else
        # Without a program to run in the image and without pulling, writing layers takes the time.
        printf 'FROM scratch\nLABEL %s=1\n' "$mark" >"$work/context/Dockerfile"
        for n in 1 2 3 4; do
            head -c 64M /dev/urandom >"$work/context/$n"
            echo "COPY $n /$n" >>"$work/context/Dockerfile"
        done
    fi
else
    echo "No Docker Engine answers here, so this uses the stand-in of the tests and builds no image."
    kind="The stand-in's image"
    mkdir "$work/bin" "$work/images"
    ln -s "$here/stand-in/docker" "$work/bin/docker"
    export PATH=$work/bin:$PATH STANDIN=$work STANDIN_SLEEP=3
fi

cd "$work/context"
command=(docker build --network none -t "$tag" .)
echo "Eight times at once: buildlock -- ${command[*]}"
echo
SECONDS=0
for n in $(seq "$calls"); do
    "$buildlock" --color never -- "${command[@]}" >"$work/out.$n" 2>&1 &
    pids+=($!)
done

failed=0
for pid in "${pids[@]}"; do
    wait "$pid" || failed=$((failed + 1))
done
took=$SECONDS
pids=()

for n in $(seq "$calls"); do
    sed -n "s/^buildlock:/[$n] buildlock:/p" "$work/out.$n"
done
echo

# Prints how many of the calls logged this.
said() { grep -lF "buildlock: $tag: $1" "$work"/out.* | wc -l; }

builds=$(said 'building: ')
waits=$(said 'waiting for ')
image=$(docker image inspect --format '{{.Id}}' "$tag" 2>/dev/null) || image=''
echo "$builds built, $waits waited, $failed failed, in $took s. $kind: ${image:-none}"
if [ "$builds" -ne 1 ] || [ "$waits" -ne $((calls - 1)) ] || [ "$failed" -ne 0 ] || [ -z "$image" ]; then
    echo "That is not one build and $((calls - 1)) waits. The output was:" >&2
    tail -n +1 "$work"/out.* >&2
    exit 1
fi

echo
echo "Once more, now that the image exists:"
start=${EPOCHREALTIME/[^0-9]/}
"$buildlock" --color never -- "${command[@]}" 2>&1 | tee "$work/again"
end=${EPOCHREALTIME/[^0-9]/}
grep -qF "buildlock: $tag: present" "$work/again"
echo "in $(((end - start) / 1000)) ms"

#!/bin/bash
# Subjects through checkpoint and restore on this machine's kernel, several at a time.
#   LANES [NAME...]   all of them, or these; prints "NAME STORY", the story as `lab native-worker` tells it
dir=/var/lab/one-kernel
programs=/opt/kupgrade
export dir programs

one() {
    local story
    mkdir -p "$dir/$1"
    story=$(timeout --kill-after=5 400 unshare --pid --fork --kill-child --mount --mount-proc --ipc --net \
        $programs/native-worker native-worker "$1" $programs/subject $programs/kupgrade "$dir/$1" --step 150 2>&1 | tr '\n' ' ')
    rm -rf "$dir/$1"/image-*
    echo "$1 $story"
}
export -f one

lanes=$1
shift
rm -rf $dir
mkdir -p $dir
# One of them opens thousands; nobody loads it for the program that opens its device.
ulimit -n 20000
modprobe tun
[ $# -gt 0 ] || set -- $($programs/subject --table | cut -f2)
printf '%s\n' "$@" | xargs -P "$lanes" -I{} bash -c 'one {}'

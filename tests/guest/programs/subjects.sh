#!/bin/bash
# The subjects of a machine, all at once.
#   start PART...   starts those whose name or group contains a PART (=NAME: exactly that one),
#                   prints "NAME READY PID" or why not
#   ask WORD        asks all that run, prints "NAME WORD PASS" or what else they answer
#   who PID...      prints "PID NAME" of processes that are a subject's
#   end NAME        ends a subject and its children
dir=/var/lab/subjects
subject=/opt/kupgrade/subject

# Waits until the file of every subject begins with a text, 180 s at most; prints all of them.
all() {
    local ending=$1 start=$2 name text limit=$((SECONDS + 180))
    while read -r name; do
        text=
        until read -r text < "$dir/$name.$ending" && [[ $text == "$start"* ]]; do
            [ $SECONDS -lt $limit ] && [ -d "/proc/$(cat "$dir/$name.pid")" ] || break
            sleep 0.1
        done 2> /dev/null
        [[ $text == "$start"* ]] || text="no answer $(tail -c 300 "$dir/$name.log" | tr '\n' ' ')"
        echo "$name $text"
    done < $dir/names
}

case $1 in
start)
    shift
    rm -rf $dir
    mkdir -p $dir
    # One of them opens thousands.
    ulimit -n 20000
    # Nobody loads it for the program that opens its device: there is no udev.
    modprobe tun
    for part in "$@"; do $subject --list "$part"; done | sort -u > $dir/names
    while read -r name; do
        setsid $subject "$name" "$dir/$name" < /dev/null > "$dir/$name.log" 2>&1 &
        echo $! > "$dir/$name.pid"
    done < $dir/names
    all ready "" | tee $dir/ready
    grep ' READY ' $dir/ready | cut -d' ' -f1 > $dir/names
    ;;
ask)
    while read -r name; do
        echo "$2" > "$dir/$name.asking"
        mv "$dir/$name.asking" "$dir/$name.ask"
    done < $dir/names
    all result "$2 "
    ;;
who)
    shift
    for pid in "$@"; do
        { read -r -d '' program; read -r -d '' name; } < "/proc/$pid/cmdline"
        [ "$program" = $subject ] && echo "$pid $name"
    done 2> /dev/null
    ;;
end)
    for process in /proc/[0-9]*; do
        { read -r -d '' program; read -r -d '' name; } < "$process/cmdline"
        [ "$program" = $subject ] && [ "$name" = "$2" ] && kill -KILL "${process#/proc/}"
    done 2> /dev/null
    grep -vx -- "$2" $dir/names > $dir/names.new
    mv $dir/names.new $dir/names
    ;;
esac

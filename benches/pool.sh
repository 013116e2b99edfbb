#!/bin/sh
# Takes the samples of `cargo xtask bench pool` on this machine's own KVM: a small guest through `ember serve`.
set -eu
. "$EMBER_BENCHES/common/place.sh"
. "$EMBER_BENCHES/common/pool.sh"

for size in 64 256; do
    bake "echo-$size" --interface port --kernel "$EMBER_SMALL_GUESTS/echo.elf" --memory "${size}MiB"
done

# echo_daemon SHELLS FLAG...: whose only function is that guest, in 64 MiB.
echo_daemon() {
    shells=$1
    shift
    serve --shells "$shells" --register "echo=$place/echo-64" "$@"
    # What is made once is made by then.
    "$caller" "$socket" echo single 5 "$shells" >"$place/warm-up"
}

for shells in 8 100; do
    echo_daemon "$shells"
    "$caller" "$socket" echo single 200 "$shells" >"$OUT/activate-$shells.jsonl"
    if [ "$shells" = 8 ]; then
        set -- --event-text hello
        series run 150 pooled "$ember" run echo --pool "$socket" "$@" -- alone $run "$place/echo-64" "$@"
    fi
    stop
done

echo_daemon 16
for n in 1 16 64 256; do
    rounds=$((400 / n))
    [ "$rounds" -ge 5 ] || rounds=5
    "$caller" "$socket" echo burst "$n" "$rounds" 16 >"$OUT/burst-$n.jsonl"
done
"$caller" "$socket" echo loop 10 4 >"$OUT/loop.jsonl"
stop

# Root may bound clones: what a control group costs, in turn with shells that have none.
limit=
if [ "$(id -u)" = 0 ]; then
    limit='--memory-max 96MiB'
    free=$place/socket-free
    "$ember" serve --socket "$free" $whole --shells 8 --register "echo=$place/echo-64" &
    other=$!
    until [ -S "$free" ]; do sleep 0.05; done
    echo_daemon 8 $limit
    for round in 1 2 3 4 5 6 7 8 9 10; do
        "$caller" "$free" echo single 15 8 >>"$OUT/activate-free.jsonl"
        "$caller" "$socket" echo single 15 8 >>"$OUT/activate-bounded.jsonl"
        "$caller" "$free" echo loop 1 4 >>"$OUT/loop-free.jsonl"
        "$caller" "$socket" echo loop 1 4 >>"$OUT/loop-bounded.jsonl"
    done
    kill "$other" && wait "$other" || true
    other=
    stop
fi

# Cycles leave nothing: what there is before and after them. Memory is that of the daemon and of its zygote alone, KiB.
held() {
    zygote=$(children "$daemon")
    memory=0
    for process in "$daemon" "$zygote"; do
        own=$(awk '/^Private_(Clean|Dirty):/ { own += $2 } END { print own }' "/proc/$process/smaps_rollup")
        memory=$((memory + own))
    done
    echo "memory_kib $memory"
    echo "descriptors $(($(ls "/proc/$daemon/fd" | wc -l) + $(ls "/proc/$zygote/fd" | wc -l)))"
    echo "processes $(machines | wc -l)"
    echo "mounts $(wc -l </proc/self/mountinfo)"
    echo "sockets $(grep -c "$socket" /proc/net/unix)"
    echo "groups $(find /sys/fs/cgroup -type d -name 'vm-*' | wc -l)"
}

settled() { # FILE
    "$caller" "$socket" echo single 2 16 >"$place/warm-up"
    sleep 1
    held >"$OUT/$1"
}

cycles=${CYCLES:-10000}
echo_daemon 16 $limit
# As many as ends are remembered, and more.
"$caller" "$socket" echo calls $((cycles / 2)) 4 >"$place/warm-up"
settled leaks-before
"$caller" "$socket" echo calls "$cycles" 4 >"$OUT/cycles.jsonl"
settled leaks-after
echo "$cycles" >"$OUT/leaks-cycles"
stop

serve --shells 1
density density echo-256 "${DENSITY_CLONES:-500}"

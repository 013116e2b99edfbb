#!/bin/sh
# Takes the samples of `cargo xtask bench pool` on this machine's own KVM: a small guest through `ember serve`.
set -eu
. "$EMBER_BENCHES/common/place.sh"

daemon=
stop() {
    if [ -n "$daemon" ]; then
        kill "$daemon" && wait "$daemon" || true
    fi
    daemon=
}
trap 'stop; rm -rf "$place"' EXIT

cp "$BENCH_TOOLS/caller" "$place"
socket=$place/socket
caller=$place/caller

for size in 64 256; do
    bake "echo-$size" --interface port --kernel "$EMBER_SMALL_GUESTS/echo.elf" --memory "${size}MiB"
done

# serve SHELLS MIB: a daemon whose only function is that guest.
serve() {
    "$ember" serve --socket "$socket" --shells "$1" --register "echo=$place/echo-$2" &
    daemon=$!
    until [ -S "$socket" ]; do sleep 0.05; done
    # What is made once is made by then.
    "$caller" "$socket" echo single 5 "$1" >"$place/warm-up"
}

# Shells and clones: the children of the daemon's one child.
processes() {
    zygote=$(ps -o pid= --ppid "$daemon" | tr -d ' ')
    ps -o pid= --ppid "$zygote" | wc -l
}

for shells in 8 100; do
    serve "$shells" 64
    "$caller" "$socket" echo single 200 "$shells" >"$OUT/activate-$shells.jsonl"
    if [ "$shells" = 8 ]; then
        set -- --event-text hello
        series run 150 pooled "$ember" run echo --pool "$socket" "$@" -- alone $run "$place/echo-64" "$@"
    fi
    stop
done

serve 16 64
for n in 1 16 64 256; do
    rounds=$((400 / n))
    [ "$rounds" -ge 5 ] || rounds=5
    "$caller" "$socket" echo burst "$n" "$rounds" 16 >"$OUT/burst-$n.jsonl"
done
"$caller" "$socket" echo loop 10 4 >"$OUT/loop.jsonl"

# Cycles leave nothing: descriptors and processes before and after.
fds() { ls "/proc/$daemon/fd" | wc -l; }
"$caller" "$socket" echo single 5 16 >"$place/warm-up"
echo "before $(fds) $(processes) $(wc -l </proc/mounts)" >"$OUT/leaks"
"$caller" "$socket" echo loop 5 2 >"$place/warm-up"
"$caller" "$socket" echo single 2 16 >"$place/warm-up"
sleep 1
echo "after $(fds) $(processes) $(wc -l </proc/mounts)" >>"$OUT/leaks"
stop

# Idle clones: each has answered and waits for another event.
"$ember" serve --socket "$socket" --shells 1 &
daemon=$!
until [ -S "$socket" ]; do sleep 0.05; done
curl --silent --show-error --fail-with-body --unix-socket "$socket" -X PUT http://ember/functions/echo \
    -d "{\"bundle\": \"$place/echo-256\", \"reuse\": 2, \"shells\": 1}" >/dev/null
"$caller" "$socket" echo keep 10
clones=${DENSITY_CLONES:-500}
available() { sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
before=$(available)
"$caller" "$socket" echo keep "$clones"
sleep 2
echo "$clones $before $(available)" >"$OUT/density"

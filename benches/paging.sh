#!/bin/sh
# Takes the samples of `cargo xtask bench paging` that need no peer, in the emulated host with its exact clock: a file of JSON lines
# per series in $OUT. $1: echo, lambda, drift or small.
set -eu
. "$EMBER_BENCHES/common/place.sh"

warm=${SAMPLES_WARM:-21}
cold=${SAMPLES_COLD:-3}

# A Linux function: with and without its working set, by the pager with every chunk checked.
function() { # BUNDLE RUN-ARGUMENT...
    name=$1
    shift
    "$ember" inspect --json "$place/$name" >"$OUT/$name.inspect"
    set -- $run "$place/$name" "$@"
    bundle=$name
    series "$bundle" "$warm" restore "$@" -- timed "$@" --timing=json \
        -- none "$@" --prefetch none -- timed-none "$@" --prefetch none --timing=json
    # Apart: what the kernel still frees of such a clone, which has copied all it touched, would be the next one's time.
    series "$bundle-verified" "$warm" verified "$@" --paging uffd --verify touched
}

measure_echo() {
    bake echo --config "$EMBER_EXAMPLES/echo/ember.toml" --root "$EMBER_ROOT_PYTHON"
    function echo --event-text hello
}

measure_lambda() {
    bake lambda --config "$EMBER_BENCHES/python/ember.toml" --root "$EMBER_ROOT_PYTHON"
    function lambda --event "$EMBER_EXAMPLES/lambda/event"
    series lambda-cold "$cold" cold $run "$place/lambda" --event "$EMBER_EXAMPLES/lambda/event" --cold
}

measure_drift() {
    bake lambda --config "$EMBER_BENCHES/python/ember.toml" --root "$EMBER_ROOT_PYTHON"
    # Recorded with a short name, run with one of 64 KiB.
    printf '{"name": "%s"}' "$(head -c 65536 /dev/zero | tr '\0' x)" >"$place/other"
    set -- $run "$place/lambda" --event "$place/other"
    series lambda-drift "$warm" none "$@" --prefetch none -- all "$@"
}

small() { # BUNDLE MEMORY EVENT: one that is recorded with the event
    bake "$1" --interface port --kernel "$EMBER_SMALL_GUESTS/toucher.elf" --memory "$2" --warm-up "${4:-pages}" --no-record
    "$ember" record --event-text "$3" "$place/$1" >"$OUT/record-$1"
}

# Small guests: recorded on one event and run on another that has no page in common with it; the same pages of a small and of a large memory.
measure_small() {
    small drift 64MiB "write 1024 300 2" fill
    set -- $run "$place/drift" --event-text "read 9000 1500 3"
    series drift "$warm" none "$@" --prefetch none -- all "$@"
    rm -r "$place/drift"
    touched="read 4096 300 3 write 8192 100 3"
    small flat-256 256MiB "$touched"
    small flat-4096 4GiB "$touched"
    set -- --event-text "$touched" --timing=json
    series flat "$warm" small $run "$place/flat-256" "$@" -- large $run "$place/flat-4096" "$@"
}

"measure_$1"

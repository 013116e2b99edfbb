#!/bin/sh
# Takes the samples of `cargo xtask bench main` in the emulated host: a file of JSON lines per series in $OUT. $1: the part.
#
# Everything timed lies on a tmpfs, programs and bundles too: there a disk read takes anything from 18 us to 360 ms.
set -eu

warm=${SAMPLES_WARM:-31}
cold=$((${SAMPLES_COLD:-15} / RUNS))
pause_us=8000
place=$(mktemp -d /tmp/bench.XXXXXX)

cp "$EMBER_BIN" "$EMBER_AGENT" "$BENCH_TOOLS/starter" "$BENCH_TOOLS/floor" "$place"
export EMBER_AGENT="$place/ember-agent"
ember=$place/ember
# What it is compared with is not jailed; what the jail costs is measured by jail.sh.
run="$ember run --no-jail"

say() { printf '%s\n' "$*" >&2; }

bake() { # BUNDLE CONFIG
    say "    baking $1"
    "$ember" bake "$place/$1" --config "$2/ember.toml" --root "$EMBER_ROOT_PYTHON" >"$OUT/bake-$1" 2>&1 || {
        cat "$OUT/bake-$1" >&2
        exit 1
    }
}

measure() { # SERIES SAMPLES LABEL COMMAND... [-- LABEL COMMAND...]
    series=$1
    samples=$2
    shift 2
    say "    $series: $samples samples"
    "$place/starter" "$OUT/$series.jsonl" "$samples" "$pause_us" "$@"
}

measure_echo() {
    "$place/floor" make "$place/dump"
    measure floor "$warm" floor "$place/floor" run "$place/dump"

    bake echo "$EMBER_EXAMPLES/echo"
    set -- $run "$place/echo" --event-text hello
    measure echo "$warm" restore "$@" -- timed "$@" --timing=json
    measure echo-cold "$cold" cold "$@" --cold --timing=json
}

measure_python() {
    bake python "$EMBER_BENCHES/python"
    set -- $run "$place/python" --event "$EMBER_EXAMPLES/lambda/event"
    measure python "$warm" restore "$@" -- timed "$@" --timing=json
}

measure_python_cold() {
    bake python "$EMBER_BENCHES/python"
    measure python-cold "$cold" cold $run "$place/python" --event "$EMBER_EXAMPLES/lambda/event" --cold --timing=json
}

# A hundred events of one machine.
measure_python_long() {
    bake python "$EMBER_BENCHES/python"
    set -- $run "$place/python" --event "$EMBER_EXAMPLES/lambda/event" --repeat 100 --timing=json
    measure python-long "$cold" restored "$@" -- cold "$@" --cold
}

measure_python_import() {
    bake python-import "$EMBER_BENCHES/python-import"
    measure python-import "$cold" import $run "$place/python-import" --event-text "" --cold
}

"measure_$(echo "$1" | tr - _)"

#!/bin/sh
# Takes the samples of `cargo xtask bench main` in the emulated host: a file of JSON lines per series in $OUT. $1: the part.
set -eu
. "$EMBER_BENCHES/common/place.sh"

warm=${SAMPLES_WARM:-31}
cold=$((${SAMPLES_COLD:-15} / RUNS))
cp "$BENCH_TOOLS/floor" "$place"

measure_echo() {
    "$place/floor" make "$place/dump"
    series floor "$warm" floor "$place/floor" run "$place/dump"

    bake echo --config "$EMBER_EXAMPLES/echo/ember.toml" --root "$EMBER_ROOT_PYTHON"
    set -- $run "$place/echo" --event-text hello
    series echo "$warm" restore "$@" -- timed "$@" --timing=json \
        -- jailed "$ember" run "$place/echo" --event-text hello
}

measure_echo_cold() {
    bake echo --config "$EMBER_EXAMPLES/echo/ember.toml" --root "$EMBER_ROOT_PYTHON"
    series echo-cold "$cold" cold $run "$place/echo" --event-text hello --cold --timing=json
}

measure_python() {
    bake python --config "$EMBER_BENCHES/python/ember.toml" --root "$EMBER_ROOT_PYTHON"
    set -- $run "$place/python" --event "$EMBER_EXAMPLES/lambda/event"
    series python "$warm" restore "$@" -- timed "$@" --timing=json
}

measure_python_cold() {
    bake python --config "$EMBER_BENCHES/python/ember.toml" --root "$EMBER_ROOT_PYTHON"
    series python-cold "$cold" cold $run "$place/python" --event "$EMBER_EXAMPLES/lambda/event" --cold --timing=json
}

# A hundred events of one machine.
measure_python_long() {
    bake python --config "$EMBER_BENCHES/python/ember.toml" --root "$EMBER_ROOT_PYTHON"
    set -- $run "$place/python" --event "$EMBER_EXAMPLES/lambda/event" --repeat 100 --timing=json
    series python-long "$cold" restored "$@" -- cold "$@" --cold
}

measure_python_import() {
    bake python-import --config "$EMBER_BENCHES/python-import/ember.toml" --root "$EMBER_ROOT_PYTHON"
    series python-import "$cold" import $run "$place/python-import" --event-text "" --cold
}

"measure_$(echo "$1" | tr - _)"

#!/bin/sh
# Takes the samples of `cargo xtask bench pool` that need a Linux guest, in the emulated host with its exact clock: the Python function
# of `bench paging` through `ember serve`. $1: answer or density.
set -eu
. "$EMBER_BENCHES/common/place.sh"
. "$EMBER_BENCHES/common/pool.sh"

warm=${SAMPLES_WARM:-21}
# On the one processor a sample would find the end of the last clone and the making of the next shell: they come before it.
pause_us=60000
export CALLER_PAUSE_US=$pause_us

bake lambda --config "$EMBER_BENCHES/python/ember.toml" --root "$EMBER_ROOT_PYTHON"
event=$EMBER_EXAMPLES/lambda/event
CALLER_EVENT=$(cat "$event")
export CALLER_EVENT

measure_answer() {
    serve --shells 2 --register "lambda=$place/lambda"
    "$caller" "$socket" lambda single 3 2 >"$place/warm-up"
    "$caller" "$socket" lambda single "$warm" 2 >"$OUT/single.jsonl"
    series run "$warm" alone $run "$place/lambda" --event "$event" \
        -- pooled "$ember" run lambda --pool "$socket" --event "$event"
}

measure_density() {
    serve --shells 1
    density density lambda "${DENSITY_CLONES:-50}"
}

"measure_$1"

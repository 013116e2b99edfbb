#!/bin/sh
# Takes the samples of `cargo xtask bench clones` in the emulated host, into $OUT. $1: cost (with the exact clock), lots, or
# cycles, $2 the vCPUs.
set -eu
. "$EMBER_BENCHES/common/place.sh"

cp "$EMBER_FAULTY_BIN" "$place"
faulty=$place/ember-with-faults

# busybox alone; with $2, a hook of that content.
make_root() { # ROOT [HOOK]
    mkdir -p "$1/bin" "$1/tmp" "$1/run" "$1/proc" "$1/sys" "$1/dev" "$1/etc/ember/after-restore.d"
    cp "$(command -v busybox)" "$1/bin/busybox"
    for program in sh cat sleep poweroff; do
        ln -s busybox "$1/bin/$program"
    done
    [ $# -lt 2 ] || {
        printf '#!/bin/sh\n%s\n' "$2" >"$1/etc/ember/after-restore.d/10-hook"
        chmod 755 "$1/etc/ember/after-restore.d/10-hook"
    }
}

# What it takes to be unique, and how late a clone's clock is.
measure_cost() {
    count=${SAMPLES:-31}
    bake echo --config "$EMBER_EXAMPLES/echo/ember.toml" --root "$EMBER_ROOT_PYTHON"
    set -- "$faulty" run "$place/echo" --event-text x
    # The same program twice; what differs is what it leaves out.
    series unique "$count" whole EMBER_FAULT= "$@" \
        -- message EMBER_FAULT=generation-silent,names-absent "$@" -- timed EMBER_FAULT= "$@" --timing=json

    make_root "$place/plain-root"
    make_root "$place/hooked-root" 'exit 0'
    for name in plain hooked; do
        bake "$name" --config "$EMBER_EXAMPLES/echo/ember.toml" --root "$place/$name-root"
    done
    series hooks "$count" plain "$ember" run "$place/plain" --event-text x \
        -- hooked "$ember" run "$place/hooked" --event-text x

    bake clock --config "$EMBER_BENCHES/clones/clock.toml" --root "$EMBER_ROOT_PYTHON"
    series clock 50 clock "$ember" run "$place/clock" --event-text x
}

# Many clones of one bundle, and clones that do not acknowledge as they must.
measure_lots() {
    bake numbers --config "$EMBER_BENCHES/clones/numbers.toml" --root "$EMBER_ROOT_PYTHON"
    say "    running 1000 clones"
    clone=0
    while [ "$clone" -lt 1000 ]; do
        clone=$((clone + 1))
        "$ember" run "$place/numbers" --event-json '{}' >>"$OUT/numbers" 2>/dev/null
        echo >>"$OUT/numbers"
    done

    witness='echo delivered-to-the-function >/dev/console; cat'
    fault none 0 ""
    for name in acknowledge-never acknowledge-late acknowledge-old acknowledge-twice; do
        fault "$name" 125 ""
    done
    fault hook-fails 125 'exit 3'
    fault hook-is-killed 125 'kill -9 $$'
    fault hook-hangs 125 'sleep 100'
    fault hook-ends-the-guest 125 'poweroff -f; sleep 100'
}

# A line each: the fault, the exit code, the one that is right, how often the function was given an event.
fault() { # NAME EXIT-CODE HOOK
    bundle=witness
    [ -z "$3" ] || bundle=$1
    [ -d "$place/$bundle" ] || {
        make_root "$place/$bundle-root" ${3:+"$3"}
        bake "$bundle" --root "$place/$bundle-root" --memory 128MiB -- /bin/sh -c "$witness"
    }
    code=0
    EMBER_FAULT=$1 "$faulty" run "$place/$bundle" --console --event-text x >"$OUT/fault-$1" 2>&1 </dev/null || code=$?
    delivered=$(grep -c delivered-to-the-function "$OUT/fault-$1" || true)
    echo "$1 $code $2 $delivered" | tee -a "$OUT/faults" >&2
}

# A busy guest that is restored, works, and is baked again, over and over. A line for each cycle: vCPUs, cycle, "ok" or what was wrong.
measure_cycles() { # VCPUS
    : >"$OUT/cycles"
    bake busy --root "$EMBER_ROOT_STRESS" --vcpus "$1" --memory 256MiB --event-timeout 200s -- /bin/sh
    run_cycles "$1" "$place/busy"
}

# The kernel looks for lockups meanwhile, which its command line says not to. More timers than these are more than an emulated host can serve.
start='echo 1 >/proc/sys/kernel/watchdog || exit 1
dmesg >/tmp/log
(stress-ng --verify --cpu 1 --vm 1 --vm-bytes 24M --timer 1 --timer-freq 1000 --fork 1 --futex 1 --cache 1 --timeout 0 --temp-path /tmp \
    --log-file /tmp/stress.log; echo $? >/tmp/status) </dev/null >/tmp/out 2>&1 &
sleep 2'
# What a kernel may say of a restore; and with several vCPUs, which share the one processor of the emulated host, whichever waits
# for it within its timer interrupt notices.
expected='crng reseeded due to virtual machine fork'
[ "${2:-1}" = 1 ] || expected="$expected|hrtimer: interrupt took"
# Prints what must not be: other new messages of the kernel, an end, a failure.
check='sleep 1
dmesg | tail -n +$(($(wc -l </tmp/log)+1)) | grep -vE "'$expected'"
[ ! -e /tmp/status ] || echo ended with $(cat /tmp/status)
grep -iE "fail|error|abort" /tmp/stress.log /tmp/out
ps | grep -q "[s]tress-ng" || echo nobody works
exit 0'
stop='killall -INT stress-ng
n=0; while [ ! -e /tmp/status ] && [ $n -lt 60 ]; do n=$((n+1)); sleep 1; done
[ "$(cat /tmp/status)" = 0 ] || echo ended with $(cat /tmp/status)
grep -q "successful run completed" /tmp/stress.log || tail -5 /tmp/stress.log
exit 0'

run_cycles() { # VCPUS BUNDLE
    bundle=$2
    cycle "$1" 0 "$start"
    for number in 1 2 3 4 5 6 7 8 9 10; do
        cycle "$1" "$number" "$check"
    done
    wrong=$("$ember" run "$bundle" --event-text "$stop" 2>"$place/errors") ||
        wrong="$wrong exit code $?: $(cat "$place/errors")"
    echo "$1 end ${wrong:-ok}" | tr '\n' ' ' | tee -a "$OUT/cycles" >&2
    echo | tee -a "$OUT/cycles" >&2
    rm -r "$bundle"
}

cycle() { # VCPUS NUMBER SCRIPT
    code=0
    "$ember" run "$bundle" --event-text "$3" --bake-to "$bundle.$2" >"$place/output" 2>"$place/errors" || code=$?
    wrong=$(cat "$place/output")
    [ "$code" = 0 ] || wrong="$wrong exit code $code: $(cat "$place/errors")"
    echo "$1 $2 ${wrong:-ok}" | tr '\n' ' ' | tee -a "$OUT/cycles" >&2
    echo | tee -a "$OUT/cycles" >&2
    # Where there is no bundle of this cycle, the next one tries again from the last.
    [ -d "$bundle.$2" ] || return 0
    rm -r "$bundle"
    bundle=$bundle.$2
}

"measure_$@"
